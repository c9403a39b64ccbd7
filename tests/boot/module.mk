# SPDX-License-Identifier: MIT
# Machines: every machine type, GRUB from an ISO and from disk, save and restore, debugger, network, libvirt.
CHECKS += tests/boot/check-machines

# All of it: the whole table of machines, and a Debian root with systemd (needs root and a mirror), libvirt. An hour.
.PHONY: check-machines
check-machines: all guest
	$(Q)tools/install-deps.sh machines
	$(Q)BUILD=$(BUILD) TEST_TIMEOUT=3600 tests/run.sh $(BUILD)/tests/logs tests/boot/check-machines-full \
		tests/boot/check-grub tests/boot/check-state tests/boot/check-distro tests/boot/check-libvirt
