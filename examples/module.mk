# SPDX-License-Identifier: MIT
# The example twice: plain KVM, and linked to the library.
EXAMPLES := $(BUILD)/minivm $(BUILD)/minivm-linked

$(BUILD)/minivm: examples/minivm.c
	@mkdir -p $(BUILD)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -o $@ $<

$(BUILD)/minivm-linked: examples/minivm.c $(BUILD)/libsoftkvm.so
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -DWITH_SOFTKVM_H -o $@ $< -L$(BUILD) -lsoftkvm -Wl,-rpath,'$$ORIGIN'

.PHONY: examples
examples: $(EXAMPLES)
