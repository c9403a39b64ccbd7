/* SPDX-License-Identifier: MIT */
/*
 * The PIT: an 8254 whose counters are computed from the clock when looked at,
 * and whose channel 0 drives GSI 0 from a host timer.
 *
 * 1. pit->lock covers the channels and the timer's variables. The timer's
 *    callback takes it, so nobody cancels the timer while holding it: stopping
 *    is `counting = false`, and a stale callback finds nothing due.
 * 2. Lost ticks. With reinject (the default) every expiry is counted in
 *    `pending`; a tick is raised only when the previous one was acknowledged
 *    (irq_ack), and the acknowledgement raises the next one that is owed. So
 *    no tick is lost while the guest is slow. Without reinject a tick that finds
 *    the line busy is lost, as on hardware.
 * 3. irq_ack is set before pending is looked at, and pending is raised before
 *    irq_ack is taken (all sequentially consistent): one of the two sides always
 *    sees the other.
 * 4. Which pins channel 0 reaches is learnt from the routing as it is used
 *    (pit_note_pin()); acknowledgements of other pins are not ours. A pin stays
 *    known when routing changes: one acknowledgement too many is harmless, one
 *    too few would stop the clock.
 * 5. GSI 0 is raised with no lock held.
 *
 * In HPET legacy mode channel 0 is dead: the client's HPET drives the GSI.
 * Gates of modes 0 and 4 do not stop the count, BCD counts as binary: as in KVM.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/irqchip/irqchip_internal.h"
#include "x86/irqchip/lapic.h"

#define PIT_HZ 1193181ull
#define NS_PER_S 1000000000ull
#define MIN_PERIOD_NS 200000
#define MODE_OFF 0xff

/* read_state and write_state; rw_mode has the first three */
enum { RW_LSB = 1, RW_MSB, RW_WORD0, RW_WORD1 };

struct pit {
	struct vm *vm;
	pthread_mutex_t lock;
	struct kvm_pit_channel_state ch[3];
	u32 flags;			/* KVM_PIT_FLAGS_* */
	bool speaker;			/* answers port 61h */
	struct vm_timer timer;
	bool counting, periodic;
	u64 period_ns, expiry_ns;	/* of channel 0 */
	_Atomic bool reinject;
	_Atomic s32 pending;
	_Atomic bool irq_ack;
	_Atomic u32 pins[KVM_NR_IRQCHIPS];
};

/* Created while vCPUs may already run. */
static struct pit *pit_of(struct vm *vm)
{
	return __atomic_load_n(&vm->arch.pit, __ATOMIC_ACQUIRE);
}

static u64 scale(u64 val, u64 mul, u64 div)
{
	return (unsigned __int128)val * mul / div;
}

/* ---- the interrupt --------------------------------------------------------------------- */

static void reset_reinject(struct pit *pit)
{
	atomic_store(&pit->pending, 0);
	atomic_store(&pit->irq_ack, true);
}

/* NMI watchdogs of old guests: the tick also goes to every LVT0 in NMI mode. */
static void deliver_watchdog(struct vm *vm)
{
	struct apic_maps *maps = vm->arch.apic_maps;
	struct vcpu *vcpu;
	u32 i;

	if (!maps || !atomic_load(&maps->lvt0_nmi))
		return;
	pthread_mutex_lock(&vm->irq_lock); /* a VM going away is marked dead under it */
	if (!atomic_load(&vm->dead))
		vm_for_each_vcpu(vm, vcpu, i)
			if (vcpu->arch.apic)
				apic_local_deliver(vcpu->arch.apic, APIC_LVT0);
	pthread_mutex_unlock(&vm->irq_lock);
}

static void raise_tick(struct pit *pit)
{
	if (atomic_load(&pit->reinject) && !atomic_exchange(&pit->irq_ack, false))
		return;
	vm_set_irq(pit->vm, KVM_IRQ_SOURCE_PIT, 0, 1);
	vm_set_irq(pit->vm, KVM_IRQ_SOURCE_PIT, 0, 0);
	deliver_watchdog(pit->vm);
}

