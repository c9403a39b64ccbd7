# SPDX-License-Identifier: MIT
# The kernel's own KVM selftests: the quick ones in `make check`, all by `make check-selftests`
# (about 8 minutes). SELFTEST="name..." picks single ones.

CHECKS += tests/selftests/check-selftests.sh

.PHONY: check-selftests selftests
selftests:
	$(Q)tests/selftests/build.sh $(BUILD)/selftests

check-selftests: all selftests
	$(Q)BUILD=$(BUILD) tests/selftests/run.py --full $(SELFTEST)

# The stress programs among them, and API tests of ours, on a library built with the thread sanitizer: a build of
# its own (build-tsan), the summary in the last line. ONLY="word..." picks rows.
TSAN_BUILD ?= $(patsubst %-tsan,%,$(BUILD))-tsan
TSAN_API := dirty_ring memslots guest_memfd irq many
.PHONY: check-tsan
check-tsan:
	$(Q)tools/install-deps.sh test
	$(Q)$(MAKE) --no-print-directory MODE=tsan BUILD=$(TSAN_BUILD) $(TSAN_BUILD)/libsoftkvm-preload.so \
		$(addprefix $(TSAN_BUILD)/tests/api/,$(TSAN_API))
	$(Q)BUILD=$(TSAN_BUILD) tests/selftests/tsan.sh $(ONLY)
