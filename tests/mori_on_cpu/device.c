/* The device of libibverbs, its one port and what they report. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "nic.h"

/* A macro of verbs.h hides the function that the library has to define. */
#undef ibv_query_port

/* MORI finds the NIC's PCI address in this path, and it must exist: the build makes the folder. */
static struct ibv_device device = {
    .node_type = IBV_NODE_CA,
    .transport_type = IBV_TRANSPORT_IB,
    .name = "emulated_0",
    .dev_name = "uverbs0",
    .ibdev_path = PCI_FOLDER,
};

struct ibv_device **ibv_get_device_list(int *count) {
    nic_start();
    struct ibv_device **list = calloc(2, sizeof *list);
    if (!settings.no_device)
        list[0] = &device;
    if (count)
        *count = !settings.no_device;
    return list;
}

void ibv_free_device_list(struct ibv_device **list) { free(list); }

static int refuse_receive(struct ibv_qp *qp, struct ibv_recv_wr *work, struct ibv_recv_wr **bad) {
    (void)qp;
    *bad = work;
    return EOPNOTSUPP;
}

struct ibv_context *ibv_open_device(struct ibv_device *opened) {
    struct ibv_context *context = calloc(1, sizeof *context);
    context->device = opened;
    context->ops.poll_cq = nic_poll;
    context->ops.post_send = nic_post;
    context->ops.post_recv = refuse_receive;
    context->async_fd = eventfd(0, EFD_CLOEXEC);
    context->cmd_fd = -1;
    context->num_comp_vectors = 1;
    return context;
}

int ibv_close_device(struct ibv_context *context) {
    close(context->async_fd);
    free(context);
    return 0;
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attributes) {
    (void)context;
    *attributes = (struct ibv_device_attr){
        .vendor_id = 0x02c9,
        .phys_port_cnt = 1,
        .max_qp = MAX_QUEUES,
        .max_qp_wr = MAX_WAITING,
        .max_sge = MAX_PIECES,
        .max_cq = MAX_QUEUES,
        .max_cqe = 1 << 22,
        .max_mr = MAX_REGIONS,
        .max_mr_size = UINT64_MAX,
        .max_pd = MAX_QUEUES,
        .max_qp_rd_atom = 16,
        .max_qp_init_rd_atom = 16,
    };
    return 0;
}

int ibv_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *into) {
    (void)context, (void)port;
    struct ibv_port_attr *attributes = (struct ibv_port_attr *)into;
    attributes->state = IBV_PORT_ACTIVE;
    attributes->max_mtu = attributes->active_mtu = IBV_MTU_4096;
    attributes->gid_tbl_len = 1;
    attributes->pkey_tbl_len = 1;
    attributes->max_msg_sz = settings.max_message;
    attributes->active_width = 2;  /* 4 lanes */
    attributes->active_speed = 64; /* of 50 Gbit/s */
    attributes->phys_state = 5;    /* link up */
    attributes->link_layer = IBV_LINK_LAYER_ETHERNET;
    return 0;
}

int ibv_query_gid(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid) {
    (void)context, (void)port;
    if (index != 0)
        return -1;
    *gid = fabric_address();
    return 0;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port, uint32_t index,
                      struct ibv_gid_entry *entry, uint32_t flags, size_t size) {
    (void)flags, (void)size;
    if (ibv_query_gid(context, (uint8_t)port, (int)index, &entry->gid))
        return ENODATA;
    entry->gid_index = index;
    entry->port_num = port;
    entry->gid_type = IBV_GID_TYPE_ROCE_V2;
    return 0;
}

/* This NIC has no asynchronous events; MORI's monitor waits for one for ever. */
int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event) {
    (void)context, (void)event;
    errno = EAGAIN;
    return -1;
}

void ibv_ack_async_event(struct ibv_async_event *event) { (void)event; }

/* The texts are those of libibverbs: MORI hands them on as its own. */
const char *ibv_wc_status_str(enum ibv_wc_status status) {
    switch (status) {
    case IBV_WC_SUCCESS:
        return "success";
    case IBV_WC_LOC_LEN_ERR:
        return "local length error";
    case IBV_WC_LOC_PROT_ERR:
        return "local protection error";
    case IBV_WC_WR_FLUSH_ERR:
        return "Work Request Flushed Error";
    case IBV_WC_REM_ACCESS_ERR:
        return "remote access error";
    case IBV_WC_REM_OP_ERR:
        return "remote operation error";
    case IBV_WC_RETRY_EXC_ERR:
        return "transport retry counter exceeded";
    default:
        return "unknown";
    }
}
