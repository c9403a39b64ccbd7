/* SPDX-License-Identifier: MIT */
/* KVM_HYPERV_EVENTFD: connections whose events signal an eventfd of the client. Under hv_vm.lock. */
#include <errno.h>
#include <stdlib.h>

#include "kvm/io_bus.h"
#include "x86/hyperv/hyperv_internal.h"

struct hv_conn {
	struct hv_conn *next;
	u32 id;
	struct eventfd_ref eventfd;
};

/* Where the link to that connection is, or would be. */
static struct hv_conn **conn_find(struct hv_vm *hv, u32 id)
{
	struct hv_conn **p = &hv->conns;

	while (*p && (*p)->id != id)
		p = &(*p)->next;
	return p;
}

bool hv_conn_signal(struct vm *vm, u32 conn_id)
{
	struct hv_vm *hv = hv_vm(vm);
	struct hv_conn *conn;

	pthread_mutex_lock(&hv->lock);
	conn = *conn_find(hv, conn_id);
	if (conn)
		eventfd_ref_signal(&conn->eventfd);
	pthread_mutex_unlock(&hv->lock);
	return conn;
}

static void conn_free(struct hv_conn *conn)
{
	eventfd_ref_put(&conn->eventfd);
	free(conn);
}

static int conn_assign(struct hv_vm *hv, const struct kvm_hyperv_eventfd *args)
{
	struct hv_conn *conn = calloc(1, sizeof(*conn)), **link;
	int r;

	if (!conn)
		return -ENOMEM;
	conn->id = args->conn_id;
	r = eventfd_ref_get(args->fd, &conn->eventfd);
	if (r) {
		free(conn);
		return r;
	}
	pthread_mutex_lock(&hv->lock);
	link = conn_find(hv, conn->id);
	if (*link)
		r = -EEXIST;
	else
		*link = conn;
	pthread_mutex_unlock(&hv->lock);
	if (r)
		conn_free(conn);
	return r;
}

static int conn_deassign(struct hv_vm *hv, u32 id)
{
	struct hv_conn **link, *conn;

	pthread_mutex_lock(&hv->lock);
	link = conn_find(hv, id);
	conn = *link;
	if (conn)
		*link = conn->next;
	pthread_mutex_unlock(&hv->lock);
	if (!conn)
		return -ENOENT;
	conn_free(conn);
	return 0;
}

int vm_hyperv_eventfd(struct vm *vm, const struct kvm_hyperv_eventfd *args)
{
	struct hv_vm *hv;

	if ((args->flags & ~KVM_HYPERV_EVENTFD_DEASSIGN) || (args->conn_id & ~KVM_HYPERV_CONN_ID_MASK))
		return -EINVAL;
	hv = hv_vm_init(vm);
	if (!hv)
		return -ENOMEM;
	return args->flags ? conn_deassign(hv, args->conn_id) : conn_assign(hv, args);
}

void hv_conns_destroy(struct hv_vm *hv)
{
	struct hv_conn *next;

	for (struct hv_conn *conn = hv->conns; conn; conn = next) {
		next = conn->next;
		conn_free(conn);
	}
}
