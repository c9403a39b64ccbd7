# SPDX-License-Identifier: MIT
# What an instruction does to the CPU's state must not depend on the engine: a second time, interpreted.
INTERPRETED := $(patsubst tests/api/%.c,$(BUILD)/tests/api/%.interp,$(wildcard tests/api/priv_*.c) \
	$(addprefix tests/api/,run.c state.c irq.c memslots.c guest_memfd.c smm.c hyperv.c xen.c))
CHECKS += $(INTERPRETED)
check-programs: $(INTERPRETED)

$(BUILD)/tests/api/%.interp: $(BUILD)/tests/api/%
	@printf '#!/bin/sh\nSOFTKVM_ENGINE=interp exec "%s" "%s"\n' '$(abspath $(BUILD)/softkvm)' '$(abspath $<)' > $@; chmod +x $@
