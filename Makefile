# SPDX-License-Identifier: MIT
# make                the library, the preload object, the command, the tools (build/)
# make check          every test that fits CI      make demo   boot Debian's kernel under QEMU
# make bench          ratios to QEMU TCG           make install DESTDIR= PREFIX=
# make check-insn-long   ten million instructions against the host CPU
# make deb            Debian packages (build/deb)  make check-deb installs, tries and removes them
# MODE=rel|dbg|asan|ubsan|tsan picks the build; CC=gcc|clang; V=1 shows commands

VERSION := 0.1.0
MODE ?= rel
BUILD ?= build$(if $(filter-out rel,$(MODE)),-$(MODE))
PREFIX ?= /usr/local
CC ?= gcc
V ?= 0
Q := $(if $(filter 1,$(V)),,@)

CFLAGS ?= -O2 -g
CFLAGS += -std=gnu11 -Wall -Wextra -Wno-unused-parameter -Wno-gnu-variable-sized-type-not-at-end -fno-strict-aliasing -fPIC \
	-fvisibility=hidden -mno-red-zone -pthread -D_GNU_SOURCE -DSOFTKVM_VERSION='"$(VERSION)"'
CPPFLAGS += -Isrc -Iinclude
LDLIBS := -lZydis -lZycore -lpthread -ldl
ifeq ($(MODE),dbg)
CFLAGS += -O0 -DSOFTKVM_DEBUG
endif
ifeq ($(MODE),asan)
CFLAGS += -fsanitize=address,undefined -fno-omit-frame-pointer
endif
ifeq ($(MODE),tsan)
CFLAGS += -fsanitize=thread
endif

