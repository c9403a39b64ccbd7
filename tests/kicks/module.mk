# SPDX-License-Identifier: MIT
# check-kicks: a guest whose accesses to memory are aborted by kicks at any place, in each engine and in lockstep.
KICKS := $(BUILD)/tests/kicks/kicks
KICKS_SRC := src/kvm/guest_memory.c $(addprefix src/x86/,mmu/mem.c mmu/walk.c ops/descriptor.c ops/flow.c ops/integer.c ops/string.c \
	interp/block.c interp/interp.c dbt/cache.c dbt/diff.c)
KICKS_OBJ := $(patsubst %.c,$(BUILD)/obj/kicks/%.o,$(KICKS_SRC))
CHECKS += $(KICKS)
check-programs: $(KICKS)
-include $(KICKS_OBJ:.o=.d) $(BUILD)/obj/tests/kicks/kicks.d

$(BUILD)/obj/kicks/%.o: %.c tests/kicks/kicks.h
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -include tests/kicks/kicks.h -MMD -MP -c -o $@ $<
$(BUILD)/obj/tests/kicks/kicks.o: CPPFLAGS += -Itests
$(KICKS): $(BUILD)/obj/tests/kicks/kicks.o $(KICKS_OBJ) $(filter-out $(call obj,$(KICKS_SRC)),$(CORE_OBJ))
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

.PHONY: check-kicks
check-kicks: $(KICKS)
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs $(KICKS)
