# SPDX-License-Identifier: MIT
# check-fuzz: guests of random bytes, random ioctls, failing allocations, under ASan and UBSan.
# FUZZ_SECONDS bounds each fuzzer (60), FUZZ_SEED=n repeats one batch.
FUZZ_BUILD := $(BUILD)/asan
FUZZ_NAMES := insn ioctl oom
comma := ,
FUZZ_TESTS := $(patsubst %,$(FUZZ_BUILD)/tests/fuzz/fuzz-%,$(FUZZ_NAMES))
CHECKS += $(FUZZ_TESTS)

# What a fuzzer links, in the build that has MODE=asan.
$(BUILD)/tests/fuzz/fuzz-%: $(BUILD)/obj/tests/fuzz/%.o $(CORE_OBJ)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)
.PRECIOUS: $(BUILD)/obj/tests/fuzz/%.o $(BUILD)/obj/oom/%.o

# fuzz-oom puts itself between the library and everything that allocates.
OOM_WRAP := malloc calloc realloc aligned_alloc mmap pthread_create eventfd
OOM_SYSCALLS := src/api/fd.c src/host/thread.c src/host/fd.c src/host/codemem.c
OOM_OBJ := $(patsubst %.c,$(BUILD)/obj/oom/%.o,$(OOM_SYSCALLS))
$(BUILD)/obj/oom/%.o: %.c tests/fuzz/oom.h
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -include tests/fuzz/oom.h -MMD -MP -c -o $@ $<
$(BUILD)/tests/fuzz/fuzz-oom: $(BUILD)/obj/tests/fuzz/oom.o $(OOM_OBJ) \
		$(filter-out $(patsubst %.c,$(BUILD)/obj/%.o,$(OOM_SYSCALLS)),$(CORE_OBJ))
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(patsubst %,-Wl$(comma)--wrap=%,$(OOM_WRAP)) -o $@ $^ $(LDLIBS)

.PHONY: fuzz-programs check-fuzz
fuzz-programs:
	$(Q)$(MAKE) --no-print-directory MODE=asan BUILD=$(FUZZ_BUILD) $(FUZZ_TESTS)
check-programs: fuzz-programs
check-fuzz: fuzz-programs
	$(Q)tests/run.sh $(BUILD)/tests/logs $(FUZZ_TESTS)
