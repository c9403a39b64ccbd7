# SPDX-License-Identifier: MIT
# The translator in all its sizes: two corners in `make check`; every corner and every test, once, by
# `make check-all` (hours). The engines in lockstep: seconds in `make check`, 10^9 instructions by `make check-diff`.
CHECKS += tests/matrix/check-matrix tests/matrix/check-diff

.PHONY: check-all check-diff
check-all: all check-programs guest
	$(Q)BUILD=$(BUILD) tests/matrix/check-matrix --all
	$(Q)$(MAKE) --no-print-directory check-diff

check-diff: all guest $(BUILD)/tests/api/engines
	$(Q)BUILD=$(BUILD) tests/matrix/check-diff --long
