/* SPDX-License-Identifier: MIT */
/*
 * Unit tests are linked with the whole library; here src/kvm stands on a fake
 * architecture. So every global name of both gets a name of its own. Before any
 * other include.
 */
#ifndef TESTS_UNIT_CORE_RENAME_H
#define TESTS_UNIT_CORE_RENAME_H

#define arch_check_routing_entry fake_arch_check_routing_entry
#define arch_irqchip_full fake_arch_irqchip_full
#define arch_irqchip_in_kernel fake_arch_irqchip_in_kernel
#define arch_routing_updated fake_arch_routing_updated
#define arch_send_msi fake_arch_send_msi
#define arch_set_routed_irq fake_arch_set_routed_irq
#define arch_vcpu_create fake_arch_vcpu_create
#define arch_vcpu_destroy fake_arch_vcpu_destroy
#define arch_vcpu_flush_tlb fake_arch_vcpu_flush_tlb
#define arch_vm_create fake_arch_vm_create
#define arch_vm_destroy fake_arch_vm_destroy
#define coalesced_destroy fake_coalesced_destroy
#define eventfd_ref_consume fake_eventfd_ref_consume
#define eventfd_ref_get fake_eventfd_ref_get
#define eventfd_ref_put fake_eventfd_ref_put
#define eventfd_ref_same fake_eventfd_ref_same
#define eventfd_ref_signal fake_eventfd_ref_signal
#define io_bus_register fake_io_bus_register
#define io_bus_unregister fake_io_bus_unregister
#define io_buses_destroy fake_io_buses_destroy
#define ioeventfds_destroy fake_ioeventfds_destroy
#define irq_notifiers_changed fake_irq_notifiers_changed
#define irq_routing_pin_to_gsi fake_irq_routing_pin_to_gsi
#define irqfd_has_resampler fake_irqfd_has_resampler
#define irqfd_resample fake_irqfd_resample
#define irqfds_destroy fake_irqfds_destroy
#define memslot_mark_dirty fake_memslot_mark_dirty
#define memslots_find fake_memslots_find
#define memslots_find_id fake_memslots_find_id
#define memslots_free fake_memslots_free
#define msr_filter_allows fake_msr_filter_allows
#define msr_filter_set fake_msr_filter_set
#define vcpu_array_free fake_vcpu_array_free
#define vcpu_create fake_vcpu_create
#define vcpu_destroy fake_vcpu_destroy
#define vcpu_enter_guest_mode fake_vcpu_enter_guest_mode
#define vcpu_kick fake_vcpu_kick
#define vcpu_leave_guest_mode fake_vcpu_leave_guest_mode
#define vcpu_publish fake_vcpu_publish
#define vcpu_read_guest fake_vcpu_read_guest
#define vcpu_reserve fake_vcpu_reserve
#define vcpu_wait fake_vcpu_wait
#define vcpu_write_guest fake_vcpu_write_guest
#define vm_bug fake_vm_bug
#define vm_clear_dirty_log fake_vm_clear_dirty_log
#define vm_coalesced_fd fake_vm_coalesced_fd
#define vm_create fake_vm_create
#define vm_destroy fake_vm_destroy
#define vm_get_dirty_log fake_vm_get_dirty_log
#define vm_ioeventfd fake_vm_ioeventfd
#define vm_irq_has_notifier fake_vm_irq_has_notifier
#define vm_irqfd fake_vm_irqfd
#define vm_make_all_request fake_vm_make_all_request
#define vm_mmio_write fake_vm_mmio_write
#define vm_notify_acked_irq fake_vm_notify_acked_irq
#define vm_pio_write fake_vm_pio_write
#define vm_register_coalesced fake_vm_register_coalesced
#define vm_send_msi fake_vm_send_msi
#define vm_set_default_routing fake_vm_set_default_routing
#define vm_set_gsi_routing fake_vm_set_gsi_routing
#define vm_set_irq fake_vm_set_irq
#define vm_set_irq_locked fake_vm_set_irq_locked
#define vm_set_memory_region fake_vm_set_memory_region
#define vm_stats_read fake_vm_stats_read
#define vm_sync_vcpus fake_vm_sync_vcpus
#define vm_unregister_coalesced fake_vm_unregister_coalesced
#define vm_vcpu_by_id fake_vm_vcpu_by_id

#endif
