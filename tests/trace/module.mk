# SPDX-License-Identifier: MIT
# The trace stream, its decoder, the counters.
TRACE_TESTS := $(BUILD)/tests/trace/exits $(BUILD)/tests/trace/spin
CHECKS += tests/trace/check-trace

$(TRACE_TESTS): $(BUILD)/tests/trace/%: tests/trace/%.c tests/api/kvmtest.h
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -Itests $(filter-out -fsanitize=%,$(CFLAGS)) -o $@ $<

.PHONY: check-trace
check-programs: $(TRACE_TESTS)
check-trace: all examples $(TRACE_TESTS)
	$(Q)BUILD=$(BUILD) CC="$(CC)" tests/run.sh $(BUILD)/tests/logs tests/trace/check-trace
