/* SPDX-License-Identifier: MIT */
/*
 * Pages with translated code, when a VM has more than one vCPU: their stores must not
 * go unnoticed by the vCPU that has the translation.
 *
 *  1. The set of such pages belongs to the VM. A page that vCPUs use gets no write tag on any of
 *     them, so that every store to it comes through the slow path. When the last one gives it up it is data
 *     again; its slot stays.
 *  2. A vCPU that is about to translate uses the page from then on. The first one gives it a number of its own (the
 *     epoch), not before everybody can see that it is used, then asks every other vCPU to drop its write tags
 *     (KVM_REQ_CODE_PAGE), and reads the page
 *     only when all of them have since, or are outside guest mode. It waits for an answer only
 *     the first time, and not for long: the host may run one of them no sooner than in milliseconds. Until
 *     then the interpreter executes what is in the page, and each later attempt just looks. Who waits answers
 *     others' requests meanwhile.
 *  3. A store to such a page is written to the log after it has happened and before the
 *     next guest instruction of its vCPU; then the others are told. They look at
 *     the log whenever they come out of translated code, which they do for the
 *     request, and after instructions with a C handler: all that serialise are.
 */
#include <assert.h>
#include <stdlib.h>

#include "host/host.h"
#include "x86/mmu/mmu_internal.h"

#define SET_SIZE (512u << 10)
#define SYNC_SPINS 500

/* Of a page: who uses it, in one word that changes at once. */
#define STATE_SYNCED BIT_ULL(0)	/* everybody has dropped their write tags since it is used */
#define STATE_USER BIT_ULL(1)	/* times the number of vCPUs */
#define STATE_USERS (0xffffull * STATE_USER)
#define STATE_EPOCH BIT_ULL(32)	/* times the epoch; 0: not yet used for everyone */

static_assert(KVM_ABI_MAX_VCPUS <= STATE_USERS / STATE_USER, "they can be counted");

struct shared_code {
	_Atomic u64 keys[SET_SIZE];	/* gfn + 1 */
	_Atomic u64 states[SET_SIZE];	/* of the page of that key */
	_Atomic u32 epoch;		/* the last one given */
	_Atomic u32 dropped[KVM_ABI_MAX_VCPUS]; /* by index: the epoch up to which that vCPU has no write tag */
	_Atomic u32 nr;
	_Atomic u32 lock;		/* of log, held for a few instructions */
	_Atomic u64 head;		/* stores logged so far */
	struct code_store log[SHARED_CODE_LOG];
};

bool mmu_shared_code_create(struct vm *vm)
{
	struct shared_code *sc, *none = NULL;

	if (atomic_load(&vm->arch.shared_code))
		return true;
	sc = host_map_lazy(sizeof(*sc));
	if (!sc)
		return false;
	if (!atomic_compare_exchange_strong(&vm->arch.shared_code, &none, sc))
		host_unmap_lazy(sc, sizeof(*sc));
	return true;
}

void mmu_shared_code_destroy(struct vm *vm)
{
	host_unmap_lazy(atomic_load(&vm->arch.shared_code), sizeof(struct shared_code));
	atomic_store(&vm->arch.shared_code, NULL);
}

/* The slot of gfn, or a free one; NULL when full. */
static _Atomic u64 *set_slot(struct shared_code *sc, gfn_t gfn)
{
	/* Neighbours are neighbours: few pages of the table are touched. */
	u32 h = ((gfn >> 6) * 0x9e3779b97f4a7c15ull >> 40) * 64 + gfn % 64;

	for (u32 i = 0; i < SET_SIZE; i++) {
		_Atomic u64 *slot = &sc->keys[(h + i) % SET_SIZE];
		u64 key = atomic_load(slot);

		if (!key || key == gfn + 1)
			return slot;
	}
	return NULL;
}

bool mmu_is_shared_code_page(struct vm *vm, gpa_t page)
{
	struct shared_code *sc = atomic_load_explicit(&vm->arch.shared_code, memory_order_acquire);
	_Atomic u64 *slot;

	if (likely(!sc))
		return false;
	slot = set_slot(sc, page >> PAGE_SHIFT);
	return slot && (atomic_load(&sc->states[slot - sc->keys]) & STATE_USERS);
}

/* The state of gfn; NULL: too many pages. */
static _Atomic u64 *set_insert(struct shared_code *sc, gfn_t gfn)
{
	for (;;) {
		_Atomic u64 *slot = set_slot(sc, gfn);
		u64 empty = 0;

		if (slot && atomic_load(slot) == gfn + 1)
			return &sc->states[slot - sc->keys];
		if (!slot || atomic_load(&sc->nr) > SET_SIZE / 2)
			return NULL;
		if (atomic_compare_exchange_strong(slot, &empty, gfn + 1))
			atomic_fetch_add(&sc->nr, 1);
	}
}

/* One vCPU more. True: it is the first. */
static bool use(struct shared_code *sc, _Atomic u64 *state)
{
	u64 old = atomic_load(state), new;

	do
		new = old & STATE_USERS ? old + STATE_USER : STATE_USER;
	while (!atomic_compare_exchange_strong(state, &old, new));
	if (old & STATE_USERS)
		return false;
	/* Now that nobody gets a write tag any more. */
	atomic_fetch_add(state, (atomic_fetch_add(&sc->epoch, 1) + 1) * STATE_EPOCH);
	return true;
}

