#define _GNU_SOURCE
#include "nic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const int64_t SECOND = 1000000000; /* ns */
static const int64_t POLL_WAIT = 1000000; /* ns */

struct settings settings;

/* Guards all queue pairs and the queues of the board. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed; /* a request came, or a busy queue pair is free */
static struct queue *queues;

/* Guards all completion queues and how many completions nobody has taken yet. */
static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done; /* a completion came */
static int untaken;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static struct timespec at(int64_t time) { return (struct timespec){time / SECOND, time % SECOND}; }

static void requests_push(struct requests *requests, struct request *request) {
    request->next = NULL;
    if (requests->first)
        requests->last->next = request;
    else
        requests->first = request;
    requests->last = request;
}

static struct request *requests_pop(struct requests *requests) {
    struct request *request = requests->first;
    if (request)
        requests->first = request->next;
    return request;
}

static struct queue_entry *entry_of(const struct queue *queue) {
    return &board->queues[queue->qp.qp_num % MAX_QUEUES];
}

/* The board knows: a peer whose access was refused has failed this side there. */
static bool failed(const struct queue *queue) { return entry_of(queue)->state == IBV_QPS_ERR; }

static enum ibv_wc_status carry_out(const struct queue *queue, const struct request *request) {
    struct iovec pieces[MAX_PIECES];
    uint64_t length = 0;
    for (int i = 0; i < request->count; i++) {
        const struct ibv_sge *piece = &request->pieces[i];
        const struct region_entry *region = &board->regions[piece->lkey % MAX_REGIONS];
        if (!fabric_covers(region, piece->lkey, piece->addr, piece->length))
            return IBV_WC_LOC_PROT_ERR;
        pieces[i] = (struct iovec){(void *)piece->addr, piece->length};
        length += piece->length;
    }
    if (length > settings.max_message)
        return IBV_WC_LOC_LEN_ERR;
    struct access access = {
        .read = request->opcode == IBV_WR_RDMA_READ,
        .pieces = pieces,
        .count = request->count,
        .length = length,
        .remote_address = request->remote_address,
        .remote_key = request->remote_key,
    };
    return fabric_move(&queue->peer, &access);
}

static void set_state(struct queue *queue, enum ibv_qp_state state) {
    queue->qp.state = state;
    entry_of(queue)->state = state;
}

static void complete(struct queue *queue, enum ibv_wc_status status) {
    struct request *request = requests_pop(&queue->waiting);
    queue->count--;
    queue->retried = false;
    queue->due = now() + settings.delay;
    if (status != IBV_WC_SUCCESS)
        set_state(queue, IBV_QPS_ERR);
    if (status == IBV_WC_SUCCESS && !request->signaled) {
        free(request);
        return;
    }
    request->status = status;
    request->queue = queue->qp.qp_num;
    struct completions *completions = (struct completions *)queue->qp.send_cq;
    pthread_mutex_lock(&done_lock);
    requests_push(&completions->done, request);
    untaken++;
    pthread_cond_broadcast(&done);
    pthread_mutex_unlock(&done_lock);
}

/* Carry out the first request of a queue pair. A failed one flushes; an unreachable peer delays
 * this queue pair until it is given up, and no other. */
static void serve(struct queue *queue) {
    enum ibv_wc_status status = IBV_WC_WR_FLUSH_ERR;
    if (!failed(queue)) {
        queue->busy = true;
        pthread_mutex_unlock(&lock);
        status = carry_out(queue, queue->waiting.first);
        pthread_mutex_lock(&lock);
        queue->busy = false;
        pthread_cond_broadcast(&changed);
    }
    if (status == IBV_WC_RETRY_EXC_ERR && !queue->retried) {
        queue->retried = true;
        queue->due = now() + settings.retry;
    } else {
        complete(queue, status);
    }
}

static struct queue *earliest(void) {
    struct queue *earliest = NULL;
    for (struct queue *queue = queues; queue; queue = queue->next)
        if (queue->waiting.first && (!earliest || queue->due < earliest->due))
            earliest = queue;
    return earliest;
}

static void *run(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        struct queue *queue = earliest();
        if (!queue) {
            pthread_cond_wait(&changed, &lock);
        } else if (queue->due > now() && !failed(queue)) {
            struct timespec until = at(queue->due);
            pthread_cond_timedwait(&changed, &lock, &until);
        } else {
            serve(queue);
        }
    }
    return NULL;
}

static int64_t setting(const char *name, int64_t otherwise) {
    const char *value = getenv(name);
    return value ? strtoll(value, NULL, 10) : otherwise;
}

