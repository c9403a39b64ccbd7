/* SPDX-License-Identifier: MIT */
/*
 * Inside of the local APIC model: registers and what lapic.c, apic_timer.c,
 * apic_map.c and pv_eoi.c offer each other. Not for other folders.
 */
#ifndef SOFTKVM_X86_IRQCHIP_LAPIC_H
#define SOFTKVM_X86_IRQCHIP_LAPIC_H

#include "host/host.h"
#include "x86/irqchip.h"

/* Register offsets; an x2APIC MSR is 0x800 + offset / 16. */
enum apic_offset {
	APIC_ID = 0x20, APIC_LVR = 0x30, APIC_TPR = 0x80, APIC_ARBPRI = 0x90, APIC_PPR = 0xa0,
	APIC_EOI = 0xb0, APIC_LDR = 0xd0, APIC_DFR = 0xe0, APIC_SPIV = 0xf0,
	APIC_ISR = 0x100, APIC_TMR = 0x180, APIC_IRR = 0x200,
	APIC_ESR = 0x280, APIC_LVTCMCI = 0x2f0, APIC_ICR = 0x300, APIC_ICR2 = 0x310,
	APIC_LVTT = 0x320, APIC_LVTTHMR = 0x330, APIC_LVTPC = 0x340,
	APIC_LVT0 = 0x350, APIC_LVT1 = 0x360, APIC_LVTERR = 0x370,
	APIC_TMICT = 0x380, APIC_TMCCT = 0x390, APIC_TDCR = 0x3e0, APIC_SELF_IPI = 0x3f0,
};

#define APIC_LVR_DIRECTED_EOI BIT(24)
#define APIC_SPIV_ENABLED BIT(8)
#define APIC_SPIV_DIRECTED_EOI BIT(12)
#define APIC_DFR_FLAT 0xffffffffu
#define APIC_DFR_CLUSTER 0x0fffffffu
#define APIC_MODE_FIELD 0x700u		/* delivery mode in LVT and ICR */
#define APIC_MODE(reg) (((reg) >> 8) & 7)
#define APIC_LVT_PENDING BIT(12)
#define APIC_LVT_POLARITY BIT(13)
#define APIC_LVT_REMOTE_IRR BIT(14)
#define APIC_LVT_LEVEL BIT(15)
#define APIC_LVT_MASKED BIT(16)
#define APIC_LVT_PERIODIC BIT(17)
#define APIC_LVT_TSCDEADLINE BIT(18)
#define APIC_ICR_BUSY BIT(12)
#define XAPIC_BROADCAST 0xffu
#define X2APIC_BROADCAST 0xffffffffu

#define X2APIC_API_32BIT_IDS BIT_ULL(0)
#define X2APIC_API_NO_BROADCAST_QUIRK BIT_ULL(1)

struct lapic {
	union {
		_Alignas(16) u8 page[KVM_APIC_REG_SIZE];
		_Atomic u32 reg[KVM_APIC_REG_SIZE / 4];
	};
	struct vcpu *vcpu;
	/* the rest: owner of vcpu->mutex only */
	struct vm_timer timer;		/* its callback touches nothing but vcpu->requests */
	struct host_tick tick;		/* the same, while the owner is in KVM_RUN */
	bool armed;
	u64 deadline_ns;		/* valid when armed: when lapic_timer_fire() has work */
	u64 period_ns;			/* of the count in TMICT; 0: not counting */
	u64 target_ns;			/* when the count reaches 0 */
	u64 tsc_deadline;
	u32 divide;			/* from TDCR: 1 .. 128 */
	u32 timer_mode;			/* LVTT bits 18:17 in force */
	bool lvt0_nmi;			/* counted in apic_maps.lvt0_nmi */
	bool pv_eoi_pending;		/* the guest's PV EOI flag is set: an EOI may be owed */
};

/* ---- lapic.c: registers ---------------------------------------------------------- */

static inline u32 apic_reg(const struct lapic *a, unsigned offset)
{
	return atomic_load_explicit(&((struct lapic *)a)->reg[offset / 4], memory_order_relaxed);
}

static inline void apic_set_reg(struct lapic *a, unsigned offset, u32 val)
{
	atomic_store_explicit(&a->reg[offset / 4], val, memory_order_relaxed);
}

/* Vector bitmaps: eight 32-bit words, 16 bytes apart. */
static inline _Atomic u32 *apic_vector_word(struct lapic *a, unsigned bitmap, u8 vector)
{
	return &a->reg[(bitmap + (vector >> 5) * 0x10) / 4];
}

