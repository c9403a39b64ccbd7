# SPDX-License-Identifier: MIT
# check-fuzz: guests of random bytes, random ioctls, failing allocations, under ASan and UBSan.
# FUZZ_SECONDS bounds each fuzzer (check-fuzz: 60, check: 30), FUZZ_SEED=n repeats one batch.
FUZZ_BUILD := $(BUILD)/asan
FUZZ_NAMES := insn ioctl oom
FUZZ_TESTS := $(patsubst %,$(FUZZ_BUILD)/tests/fuzz/fuzz-%,$(FUZZ_NAMES))
CHECKS += $(FUZZ_TESTS)

# What a fuzzer links, in the build that has MODE=asan.
$(BUILD)/tests/fuzz/fuzz-%: $(BUILD)/obj/tests/fuzz/%.o $(CORE_OBJ)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(FUZZ_LDFLAGS) -o $@ $^ $(LDLIBS)
.PRECIOUS: $(BUILD)/obj/tests/fuzz/%.o

.PHONY: fuzz-programs check-fuzz
fuzz-programs:
	$(Q)$(MAKE) --no-print-directory MODE=asan BUILD=$(FUZZ_BUILD) $(FUZZ_TESTS)
check-programs: fuzz-programs
check-fuzz: fuzz-programs
	$(Q)FUZZ_SECONDS=$${FUZZ_SECONDS:-60} tests/run.sh $(BUILD)/tests/logs $(FUZZ_TESTS)