void mmu_unshare_code_page(struct vm *vm, gpa_t page)
{
	struct shared_code *sc = atomic_load(&vm->arch.shared_code);
	_Atomic u64 *state = &sc->states[set_slot(sc, page >> PAGE_SHIFT) - sc->keys];
	u64 old = atomic_load(state), new;

	do
		new = (old & STATE_USERS) == STATE_USER ? 0 : old - STATE_USER;
	while (!atomic_compare_exchange_strong(state, &old, new));
}

void mmu_drop_tags_for_code(struct vcpu *vcpu)
{
	struct shared_code *sc = atomic_load(&vcpu->vm->arch.shared_code);
	/* Before the tags go: what comes back afterwards has seen the set of this epoch. */
	u32 epoch = sc ? atomic_load(&sc->epoch) : 0;

	if (vcpu->arch.mmu)
		mmu_flush_write_tags(vcpu);
	if (sc)
		atomic_store(&sc->dropped[vcpu->index], epoch);
}

/* Invariant 2: of a vCPU that has been asked. */
static bool tags_dropped(const struct shared_code *sc, const struct vcpu *other, u32 epoch)
{
	return atomic_load(&sc->dropped[other->index]) >= epoch ||
	       atomic_load(&((struct vcpu *)other)->mode) == VCPU_OUTSIDE;
}

static void ask(struct vcpu *other)
{
	if (!(atomic_load(&other->requests) & BIT_ULL(KVM_REQ_CODE_PAGE)))
		vcpu_make_request(other, KVM_REQ_CODE_PAGE);
}

/* Have all dropped their write tags since epoch? Those that have not are asked (again: one may be new). */
static bool others_dropped(struct vcpu *vcpu, struct shared_code *sc, u32 epoch, unsigned spins)
{
	struct vcpu *other;
	bool all;
	u32 i;

	vm_for_each_vcpu(vcpu->vm, other, i)
		if (other != vcpu && atomic_load(&sc->dropped[other->index]) < epoch)
			ask(other);
	/* Pairs with the barrier in vcpu_enter_guest_mode(). */
	atomic_thread_fence(memory_order_seq_cst);
	for (;;) {
		all = true;
		vm_for_each_vcpu(vcpu->vm, other, i)
			all &= other == vcpu || tags_dropped(sc, other, epoch);
		if (all || !spins--)
			return all;
		if (vcpu_check_request(vcpu, KVM_REQ_CODE_PAGE))
			mmu_drop_tags_for_code(vcpu);
		__builtin_ia32_pause();
	}
}

bool mmu_share_code_page(struct vcpu *vcpu, gpa_t page)
{
	struct shared_code *sc = atomic_load(&vcpu->vm->arch.shared_code);
	_Atomic u64 *state = sc ? set_insert(sc, page >> PAGE_SHIFT) : NULL;
	bool fresh = false;
	u32 epoch;

	if (!state)
		return false;
	if (mmu_note_shared(vcpu, page))
		fresh = use(sc, state);
	if (atomic_load(state) & STATE_SYNCED)
		return true;
	epoch = atomic_load(state) / STATE_EPOCH;
	if (!epoch)
		return false; /* whoever is the first has not finished */
	if (atomic_load(&sc->dropped[vcpu->index]) < epoch)
		mmu_drop_tags_for_code(vcpu);
	if (!others_dropped(vcpu, sc, epoch, fresh ? SYNC_SPINS : 0))
		return false;
	atomic_fetch_or(state, STATE_SYNCED);
	return true;
}

static void log_append(struct shared_code *sc, const struct code_store *store)
{
	sc->log[sc->head % SHARED_CODE_LOG] = *store;
	atomic_fetch_add(&sc->head, 1);
}

void mmu_publish_code_stores(struct vcpu *vcpu)
{
	struct shared_code *sc = atomic_load(&vcpu->vm->arch.shared_code);
	struct mmu *mmu = vcpu->arch.mmu;
	u32 n = mmu->nr_code_stores, i;
	struct vcpu *other;

	mmu->nr_code_stores = 0;
	if (!sc || !n)
		return;
	while (atomic_exchange_explicit(&sc->lock, 1, memory_order_acquire))
		__builtin_ia32_pause();
	/* More than could be noted: make the log overflow for everyone. */
	if (n > CODE_STORES_MAX)
		atomic_fetch_add(&sc->head, SHARED_CODE_LOG + 1);
	else
		for (i = 0; i < n; i++)
			log_append(sc, &mmu->code_stores[i]);
	atomic_store_explicit(&sc->lock, 0, memory_order_release);
	vm_for_each_vcpu(vcpu->vm, other, i)
		if (other != vcpu)
			vcpu_make_request(other, KVM_REQ_CODE_PAGE);
}

u64 mmu_code_log_head(struct vm *vm)
{
	struct shared_code *sc = atomic_load_explicit(&vm->arch.shared_code, memory_order_acquire);

	return sc ? atomic_load(&sc->head) : 0;
}

unsigned mmu_read_code_log(struct vm *vm, u64 *seen, struct code_store *stores)
{
	struct shared_code *sc = atomic_load(&vm->arch.shared_code);
	unsigned n = 0;

	if (!sc)
		return 0;
	while (atomic_exchange_explicit(&sc->lock, 1, memory_order_acquire))
		__builtin_ia32_pause();
	if (sc->head - *seen > SHARED_CODE_LOG)
		n = SHARED_CODE_LOG + 1;
	else
		for (u64 i = *seen; i != sc->head; i++)
			stores[n++] = sc->log[i % SHARED_CODE_LOG];
	*seen = sc->head;
	atomic_store_explicit(&sc->lock, 0, memory_order_release);
	return n;
}
