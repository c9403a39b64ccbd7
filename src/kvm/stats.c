/* SPDX-License-Identifier: MIT */
/*
 * Binary statistics (KVM_GET_STATS_FD): a header, an identification, descriptors,
 * values; all but the values constant. Read while vCPUs count: each value is one aligned word.
 */
#include <stdio.h>
#include <string.h>

#include "host/host.h"
#include "kvm/stats.h"

#define STATS_NAME_SIZE 48

/* struct kvm_stats_desc with its name's length settled. */
struct stats_desc {
	u32 flags;
	s16 exponent;
	u16 size;
	u32 offset;
	u32 bucket_size;
	char name[STATS_NAME_SIZE];
};
_Static_assert(offsetof(struct stats_desc, name) == offsetof(struct kvm_stats_desc, name), "the ABI's layout");
_Static_assert(sizeof(struct stats_desc) == sizeof(struct kvm_stats_desc) + STATS_NAME_SIZE, "no padding");

#define UNIT_NONE KVM_STATS_UNIT_NONE
#define UNIT_BYTES KVM_STATS_UNIT_BYTES
#define UNIT_SECONDS KVM_STATS_UNIT_SECONDS
#define UNIT_CYCLES KVM_STATS_UNIT_CYCLES
#define UNIT_BOOLEAN KVM_STATS_UNIT_BOOLEAN

/* Seconds are counted in nanoseconds. */
#define EXPONENT(unit) (UNIT_##unit == UNIT_SECONDS ? -9 : 0)
#define STATS_BUCKETS(owner, field, buckets)                                     \
	{                                                                       \
		.flags = KVM_STATS_TYPE_LINEAR_HIST | UNIT_NONE | KVM_STATS_BASE_POW10, \
		.size = (buckets),                                              \
		.bucket_size = 1,                                               \
		.offset = offsetof(struct owner, field),                        \
		.name = #field,                                                 \
	},
#define STATS_DESC(owner, field, kind, unit)                                    \
	{                                                                       \
		.flags = KVM_STATS_TYPE_##kind | UNIT_##unit | KVM_STATS_BASE_POW10, \
		.exponent = EXPONENT(unit),                                     \
		.size = 1,                                                      \
		.offset = offsetof(struct owner, field),                        \
		.name = #field,                                                 \
	},

static const struct stats_desc vm_descs[] = {
#define VM_STAT(name, kind, unit) STATS_DESC(vm_stat, name, kind, unit)
#include "kvm/vm_stats.def"
#undef VM_STAT
};

static const struct stats_desc vcpu_descs[] = {
#define VCPU_STAT(name, kind, unit) STATS_DESC(vcpu_stat, name, kind, unit)
#define VCPU_STAT_BUCKETS(name, buckets) STATS_BUCKETS(vcpu_stat, name, buckets)
#include "kvm/vcpu_stats.def"
#undef VCPU_STAT_BUCKETS
#undef VCPU_STAT
};

struct stats_block vm_stats_block(void)
{
	return (struct stats_block){
		.descs = (uintptr_t)vm_descs, .nr_descs = ARRAY_SIZE(vm_descs), .desc_size = sizeof(vm_descs[0]),
		.values = offsetof(struct vm, stat), .values_size = sizeof(struct vm_stat),
	};
}

struct stats_block vcpu_stats_block(void)
{
	return (struct stats_block){
		.descs = (uintptr_t)vcpu_descs, .nr_descs = ARRAY_SIZE(vcpu_descs), .desc_size = sizeof(vcpu_descs[0]),
		.values = offsetof(struct vcpu, stat), .values_size = sizeof(struct vcpu_stat),
	};
}

/* One section of the file. */
struct section {
	const void *data;
	size_t size;
};

size_t vm_stats_read(struct vm *vm, struct vcpu *vcpu, void *buf, size_t count, off_t off)
{
	size_t desc_size = vcpu ? sizeof(vcpu_descs) : sizeof(vm_descs);
	struct kvm_stats_header header = {
		.name_size = STATS_NAME_SIZE,
		.num_desc = vcpu ? ARRAY_SIZE(vcpu_descs) : ARRAY_SIZE(vm_descs),
		.id_offset = sizeof(header),
		.desc_offset = sizeof(header) + STATS_NAME_SIZE,
		.data_offset = sizeof(header) + STATS_NAME_SIZE + desc_size,
	};
	char id[STATS_NAME_SIZE] = "";
	const struct section sections[] = {
		{ &header, sizeof(header) },
		{ id, sizeof(id) },
		{ vcpu ? vcpu_descs : vm_descs, desc_size },
		{ vcpu ? (void *)&vcpu->stat : (void *)&vm->stat, vcpu ? sizeof(vcpu->stat) : sizeof(vm->stat) },
	};
	size_t done = 0;

	if (off < 0)
		return 0;
	if (vcpu)
		snprintf(id, sizeof(id), "%s/vcpu-%u", vm->name, vcpu->id);
	else
		snprintf(id, sizeof(id), "%s", vm->name);
	for (unsigned i = 0; i < ARRAY_SIZE(sections) && done < count; i++) {
		size_t n;

		if ((size_t)off >= sections[i].size) {
			off -= sections[i].size;
			continue;
		}
		n = min(sections[i].size - off, count - done);
		if (!host_copy_user((u8 *)buf + done, (const u8 *)sections[i].data + off, n))
			break;
		done += n;
		off = 0;
	}
	return done;
}