/* True if more ticks are owed after the one just served. */
static bool take_pending(struct pit *pit)
{
	s32 n = atomic_load(&pit->pending);

	while (n > 0)
		if (atomic_compare_exchange_weak(&pit->pending, &n, n - 1))
			return n > 1;
	return false;
}

void pit_pin_acked(struct vm *vm, unsigned chip, unsigned pin)
{
	struct pit *pit = pit_of(vm);

	if (!pit || !(atomic_load_explicit(&pit->pins[chip], memory_order_relaxed) & BIT(pin)) ||
	    !atomic_load(&pit->reinject))
		return;
	atomic_store(&pit->irq_ack, true);
	if (take_pending(pit))
		raise_tick(pit);
}

void pit_pin_unmasked(struct vm *vm, unsigned chip, unsigned pin)
{
	struct pit *pit = pit_of(vm);

	if (pit && (atomic_load_explicit(&pit->pins[chip], memory_order_relaxed) & BIT(pin)) &&
	    atomic_load(&pit->reinject))
		reset_reinject(pit);
}

void pit_note_pin(struct vm *vm, unsigned chip, unsigned pin)
{
	struct pit *pit = pit_of(vm);

	if (pit && !(atomic_load_explicit(&pit->pins[chip], memory_order_relaxed) & BIT(pin)))
		atomic_fetch_or(&pit->pins[chip], BIT(pin));
}

static bool expire_locked(struct pit *pit)
{
	if (!pit->counting || host_now_ns() < pit->expiry_ns)
		return false;
	if (atomic_load(&pit->reinject))
		atomic_fetch_add(&pit->pending, 1);
	if (pit->periodic) {
		pit->expiry_ns += pit->period_ns;
		vm_timer_arm(&pit->timer, pit->expiry_ns);
	} else {
		pit->counting = false;
	}
	return true;
}

static void tick_timer_expired(struct vm_timer *t)
{
	struct pit *pit = container_of(t, struct pit, timer);
	bool due;

	pthread_mutex_lock(&pit->lock);
	due = expire_locked(pit);
	pthread_mutex_unlock(&pit->lock);
	if (due)
		raise_tick(pit);
}

static void start_channel0(struct pit *pit, u32 count, bool periodic)
{
	u64 interval = scale(count, NS_PER_S, PIT_HZ);

	if (pit->flags & KVM_PIT_FLAGS_HPET_LEGACY)
		return;
	reset_reinject(pit);
	pit->period_ns = periodic ? max(interval, (u64)MIN_PERIOD_NS) : interval;
	pit->periodic = periodic;
	pit->expiry_ns = host_now_ns() + interval;
	pit->counting = true;
	vm_timer_arm(&pit->timer, pit->expiry_ns);
}

/* ---- counters ------------------------------------------------------------------------------ */

static u64 elapsed_ns(struct pit *pit, unsigned channel)
{
	u64 start, now = host_now_ns();

	if (channel == 0) {
		if (!pit->period_ns)
			return 0;
		start = pit->expiry_ns - pit->period_ns;
	} else {
		start = pit->ch[channel].count_load_time;
	}
	return (s64)(now - start) > 0 ? now - start : 0;
}

static u64 elapsed_ticks(struct pit *pit, unsigned channel)
{
	return scale(elapsed_ns(pit, channel), PIT_HZ, NS_PER_S);
}

static u16 get_count(struct pit *pit, unsigned channel)
{
	const struct kvm_pit_channel_state *c = &pit->ch[channel];
	u64 ticks = elapsed_ticks(pit, channel);

	switch (c->mode) {
	case 0: case 1: case 4: case 5:
		return c->count - ticks; /* wraps around below zero */
	case 3:
		return c->count - 2 * ticks % c->count; /* counts by two */
	}
	return c->count - ticks % c->count;
}

static bool get_out(struct pit *pit, unsigned channel)
{
	const struct kvm_pit_channel_state *c = &pit->ch[channel];
	u64 ticks = elapsed_ticks(pit, channel);

	switch (c->mode) {
	case 1:
		return ticks < c->count;
	case 2:
		return ticks && ticks % c->count == 0;
	case 3:
		return ticks % c->count < ((u64)c->count + 1) / 2;
	case 4: case 5:
		return ticks == c->count;
	}
	return ticks >= c->count;
}