CORE_SRC := $(sort $(wildcard src/base/*.c src/host/*.c src/kvm/*.c src/api/*.c src/x86/*.c src/x86/*/*.c))
CORE_ASM := $(sort $(wildcard src/host/*.S src/x86/*.S src/x86/*/*.S))
SHIM_SRC := $(sort $(wildcard src/shim/*.c))
CLI_SRC := $(sort $(wildcard src/cli/*.c))
obj = $(patsubst %,$(BUILD)/obj/%.o,$(basename $(1)))
CORE_OBJ := $(call obj,$(CORE_SRC)) $(call obj,$(CORE_ASM))
SHIM_OBJ := $(call obj,$(SHIM_SRC))
# The command formats what the library records.
CLI_OBJ := $(call obj,$(CLI_SRC) src/kvm/trace_format.c)
ifeq ($(MODE),tsan)
# What runs before the sanitizer's own start, or in signal handlers, inside its run time.
$(call obj,$(SHIM_SRC) src/host/signal.c src/host/fault.c): CFLAGS := $(filter-out -fsanitize=thread,$(CFLAGS))
endif

TOOLS :=
DIGEST_CHECKS :=
CHECKS :=
LAST_CHECKS :=

.PHONY: all
all: $(BUILD)/libsoftkvm.so $(BUILD)/libsoftkvm-preload.so $(BUILD)/softkvm

-include tools/*/module.mk tests/*/module.mk bench/module.mk examples/module.mk

all: $(TOOLS)

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.o: %.S
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  AS      $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# The library proper: only softkvm_* leaves it.
$(BUILD)/libsoftkvm.so: $(CORE_OBJ) src/api/softkvm.map
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -shared -Wl,-soname,libsoftkvm.so.0 -Wl,--version-script=src/api/softkvm.map -Wl,-z,defs $(LDFLAGS) -o $@ $(CORE_OBJ) $(LDLIBS)
	$(Q)ln -sf libsoftkvm.so $(BUILD)/libsoftkvm.so.0

# The preload object carries the library in itself: one file, no search path.
$(BUILD)/libsoftkvm-preload.so: $(CORE_OBJ) $(SHIM_OBJ) src/shim/preload.map
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) -shared -Wl,--version-script=src/shim/preload.map -Wl,-z,defs $(LDFLAGS) -o $@ $(CORE_OBJ) $(SHIM_OBJ) $(LDLIBS)

# A package, whose library is where the loader looks anyway, sets this to nothing.
RPATH ?= -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib' -Wl,-rpath,'$$ORIGIN/../lib/softkvm'

$(BUILD)/softkvm: $(CLI_OBJ) $(BUILD)/libsoftkvm.so
	$(if $(Q),@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(CLI_OBJ) -L$(BUILD) -lsoftkvm $(RPATH)

-include $(CORE_OBJ:.o=.d) $(SHIM_OBJ:.o=.d) $(CLI_OBJ:.o=.d)

.PHONY: clean
clean:
	rm -rf build build-*

# ---- tests ------------------------------------------------------------------

UNIT_SRC := $(sort $(wildcard tests/unit/*.c))
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(UNIT_SRC))
API_SRC := $(sort $(wildcard tests/api/*.c))
API := $(patsubst tests/api/%.c,$(BUILD)/tests/api/%,$(filter-out tests/api/lib%.c,$(API_SRC)))
SCRIPTS := tests/check-layers.sh tests/check-style.sh tests/check-examples.sh tests/shim/check-exports.sh

# Unit tests see the library's insides: they link its objects.
$(BUILD)/tests/unit/%: tests/unit/%.c $(CORE_OBJ)
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) $(CPPFLAGS) -Itests $(CFLAGS) -o $@ $< $(CORE_OBJ) $(LDLIBS) -lcmocka

# API tests are ordinary KVM clients, run under the command.
$(BUILD)/tests/api/%: tests/api/%.c $(wildcard tests/api/*.h)
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -Isrc -Itests $(filter-out -fsanitize=%,$(CFLAGS)) -o $@ $< -lpthread

$(BUILD)/tests/api/%.run: $(BUILD)/tests/api/%
	@printf '#!/bin/sh\nexec "%s" "%s"\n' '$(abspath $(BUILD)/softkvm)' '$(abspath $<)' > $@; chmod +x $@

GUEST := $(BUILD)/guest/vmlinuz
$(GUEST): tests/boot/build-guest.sh tests/boot/init tests/boot/guest-tool.c
	$(if $(Q),@echo "  GUEST   $(dir $@)")
	$(Q)tests/boot/build-guest.sh $(BUILD)/guest
	@touch $@

.PHONY: deps-test check check-unit check-api check-boot guest
deps-test:
	$(Q)tools/install-deps.sh test

guest: $(GUEST)

# In one recipe, so that the packages are there before anything is compiled.
check: deps-test
	$(Q)$(MAKE) --no-print-directory all examples check-programs guest
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs $(SCRIPTS) $(UNIT) $(addsuffix .run,$(API)) \
		$(CHECKS) $(LAST_CHECKS) $(DIGEST_CHECKS) tests/boot/check-boot.sh tests/boot/check-migrate.py

.PHONY: check-programs
check-programs: $(UNIT) $(API) $(addsuffix .run,$(API))

check-unit: all $(UNIT)
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs $(UNIT)
check-api: all $(API) $(addsuffix .run,$(API))
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs $(addsuffix .run,$(API))
check-boot: all guest
	$(Q)BUILD=$(BUILD) tests/run.sh $(BUILD)/tests/logs tests/boot/check-boot.sh tests/boot/check-migrate.py

.PHONY: demo
demo:
	$(Q)tools/install-deps.sh demo
	$(Q)$(MAKE) --no-print-directory all guest
	$(Q)BUILD=$(BUILD) tests/boot/demo.sh

# ---- installation --------------------------------------------------------------

LIBDIR ?= $(PREFIX)/lib
PRELOADDIR ?= $(LIBDIR)/softkvm
.PHONY: install
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PRELOADDIR) $(DESTDIR)$(LIBDIR)/pkgconfig \
		$(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/man/man1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 755 $(BUILD)/softkvm $(TOOLS) $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BUILD)/libsoftkvm.so $(DESTDIR)$(LIBDIR)/libsoftkvm.so.$(VERSION)
	ln -sf libsoftkvm.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libsoftkvm.so.0
	ln -sf libsoftkvm.so.0 $(DESTDIR)$(LIBDIR)/libsoftkvm.so
	install -m 755 $(BUILD)/libsoftkvm-preload.so $(DESTDIR)$(PRELOADDIR)
	install -m 644 include/softkvm.h $(DESTDIR)$(PREFIX)/include
	install -m 644 man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 tools/completion/softkvm.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/softkvm
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' tools/softkvm.pc.in \
		> $(DESTDIR)$(LIBDIR)/pkgconfig/softkvm.pc

.PHONY: layers
layers:
	$(Q)tests/check-layers.sh
