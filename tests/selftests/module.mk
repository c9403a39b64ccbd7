# SPDX-License-Identifier: MIT
# The kernel's own KVM selftests: the quick ones in `make check`, all by `make check-selftests`
# (about 8 minutes). SELFTEST="name..." picks single ones.

CHECKS += tests/selftests/check-selftests.sh

.PHONY: check-selftests selftests
selftests:
	$(Q)tests/selftests/build.sh $(BUILD)/selftests

check-selftests: all selftests
	$(Q)BUILD=$(BUILD) tests/selftests/run.py --full $(SELFTEST)