static inline bool apic_test_vector(struct lapic *a, unsigned bitmap, u8 vector)
{
	return atomic_load_explicit(apic_vector_word(a, bitmap, vector), memory_order_relaxed) &
	       BIT(vector & 31);
}

static inline void apic_set_vector(struct lapic *a, unsigned bitmap, u8 vector)
{
	atomic_fetch_or_explicit(apic_vector_word(a, bitmap, vector), BIT(vector & 31),
				 memory_order_release);
}

static inline void apic_clear_vector(struct lapic *a, unsigned bitmap, u8 vector)
{
	atomic_fetch_and_explicit(apic_vector_word(a, bitmap, vector), ~BIT(vector & 31),
				  memory_order_release);
}

/* Read by senders on other threads while the owner may change it. */
static inline u64 apic_base(const struct lapic *a)
{
	return __atomic_load_n(&a->vcpu->arch.msr.apic_base, __ATOMIC_RELAXED);
}

static inline bool apic_hw_enabled(const struct lapic *a)
{
	return apic_base(a) & APIC_BASE_ENABLE;
}

static inline bool apic_x2apic(const struct lapic *a)
{
	return apic_base(a) & APIC_BASE_X2APIC;
}

static inline bool apic_sw_enabled(const struct lapic *a)
{
	return apic_reg(a, APIC_SPIV) & APIC_SPIV_ENABLED;
}

static inline u8 apic_xapic_id(const struct lapic *a)
{
	return apic_reg(a, APIC_ID) >> 24;
}

static inline u32 apic_x2apic_ldr(u32 id)
{
	return (id >> 4) << 16 | BIT(id & 15);
}

static inline bool apic_vector_pending(struct lapic *a, u8 vector)
{
	return apic_test_vector(a, APIC_IRR, vector) || apic_test_vector(a, APIC_ISR, vector);
}

int apic_highest_vector(struct lapic *a, unsigned bitmap);	/* -1: none */
/* An interrupt message arrives. 1 accepted, 0 dropped. Any thread. */
int apic_accept(struct lapic *a, const struct apic_irq *irq);
/* A local source: what its LVT entry says, if not masked. Any thread. */
int apic_local_deliver(struct lapic *a, unsigned lvt);
/* EOI of the highest in-service vector, or -1. Owner. */
int apic_eoi(struct lapic *a);
/* Must the IOAPIC (here or in userspace) hear of this vector's EOI? */
bool apic_eoi_is_wanted(struct lapic *a, u8 vector);
/* Make the vCPU look at its requests, unless this thread is the one that would. */
void apic_kick(struct vcpu *vcpu);

/* ---- apic_timer.c: owner only ------------------------------------------------------ */

void apic_timer_init(struct lapic *a);
void apic_timer_stop(struct lapic *a);
void apic_timer_lvtt_changed(struct lapic *a);
void apic_timer_write_count(struct lapic *a, u32 count);
void apic_timer_write_divide(struct lapic *a, u32 tdcr);
void apic_timer_restore(struct lapic *a);	/* from TMICT and TMCCT of a loaded state */
u32 apic_timer_current_count(struct lapic *a);
u32 apic_timer_mode_mask(struct lapic *a);

/* ---- apic_map.c --------------------------------------------------------------------- */

enum apic_map_dirt { APIC_MAP_CLEAN, APIC_MAP_UPDATING, APIC_MAP_DIRTY };

struct apic_map;
struct apic_maps {			/* vm->arch.apic_maps */
	struct apic_map *_Atomic current;
	_Atomic u32 state;		/* enum apic_map_dirt */
	_Atomic u32 built_for;		/* nr_vcpus the current map was made for */
	_Atomic u32 readers;
	_Atomic u32 lvt0_nmi;		/* LAPICs whose LVT0 delivers NMIs: PIT watchdog */
	_Atomic u64 split_vectors[4];	/* level-triggered ones userspace's IOAPIC pins were ever routed to */
	pthread_mutex_t lock;		/* rebuilding; leaf */
	struct apic_map *retired;	/* under lock */
};
int apic_maps_create(struct vm *vm);
void apic_maps_destroy(struct vm *vm);
static inline bool apic_split_vector(struct vm *vm, u8 vector)
{
	return atomic_load_explicit(&vm->arch.apic_maps->split_vectors[vector >> 6],
				    memory_order_relaxed) & BIT_ULL(vector & 63);
}
bool apic_match_dest(struct lapic *target, struct lapic *src, u8 shorthand, u32 dest, u8 dest_mode);

#endif
