/* The objects of libibverbs: memory regions, queue pairs, completion queues. This and device.c are
 * what MORI-IO calls with notifications off and completion queues polled; no more is emulated. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nic.h"

/* A macro of verbs.h hides the function that the library has to define. */
#undef ibv_reg_mr

/* Guards the regions of the board. */
static pthread_mutex_t regions_lock = PTHREAD_MUTEX_INITIALIZER;

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context) {
    struct ibv_pd *pd = calloc(1, sizeof *pd);
    pd->context = context;
    return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd) {
    free(pd);
    return 0;
}

/* A NIC pins the pages that it is given, which fails if there are none. */
static bool mapped(void *address, size_t length) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)address / page * page;
    size_t bytes = (uintptr_t)address + length - start;
    unsigned char *present = malloc(bytes / page + 1);
    int missing = mincore((void *)start, bytes, present);
    free(present);
    return !missing;
}

static struct region_entry *new_region(void) {
    static uint32_t last;
    for (int tries = 0; tries < MAX_REGIONS; tries++) {
        uint32_t key = ++last;
        struct region_entry *region = &board->regions[key % MAX_REGIONS];
        if (key && !region->key) {
            region->key = key;
            return region;
        }
    }
    return NULL;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *address, size_t length, int access) {
    (void)access;
    if (length == 0 || !mapped(address, length)) {
        errno = length ? EFAULT : EINVAL;
        return NULL;
    }
    pthread_mutex_lock(&regions_lock);
    struct region_entry *region = new_region();
    if (region) {
        region->address = (uint64_t)address;
        region->length = length;
    }
    pthread_mutex_unlock(&regions_lock);
    if (!region) {
        errno = ENOMEM;
        return NULL;
    }
    struct ibv_mr *mr = calloc(1, sizeof *mr);
    *mr = (struct ibv_mr){.context = pd->context,
                          .pd = pd,
                          .addr = address,
                          .length = length,
                          .lkey = region->key,
                          .rkey = region->key};
    return mr;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *address, size_t length, uint64_t iova,
                                unsigned int access) {
    (void)iova; /* MORI registers memory at its own address */
    return ibv_reg_mr(pd, address, length, (int)access);
}

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova,
                                 int fd, int access) {
    (void)pd, (void)offset, (void)length, (void)iova, (void)fd, (void)access;
    errno = EOPNOTSUPP;
    return NULL;
}

int ibv_dereg_mr(struct ibv_mr *mr) {
    pthread_mutex_lock(&regions_lock);
    board->regions[mr->lkey % MAX_REGIONS] = (struct region_entry){0};
    pthread_mutex_unlock(&regions_lock);
    free(mr);
    return 0;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int capacity, void *user,
                             struct ibv_comp_channel *channel, int vector) {
    (void)vector;
    struct completions *completions = calloc(1, sizeof *completions);
    completions->cq.context = context;
    completions->cq.channel = channel;
    completions->cq.cq_context = user;
    completions->cq.cqe = capacity;
    return &completions->cq;
}

int ibv_destroy_cq(struct ibv_cq *cq) {
    struct completions *completions = (struct completions *)cq;
    nic_discard(completions);
    free(completions);
    return 0;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *wanted) {
    struct queue *queue = calloc(1, sizeof *queue);
    queue->qp.context = pd->context;
    queue->qp.pd = pd;
    queue->qp.send_cq = wanted->send_cq;
    queue->qp.recv_cq = wanted->recv_cq;
    queue->qp.qp_type = wanted->qp_type;
    queue->capacity = wanted->cap.max_send_wr;
    int error = nic_add(queue);
    if (error) {
        free(queue);
        errno = error;
        return NULL;
    }
    return &queue->qp;
}

int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask) {
    struct queue *queue = (struct queue *)qp;
    if (mask & IBV_QP_DEST_QPN) {
        union ibv_gid address = attributes->ah_attr.grh.dgid;
        int error = fabric_find(address, attributes->dest_qp_num, &queue->peer);
        if (error)
            return error;
    }
    if (mask & IBV_QP_STATE)
        nic_set_state(queue, attributes->qp_state);
    return 0;
}

int ibv_destroy_qp(struct ibv_qp *qp) {
    struct queue *queue = (struct queue *)qp;
    nic_remove(queue);
    free(queue);
    return 0;
}

/* MORI asks for these only with event-driven completion queues or shared receive queues. */
static void *unsupported(void) {
    errno = EOPNOTSUPP;
    return NULL;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context) {
    (void)context;
    return unsupported();
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *wanted) {
    (void)pd, (void)wanted;
    return unsupported();
}
