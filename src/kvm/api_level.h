/* SPDX-License-Identifier: MIT */
/* Which kernel's interface is offered where two differ: SOFTKVM_API_LEVEL=6.12 (default) or 6.18. */
#ifndef SOFTKVM_KVM_API_LEVEL_H
#define SOFTKVM_KVM_API_LEVEL_H

#include "base/types.h"

#define KVM_API_6_12 612u
#define KVM_API_6_18 618u

u32 kvm_api_level(void);

#endif