static void set_gate(struct pit *pit, unsigned channel, bool gate)
{
	struct kvm_pit_channel_state *c = &pit->ch[channel];
	bool triggered = c->mode == 1 || c->mode == 2 || c->mode == 3 || c->mode == 5;

	if (triggered && gate && !c->gate)
		c->count_load_time = host_now_ns();
	c->gate = gate;
}

static void load_count(struct pit *pit, unsigned channel, u32 val)
{
	struct kvm_pit_channel_state *c = &pit->ch[channel];

	c->count = val ? val : 0x10000;
	if (channel != 0) {
		c->count_load_time = host_now_ns();
		return;
	}
	switch (c->mode) {
	case 0: case 1: case 4:
		start_channel0(pit, c->count, false);
		break;
	case 2: case 3:
		start_channel0(pit, c->count, true);
		break;
	default:
		pit->counting = false;
	}
}

/* ---- ports ------------------------------------------------------------------------------------ */

static void latch_count(struct pit *pit, unsigned channel)
{
	struct kvm_pit_channel_state *c = &pit->ch[channel];

	if (c->count_latched)
		return;
	c->latched_count = get_count(pit, channel);
	c->count_latched = c->rw_mode;
}

static void latch_status(struct pit *pit, unsigned channel)
{
	struct kvm_pit_channel_state *c = &pit->ch[channel];

	if (c->status_latched)
		return;
	c->status = get_out(pit, channel) << 7 | c->rw_mode << 4 | c->mode << 1 | c->bcd;
	c->status_latched = 1;
}

static void read_back(struct pit *pit, u8 val)
{
	for (unsigned channel = 0; channel < 3; channel++) {
		if (!(val & 2 << channel))
			continue;
		if (!(val & 0x20))
			latch_count(pit, channel);
		if (!(val & 0x10))
			latch_status(pit, channel);
	}
}

static void write_control(struct pit *pit, u8 val)
{
	unsigned channel = val >> 6, access = val >> 4 & 3;
	struct kvm_pit_channel_state *c;

	if (channel == 3) {
		read_back(pit, val);
		return;
	}
	if (!access) {
		latch_count(pit, channel);
		return;
	}
	c = &pit->ch[channel];
	c->rw_mode = c->read_state = c->write_state = access;
	c->mode = val >> 1 & 7;
	if (c->mode > 5)
		c->mode -= 4;
	c->bcd = val & 1;
}

static void write_count(struct pit *pit, unsigned channel, u8 val)
{
	struct kvm_pit_channel_state *c = &pit->ch[channel];

	switch (c->write_state) {
	case RW_MSB:
		load_count(pit, channel, val << 8);
		break;
	case RW_WORD0:
		c->write_latch = val;
		c->write_state = RW_WORD1;
		break;
	case RW_WORD1:
		load_count(pit, channel, c->write_latch | val << 8);
		c->write_state = RW_WORD0;
		break;
	default:
		load_count(pit, channel, val);
	}
}

static u8 read_latched(struct kvm_pit_channel_state *c)
{
	switch (c->count_latched) {
	case RW_MSB:
		c->count_latched = 0;
		return c->latched_count >> 8;
	case RW_WORD0:
		c->count_latched = RW_MSB;
		return c->latched_count;
	}
	c->count_latched = 0;
	return c->latched_count;
}

static u8 read_counter(struct pit *pit, unsigned channel)
{
	struct kvm_pit_channel_state *c = &pit->ch[channel];
	u16 count;

	if (c->status_latched) {
		c->status_latched = 0;
		return c->status;
	}
	if (c->count_latched)
		return read_latched(c);
	count = get_count(pit, channel);
	switch (c->read_state) {
	case RW_MSB:
		return count >> 8;
	case RW_WORD0:
		c->read_state = RW_WORD1;
		return count;
	case RW_WORD1:
		c->read_state = RW_WORD0;
		return count >> 8;
	}
	return count;
}

static u8 read_speaker(struct pit *pit)
{
	bool gate = pit->ch[2].gate, data = pit->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
	bool refresh = host_now_ns() >> 14 & 1; /* toggles every 15 us or so */

	return gate | data << 1 | refresh << 4 | get_out(pit, 2) << 5;
}

