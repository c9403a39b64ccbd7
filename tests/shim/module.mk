# SPDX-License-Identifier: MIT
# Tests of the preload object and the command.
SHIM_TESTS := $(patsubst tests/shim/%.c,$(BUILD)/tests/shim/%,$(wildcard tests/shim/*.c))
CHECKS += tests/shim/check-shim

$(BUILD)/tests/shim/%: tests/shim/%.c tests/shim/test.h
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -o $@ $< -lpthread

# Without a static libc there is one test less.
$(BUILD)/tests/shim/static: tests/shim/static.c
	@mkdir -p $(dir $@)
	$(Q)$(CC) -static -o $@ $< 2>/dev/null || true

.PHONY: check-shim
check-programs: $(SHIM_TESTS)
check-shim: all $(SHIM_TESTS)
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs tests/shim/check-exports.sh tests/shim/check-shim
