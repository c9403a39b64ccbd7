# SPDX-License-Identifier: MIT
# make bench          workloads natively, under TCG and under SoftKVM (bench/README.md); ROUNDS=, BENCH="options"
# make bench-quick    fewer of them, under five minutes      make bench-distro   Debian's own boot to login
# make bench-scale    cost as the work grows, and memory     make bench-trace    what tracing costs
# make bench-memory   dirty logging, demand paging, memslots, beside the machine's own KVM
# make bench-latency  how late timers and IPIs are while vCPUs compute (SAMPLES=)
BENCH_OUT := $(BUILD)/bench
BENCH_PROGRAMS := $(addprefix $(BENCH_OUT)/,work agent nothing)
ROUNDS ?= 5

$(BENCH_OUT)/work: $(wildcard bench/workloads/*.[ch] bench/workloads/list.def)
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -I/usr/include/lua5.4 -static -pthread -o $@ $(filter %.c,$^) \
		-lsqlite3 -llua5.4 -lpcre2-8 -lcrypto -lz -lm -ldl 2>$@.warnings || { cat $@.warnings; exit 1; }

$(BENCH_OUT)/%: bench/%.c
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -static -o $@ $<

$(BENCH_OUT)/initrd: $(BENCH_PROGRAMS) bench/make_guest.py $(wildcard bench/programs/*)
	$(if $(Q),@echo "  GUEST   $@")
	$(Q)/usr/bin/python3 bench/make_guest.py $(BENCH_OUT)

.PHONY: bench bench-quick bench-distro bench-scale bench-ready bench-trace
# In one recipe, so that the packages are there before anything is compiled.
bench-ready:
	$(Q)tools/install-deps.sh bench
	$(Q)$(MAKE) --no-print-directory all guest $(BENCH_OUT)/initrd
bench: bench-ready
	$(Q)BUILD=$(BUILD) /usr/bin/python3 bench/run.py --rounds $(ROUNDS) $(BENCH)
bench-quick: bench-ready
	$(Q)BUILD=$(BUILD) /usr/bin/python3 bench/run.py --quick --budget 270 $(BENCH)
bench-distro: bench-ready
	$(Q)tools/install-deps.sh machines
	$(Q)BUILD=$(BUILD) ROUNDS=$(ROUNDS) /usr/bin/python3 bench/login.py
bench-scale: bench-ready
	$(Q)BUILD=$(BUILD) /usr/bin/python3 bench/scale.py $(BENCH)

# Dirty logging, demand paging, memslots: bench/memory.c. An ordinary client, so not static.
$(BENCH_OUT)/memory: bench/memory.c tests/api/kvmtest.h
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -O2 -Wall -Wextra -D_GNU_SOURCE -Isrc -Itests -pthread -o $@ $<
.PHONY: bench-memory
bench-memory: all $(BENCH_OUT)/memory
	$(Q)BUILD=$(BUILD) bench/memory.sh

# Timers and IPIs: bench/latency.c, a client as well.
$(BENCH_OUT)/latency: bench/latency.c tests/api/kvmtest.h tests/api/both.h
	@mkdir -p $(dir $@)
	$(if $(Q),@echo "  CC      $@")
	$(Q)$(CC) -O2 -Wall -Wextra -Wno-unused-parameter -D_GNU_SOURCE -Isrc -Itests -pthread -o $@ $<
.PHONY: bench-latency
bench-latency: all $(BENCH_OUT)/latency
	$(Q)BUILD=$(BUILD) bench/latency.sh

# An exit to userspace and back: in a build without tracing, with it off, and with it on.
bench-trace: all $(BUILD)/tests/trace/spin
	$(Q)CFLAGS='-O2 -g -DSOFTKVM_NO_TRACE' $(MAKE) --no-print-directory BUILD=$(BUILD)/no-trace all
	$(Q)BUILD=$(BUILD) bench/trace.sh
