/* The NIC: takes work requests from queue pairs, one thread for all, and reports completions. */
#pragma once

#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "fabric.h"

enum { MAX_PIECES = 16, MAX_WAITING = 16384 };

/* A work request; when it is done it becomes the entry of the completion queue. */
struct request {
    struct request *next;
    uint64_t id;
    enum ibv_wr_opcode opcode;
    bool signaled;
    int count;
    struct ibv_sge pieces[MAX_PIECES];
    uint64_t remote_address;
    uint32_t remote_key;
    uint32_t queue;
    enum ibv_wc_status status;
};

/* First in, first out. */
struct requests {
    struct request *first, *last;
};

struct completions {
    struct ibv_cq cq; /* first: an ibv_cq* of the library's user is a completions* */
    struct requests done;
};

/* All but qp is guarded by the NIC's lock; peer stays as it is once connected. */
struct queue {
    struct ibv_qp qp; /* first: as above */
    struct queue *next;
    struct peer peer;
    struct requests waiting;
    uint32_t count, capacity; /* of waiting */
    int64_t due;              /* monotonic ns: not before this the first request is carried out */
    bool retried;             /* the first request met nobody, and is given one more try at due */
    bool busy;                /* the thread works on the first request, without the lock */
};

/* What VERBS_* asks for, read once. */
struct settings {
    bool no_device;
    int64_t delay;        /* ns, of every work request */
    int64_t retry;        /* ns until an unreachable peer is given up */
    uint32_t max_message; /* bytes */
};

extern struct settings settings;

/* Read the settings and start the NIC's thread, in the first call of all. */
void nic_start(void);

/* Give a queue pair a number. Returns 0 or an errno. */
int nic_add(struct queue *queue);
/* Forget a queue pair and what waits in it, without completions, as the verbs have it. */
void nic_remove(struct queue *queue);
void nic_set_state(struct queue *queue, enum ibv_qp_state state);

/* Queue work requests. Returns 0, or an errno and the request that was not taken. */
int nic_post(struct ibv_qp *qp, struct ibv_send_wr *first, struct ibv_send_wr **bad);
/* Take up to `capacity` completions. Returns how many. */
int nic_poll(struct ibv_cq *cq, int capacity, struct ibv_wc *into);
/* Drop what nobody took. */
void nic_discard(struct completions *completions);
