# SPDX-License-Identifier: MIT
# make deb: BUILD/deb/*.deb, built from a copy of the tree. make check-deb: they install, work and go away (as root).
.PHONY: deb check-deb
deb:
	$(Q)tools/install-deps.sh deb
	$(Q)tools/build-deb.sh $(BUILD)/deb

check-deb: deb guest
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs tests/deb/check-deb.sh
