# SPDX-License-Identifier: MIT
# kvm-list-digest: included by the Makefile of the tree. Uses CC, CFLAGS, BUILD,
# VERSION; adds to TOOLS, DIGEST_CHECKS and what check-programs builds; defines
# check-digest, bench-digest, fuzz-digest. Without its libraries it is left out.
DIGEST_DIR := tools/kvm-list-digest
DIGEST_PKGS := libgit2 gmime-3.0
DIGEST_LIB := archive body count digest filter mail mime options out output output_compat \
	output_html output_json output_mbox output_text reroll series state subject thread util
DIGEST_SRC := $(DIGEST_LIB:%=$(DIGEST_DIR)/%.c)
DIGEST_HDR := $(wildcard $(DIGEST_DIR)/*.h)
DIGEST_OBJ := $(DIGEST_SRC:%.c=$(BUILD)/obj/%.o) $(BUILD)/obj/$(DIGEST_DIR)/main.o
# Sanitizers come with a binary of their own, whatever the tree is built with.
DIGEST_CFLAGS = $(filter-out -fsanitize=%,$(CFLAGS)) $(shell pkg-config --cflags $(DIGEST_PKGS)) \
	-D_GNU_SOURCE $(if $(VERSION),-DKLD_VERSION='"$(VERSION)"')
DIGEST_LIBS = $(shell pkg-config --libs $(DIGEST_PKGS))
DIGEST_SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# The tests use the program, the same under ASan, and a library that kills it.
DIGEST_CHECK_DEPS := $(BUILD)/kvm-list-digest $(BUILD)/asan/kvm-list-digest $(BUILD)/digest-crash.so

$(DIGEST_OBJ): $(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $<")
	$(Q)$(CC) $(DIGEST_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/kvm-list-digest: $(DIGEST_OBJ)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(DIGEST_CFLAGS) $(LDFLAGS) -o $@ $(DIGEST_OBJ) $(DIGEST_LIBS)

$(BUILD)/asan/kvm-list-digest: $(DIGEST_SRC) $(DIGEST_DIR)/main.c $(DIGEST_HDR)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(DIGEST_CFLAGS) $(DIGEST_SAN) -o $@ $(DIGEST_SRC) $(DIGEST_DIR)/main.c $(DIGEST_LIBS)

$(BUILD)/digest-crash.so: tests/digest/crash.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(DIGEST_CFLAGS) -fvisibility=default -shared -fPIC -o $@ $< -ldl

$(BUILD)/fuzz-digest: tests/digest/fuzz_mail.c $(DIGEST_SRC) $(DIGEST_HDR)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC      $@")
	$(Q)clang -std=gnu11 -O1 -g -Wall -Wextra -D_GNU_SOURCE $(shell pkg-config --cflags $(DIGEST_PKGS)) \
		-I$(DIGEST_DIR) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
		-o $@ $< $(DIGEST_SRC) $(DIGEST_LIBS)

.PHONY: check-digest bench-digest fuzz-digest check-programs
ifeq ($(shell pkg-config --exists $(DIGEST_PKGS) 2>/dev/null && echo yes),yes)
TOOLS += $(BUILD)/kvm-list-digest
DIGEST_CHECKS += tests/digest/check-digest-fixtures tests/digest/check-digest-archive \
	tests/digest/check-digest-state tests/digest/fuzz
check-programs: $(DIGEST_CHECK_DEPS) $(BUILD)/fuzz-digest
endif

check-digest: $(DIGEST_CHECK_DEPS) $(BUILD)/fuzz-digest
	@set -e; for t in $(DIGEST_CHECKS); do echo "== $$t"; BUILD=$(BUILD) $$t; done

bench-digest: $(BUILD)/kvm-list-digest
	BUILD=$(BUILD) bench/digest/bench

FUZZ_SECONDS ?= 60
fuzz-digest: $(BUILD)/fuzz-digest
	BUILD=$(BUILD) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/digest/fuzz

-include $(DIGEST_OBJ:.o=.d)
