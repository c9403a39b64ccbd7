# SPDX-License-Identifier: MIT
# What tracing costs: an exit to userspace and back, in a build without it, with it off, and with it on.
.PHONY: bench-trace
bench-trace: all $(BUILD)/tests/trace/spin
	$(Q)CFLAGS='-O2 -g -DSOFTKVM_NO_TRACE' $(MAKE) --no-print-directory BUILD=$(BUILD)/no-trace all
	$(Q)BUILD=$(BUILD) bench/trace.sh
