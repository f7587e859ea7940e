#define _GNU_SOURCE
#include "fabric.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

/* Far from where Linux on x86-64 puts programs, heaps and libraries. */
struct board *const board = (struct board *)0x510000000000;

void fabric_open(void) {
    void *place = mmap(board, sizeof *board, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (place != board || getrandom(&board->born, sizeof board->born, 0) != sizeof board->born) {
        perror("emulated verbs: no board");
        abort();
    }
}

union ibv_gid fabric_address(void) {
    uint32_t pid = (uint32_t)getpid();
    return (union ibv_gid){
        .raw = {[10] = 0xff, 0xff, 127, (uint8_t)(pid >> 16), (uint8_t)(pid >> 8), (uint8_t)pid}};
}

/* Read parts of a peer's board, all of them or none. Returns 0 or an errno. */
static int look(pid_t pid, const struct iovec *into, const struct iovec *from,
                unsigned long count) {
    size_t wanted = 0;
    for (unsigned long i = 0; i < count; i++)
        wanted += into[i].iov_len;
    ssize_t got = process_vm_readv(pid, into, count, from, count, 0);
    if (got < 0)
        return errno;
    return (size_t)got == wanted ? 0 : EFAULT;
}

int fabric_find(union ibv_gid address, uint32_t queue, struct peer *peer) {
    const uint8_t *raw = address.raw;
    peer->pid = (pid_t)raw[13] << 16 | (pid_t)raw[14] << 8 | (pid_t)raw[15];
    peer->queue = queue;
    struct iovec into = {&peer->born, sizeof peer->born};
    struct iovec from = {&board->born, sizeof board->born};
    return look(peer->pid, &into, &from, 1);
}

bool fabric_covers(const struct region_entry *region, uint32_t key, uint64_t address,
                   uint64_t length) {
    return key && region->key == key && address >= region->address && length <= region->length &&
           address - region->address <= region->length - length;
}

static bool answers(const struct peer *peer, uint64_t born, struct queue_entry queue) {
    return born == peer->born && queue.number == peer->queue &&
           (queue.state == IBV_QPS_RTR || queue.state == IBV_QPS_RTS);
}

static void fail_queue_of(const struct peer *peer) {
    uint32_t failed = IBV_QPS_ERR;
    struct iovec from = {&failed, sizeof failed};
    struct iovec into = {&board->queues[peer->queue % MAX_QUEUES].state, sizeof failed};
    process_vm_writev(peer->pid, &from, 1, &into, 1, 0);
}

enum ibv_wc_status fabric_move(const struct peer *peer, const struct access *access) {
    uint64_t born;
    struct queue_entry queue;
    struct region_entry region;
    struct iovec into[] = {{&born, sizeof born}, {&queue, sizeof queue}, {&region, sizeof region}};
    struct iovec from[] = {
        {&board->born, sizeof born},
        {&board->queues[peer->queue % MAX_QUEUES], sizeof queue},
        {&board->regions[access->remote_key % MAX_REGIONS], sizeof region},
    };
    if (look(peer->pid, into, from, 3) || !answers(peer, born, queue))
        return IBV_WC_RETRY_EXC_ERR;
    if (!fabric_covers(&region, access->remote_key, access->remote_address, access->length)) {
        fail_queue_of(peer);
        return IBV_WC_REM_ACCESS_ERR;
    }
    if (access->length == 0)
        return IBV_WC_SUCCESS;

    struct iovec far = {(void *)access->remote_address, access->length};
    unsigned long count = (unsigned long)access->count;
    ssize_t moved = access->read ? process_vm_readv(peer->pid, access->pieces, count, &far, 1, 0)
                                 : process_vm_writev(peer->pid, access->pieces, count, &far, 1, 0);
    if (moved == (ssize_t)access->length)
        return IBV_WC_SUCCESS;
    return moved < 0 && errno == ESRCH ? IBV_WC_RETRY_EXC_ERR : IBV_WC_REM_OP_ERR;
}
