# SPDX-License-Identifier: MIT
# Who is told what when /dev/kvm or a parameter cannot be opened. After the selftests, one of which it runs.
PATHS_TOOL := $(BUILD)/tests/paths/tool
LAST_CHECKS += tests/paths/check-paths

$(PATHS_TOOL): tests/paths/tool.c tests/lib/paths.h
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -Itests $(filter-out -fsanitize=%,$(CFLAGS)) -o $@ $<

.PHONY: check-paths
check-programs: $(PATHS_TOOL)
check-paths: all $(PATHS_TOOL)
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs tests/paths/check-paths
