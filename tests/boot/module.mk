# SPDX-License-Identifier: MIT
# check-machines: every machine type, GRUB from an ISO and from disk, save and restore, debugger, network.
CHECKS += tests/boot/check-machines

.PHONY: check-machines
check-machines: all guest
	$(Q)BUILD=$(BUILD) TEST_TIMEOUT=3600 tests/run.sh $(BUILD)/tests/logs tests/boot/check-machines \
		tests/boot/check-grub tests/boot/check-state