static void start(void) {
    settings = (struct settings){
        .no_device = setting("VERBS_NO_DEVICE", 0),
        .delay = setting("VERBS_DELAY_US", 0) * 1000,
        .retry = setting("VERBS_RETRY_MS", 300) * 1000000,
        .max_message = (uint32_t)setting("VERBS_MAX_MSG", 1 << 30),
    };
    fabric_open();
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &monotonic);
    pthread_cond_init(&done, &monotonic);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL))
        abort();
    pthread_setname_np(thread, "emulated-nic");
    pthread_detach(thread);
}

void nic_start(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

int nic_add(struct queue *queue) {
    static uint32_t last;
    pthread_mutex_lock(&lock);
    int error = ENOMEM;
    for (int tries = 0; tries < MAX_QUEUES && error; tries++) {
        queue->qp.qp_num = ++last;
        if (entry_of(queue)->number == 0)
            error = 0;
    }
    if (!error) {
        *entry_of(queue) = (struct queue_entry){queue->qp.qp_num, IBV_QPS_RESET};
        queue->next = queues;
        queues = queue;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

void nic_remove(struct queue *queue) {
    pthread_mutex_lock(&lock);
    while (queue->busy)
        pthread_cond_wait(&changed, &lock);
    struct queue **place = &queues;
    while (*place != queue)
        place = &(*place)->next;
    *place = queue->next;
    *entry_of(queue) = (struct queue_entry){0};
    pthread_mutex_unlock(&lock);
    struct request *request;
    while ((request = requests_pop(&queue->waiting)))
        free(request);
}

void nic_set_state(struct queue *queue, enum ibv_qp_state state) {
    pthread_mutex_lock(&lock);
    set_state(queue, state);
    pthread_mutex_unlock(&lock);
}

static int take(struct queue *queue, const struct ibv_send_wr *work) {
    bool one_sided = work->opcode == IBV_WR_RDMA_WRITE || work->opcode == IBV_WR_RDMA_READ;
    if (!one_sided || work->send_flags & IBV_SEND_INLINE || work->num_sge > MAX_PIECES)
        return EOPNOTSUPP;
    if (queue->count == queue->capacity)
        return ENOMEM;
    struct request *request = calloc(1, sizeof *request);
    request->id = work->wr_id;
    request->opcode = work->opcode;
    request->signaled = work->send_flags & IBV_SEND_SIGNALED;
    request->count = work->num_sge;
    memcpy(request->pieces, work->sg_list, sizeof *work->sg_list * (size_t)work->num_sge);
    request->remote_address = work->wr.rdma.remote_addr;
    request->remote_key = work->wr.rdma.rkey;
    if (queue->count++ == 0)
        queue->due = now() + settings.delay;
    requests_push(&queue->waiting, request);
    return 0;
}

int nic_post(struct ibv_qp *qp, struct ibv_send_wr *first, struct ibv_send_wr **bad) {
    struct queue *queue = (struct queue *)qp;
    int error = 0;
    pthread_mutex_lock(&lock);
    for (struct ibv_send_wr *work = first; work && !error; work = work->next) {
        error = take(queue, work);
        if (error)
            *bad = work;
    }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return error;
}

/* MORI polls all its queues in turn without a pause, which would leave two cores little for
 * anything else. So a poll waits a moment, unless there is something to take here or in another
 * queue. */
static void wait_for_completions(void) {
    struct timespec until = at(now() + POLL_WAIT);
    while (!untaken && pthread_cond_timedwait(&done, &done_lock, &until) == 0)
        ;
}

int nic_poll(struct ibv_cq *cq, int capacity, struct ibv_wc *into) {
    struct completions *completions = (struct completions *)cq;
    int taken = 0;
    pthread_mutex_lock(&done_lock);
    wait_for_completions();
    while (taken < capacity && completions->done.first) {
        struct request *request = requests_pop(&completions->done);
        untaken--;
        into[taken++] = (struct ibv_wc){
            .wr_id = request->id,
            .status = request->status,
            .opcode = request->opcode == IBV_WR_RDMA_READ ? IBV_WC_RDMA_READ : IBV_WC_RDMA_WRITE,
            .qp_num = request->queue,
        };
        free(request);
    }
    pthread_mutex_unlock(&done_lock);
    return taken;
}

void nic_discard(struct completions *completions) {
    struct request *request;
    pthread_mutex_lock(&done_lock);
    while ((request = requests_pop(&completions->done))) {
        untaken--;
        free(request);
    }
    pthread_mutex_unlock(&done_lock);
}
