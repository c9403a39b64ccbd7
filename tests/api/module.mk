# SPDX-License-Identifier: MIT
# What an instruction does to the CPU's privileged state must not depend on the engine: a second time, translated.
PRIV_DBT := $(patsubst tests/api/%.c,$(BUILD)/tests/api/%.dbt,$(wildcard tests/api/priv_*.c))
CHECKS += $(PRIV_DBT)
check-programs: $(PRIV_DBT)

$(BUILD)/tests/api/%.dbt: $(BUILD)/tests/api/%
	@printf '#!/bin/sh\nSOFTKVM_ENGINE=dbt exec "%s" "%s"\n' '$(abspath $(BUILD)/softkvm)' '$(abspath $<)' > $@; chmod +x $@