static void write_speaker(struct pit *pit, u8 val)
{
	if (val & 2)
		pit->flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON;
	else
		pit->flags &= ~KVM_PIT_FLAGS_SPEAKER_DATA_ON;
	set_gate(pit, 2, val & 1);
}

bool pit_port_match(struct vm *vm, u16 port)
{
	struct pit *pit = pit_of(vm);

	return pit && ((port >= 0x40 && port <= 0x43) || (port == 0x61 && pit->speaker));
}

void pit_port_read(struct vm *vm, u16 port, void *data, unsigned len)
{
	struct pit *pit = pit_of(vm);
	u8 val = 0;

	pthread_mutex_lock(&pit->lock);
	if (port == 0x61)
		val = read_speaker(pit);
	else if (port != 0x43)
		val = read_counter(pit, port & 3);
	pthread_mutex_unlock(&pit->lock);
	memset(data, 0, len);
	memcpy(data, &val, 1);
}

void pit_port_write(struct vm *vm, u16 port, u8 val)
{
	struct pit *pit = pit_of(vm);

	pthread_mutex_lock(&pit->lock);
	if (port == 0x61)
		write_speaker(pit, val);
	else if (port == 0x43)
		write_control(pit, val);
	else
		write_count(pit, port & 3, val);
	pthread_mutex_unlock(&pit->lock);
}

/* ---- life and state ------------------------------------------------------------------------------- */

int pit_create(struct vm *vm, const struct kvm_pit_config *cfg)
{
	struct pit *pit;

	if (vm->arch.pit)
		return -EEXIST;
	if (!arch_irqchip_full(vm))
		return -ENOENT;
	pit = calloc(1, sizeof(*pit));
	if (!pit || !irqchip_timers(vm)) {
		free(pit);
		return -ENOMEM;
	}
	pit->vm = vm;
	pit->speaker = cfg->flags & KVM_PIT_SPEAKER_DUMMY;
	pthread_mutex_init(&pit->lock, NULL);
	vm_timer_init(&pit->timer, vm->timers, tick_timer_expired);
	for (unsigned i = 0; i < 3; i++) {
		pit->ch[i].mode = MODE_OFF;
		pit->ch[i].gate = i != 2;
		load_count(pit, i, 0);
	}
	reset_reinject(pit);
	atomic_store(&pit->reinject, true);
	__atomic_store_n(&vm->arch.pit, pit, __ATOMIC_RELEASE);
	return 0;
}

void pit_destroy(struct vm *vm)
{
	struct pit *pit = vm->arch.pit;

	if (!pit)
		return;
	vm_timer_cancel(&pit->timer);
	vm->arch.pit = NULL;
	pthread_mutex_destroy(&pit->lock);
	free(pit);
}

void pit_get(struct vm *vm, struct kvm_pit_state2 *s)
{
	struct pit *pit = pit_of(vm);

	memset(s, 0, sizeof(*s));
	pthread_mutex_lock(&pit->lock);
	memcpy(s->channels, pit->ch, sizeof(s->channels));
	s->flags = pit->flags;
	pthread_mutex_unlock(&pit->lock);
}

int pit_set(struct vm *vm, const struct kvm_pit_state2 *s)
{
	struct pit *pit = pit_of(vm);
	bool to_legacy;

	pthread_mutex_lock(&pit->lock);
	to_legacy = !(pit->flags & KVM_PIT_FLAGS_HPET_LEGACY) && (s->flags & KVM_PIT_FLAGS_HPET_LEGACY);
	memcpy(pit->ch, s->channels, sizeof(pit->ch));
	pit->flags = s->flags;
	for (unsigned i = 0; i < 3; i++)
		load_count(pit, i, pit->ch[i].count);
	if (to_legacy)
		pit->counting = false;
	pthread_mutex_unlock(&pit->lock);
	return 0;
}

int pit_reinject_control(struct vm *vm, bool reinject)
{
	struct pit *pit = pit_of(vm);

	pthread_mutex_lock(&pit->lock);
	if (atomic_load(&pit->reinject) != reinject) {
		if (reinject)
			reset_reinject(pit);
		atomic_store(&pit->reinject, reinject);
	}
	pthread_mutex_unlock(&pit->lock);
	return 0;
}
