# SPDX-License-Identifier: MIT
# check-insn: instructions against the host CPU, and the interpreter's loop by itself.
INSN_TESTS := $(BUILD)/tests/insn/thunk_test $(BUILD)/tests/insn/interp_test
INSN_ENGINE := $(patsubst %,$(BUILD)/obj/src/%.o,x86/decode/decode x86/interp/thunk x86/interp/x87 \
	x86/interp/thunk_entry x86/ops/fpu x86/ops/xsave host/codemem host/cpuid host/access host/lazy)
INSN_LOOP := $(patsubst %,$(BUILD)/obj/src/%.o,x86/interp/block x86/interp/interp x86/ops/integer \
	x86/ops/flow x86/ops/string)
CHECKS += $(INSN_TESTS)
-include $(patsubst %,$(BUILD)/obj/tests/insn/%.d,thunk_test interp_test)

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
ORACLE_OBJ := $(patsubst %,$(BUILD)/obj/tests/insn/%.o,oracle oracle_compare oracle_gen oracle_guest oracle_native oracle_seg)
-include $(ORACLE_OBJ:.o=.d)
$(ORACLE): $(ORACLE_OBJ) $(CORE_OBJ)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

ifneq ($(filter rel dbg,$(MODE)),)
CHECKS += $(ORACLE) tests/insn/check-translator
check-programs: $(ORACLE)
endif

# Real mode and vm86, where no process can go, against QEMU's TCG.
LEGACY := $(BUILD)/tests/insn/legacy.bin
LEGACY_CFLAGS := -m32 -std=gnu11 -O2 -Wall -Wextra -ffreestanding -fno-pic -fno-pie -fno-stack-protector \
	-mgeneral-regs-only -fno-asynchronous-unwind-tables -fcf-protection=none
$(LEGACY): $(addprefix tests/insn/legacy/,rom.S entry.S legacy.c payload.ld)
	@mkdir -p $(@D)/legacy
	$(if $(Q),@echo "  ROM     $@")
	$(Q)$(CC) $(LEGACY_CFLAGS) -c -o $(@D)/legacy/legacy.o tests/insn/legacy/legacy.c
	$(Q)$(CC) -m32 -c -o $(@D)/legacy/entry.o tests/insn/legacy/entry.S
	$(Q)ld -m elf_i386 -z noexecstack -T tests/insn/legacy/payload.ld -o $(@D)/legacy/payload.elf \
		$(@D)/legacy/entry.o $(@D)/legacy/legacy.o
	$(Q)objcopy -O binary $(@D)/legacy/payload.elf $(@D)/legacy/payload.bin
	$(Q)$(CC) -m32 -Wa,-I$(@D)/legacy -c -o $(@D)/legacy/rom.o tests/insn/legacy/rom.S
	$(Q)ld -m elf_i386 -Ttext 0 --oformat binary -e 0 -o $@ $(@D)/legacy/rom.o

CHECKS += tests/insn/check-legacy
check-programs: $(LEGACY)

.PHONY: check-insn-long
check-insn-long: all $(ORACLE) $(LEGACY)
	SOFTKVM_ENGINE=interp $(ORACLE) --long
	SOFTKVM_ENGINE=dbt $(ORACLE) --long
	BUILD=$(BUILD) tests/insn/check-legacy --long
