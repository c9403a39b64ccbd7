# SPDX-License-Identifier: MIT
# check-insn: instructions against the host CPU, and the interpreter's loop by itself.
INSN_TESTS := $(BUILD)/tests/insn/thunk_test $(BUILD)/tests/insn/interp_test
INSN_ENGINE := $(patsubst %,$(BUILD)/obj/src/%.o,x86/decode/decode x86/interp/thunk x86/interp/x87 \
	x86/interp/thunk_entry x86/ops/fpu host/codemem host/cpuid host/access)
INSN_LOOP := $(patsubst %,$(BUILD)/obj/src/%.o,x86/interp/block x86/interp/interp x86/ops/integer \
	x86/ops/flow x86/ops/string)
CHECKS += $(INSN_TESTS)

$(BUILD)/tests/insn/thunk_test: $(BUILD)/obj/tests/insn/thunk_test.o $(INSN_ENGINE)
$(BUILD)/tests/insn/interp_test: $(BUILD)/obj/tests/insn/interp_test.o $(INSN_ENGINE) $(INSN_LOOP)
$(INSN_TESTS):
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

.PHONY: check-insn
check-programs: $(INSN_TESTS)
check-insn: $(INSN_TESTS)
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs $(INSN_TESTS)

# The host CPU as oracle for the whole engine: a quick choice of forms in `make check`, all of them
# (ten million cases and more, a few minutes) by `make check-insn-long`. Not under sanitizers, whose
# shadow memory lies where the test needs nothing to be.
ORACLE := $(BUILD)/tests/insn/oracle
ORACLE_OBJ := $(patsubst %,$(BUILD)/obj/tests/insn/%.o,oracle oracle_gen oracle_guest oracle_native oracle_seg)
-include $(ORACLE_OBJ:.o=.d)
$(ORACLE): $(ORACLE_OBJ) $(CORE_OBJ)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

ifneq ($(filter rel dbg,$(MODE)),)
CHECKS += $(ORACLE)
check-programs: $(ORACLE)
endif

.PHONY: check-insn-long
check-insn-long: $(ORACLE)
	$(ORACLE) --long
