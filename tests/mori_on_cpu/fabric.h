/* What a NIC sees of the NICs in other processes, and how bytes move between them.
 *
 * Every process maps one board, always at the same address, and writes on it which queue pairs and
 * memory regions it has. A peer reads the board with process_vm_readv, so that no file and no
 * shared memory is left behind, however the process ends. */
#pragma once

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { MAX_QUEUES = 1024, MAX_REGIONS = 16384 };

struct queue_entry {
    uint32_t number; /* 0: free */
    uint32_t state;  /* enum ibv_qp_state */
};

struct region_entry {
    uint32_t key; /* 0: free */
    uint64_t address;
    uint64_t length; /* bytes */
};

struct board {
    uint64_t born; /* tells a process from a later one with the same id */
    struct queue_entry queues[MAX_QUEUES];
    struct region_entry regions[MAX_REGIONS];
};

/* The far end of a connected queue pair. */
struct peer {
    pid_t pid;
    uint64_t born;
    uint32_t queue;
};

/* One-sided access to a peer's memory. The pieces are this process's side, in order. */
struct access {
    bool read; /* from the peer; otherwise a write to it */
    struct iovec *pieces;
    int count;
    uint64_t length; /* bytes, of all pieces together */
    uint64_t remote_address;
    uint32_t remote_key;
};

/* This process's own board. Numbers and keys grow; number modulo the table's size is the entry. */
extern struct board *const board;

/* Map the board, once. Aborts with a message if that can't be: nothing works without it. */
void fabric_open(void);

/* The address of this process's NIC: ::ffff:127.x.y.z with the process id in x, y and z. */
union ibv_gid fabric_address(void);

/* Find a queue pair of the process behind an address. Returns 0 or an errno. */
int fabric_find(union ibv_gid address, uint32_t queue, struct peer *peer);

/* Whether a key opens [address, address + length) of the region in its entry. */
bool fabric_covers(const struct region_entry *region, uint32_t key, uint64_t address,
                   uint64_t length);

/* Move the bytes, after the checks that the peer's NIC would make.
 *
 * IBV_WC_RETRY_EXC_ERR: nobody answers: the process or the queue pair is gone, or failed.
 * IBV_WC_REM_ACCESS_ERR: outside the region, or no such key; the peer's queue pair has failed too.
 * IBV_WC_REM_OP_ERR: the region is registered, yet its memory is no longer mapped. */
enum ibv_wc_status fabric_move(const struct peer *peer, const struct access *access);
