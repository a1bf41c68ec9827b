/* maskd_shm.h - the shared-memory layout of maskd, version 1.2, for C and C++ (gcc or clang).
 *
 * The normative text is docs/shared-memory.md; a test holds this file, maskd/shm/layout.py and the golden fixtures together.
 * All numbers are little-endian. One writer per segment:
 *
 *   steps segment   written by the engine, read by the worker   header | cell 0 | cell 1
 *   rows segment    written by the worker, read by the engine   header | cell 0 | cell 1
 *
 * Step s uses cell s % cell_count of both. An engine may write step s once it has collected step s - cell_count,
 * and may read the rows of step s until it publishes step s + cell_count.
 *
 * A client needs: a gRPC call CreateSession (token), maskd_attach (segments), then maskd_publish and maskd_wait.
 */
#ifndef MASKD_SHM_H
#define MASKD_SHM_H

#if !defined(MASKD_NO_POSIX) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* clock_gettime and SOCK_CLOEXEC under -std=c11: include this header first */
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MASKD_LAYOUT_MAJOR 1
#define MASKD_LAYOUT_MINOR 2
#define MASKD_MAGIC_STEPS UINT64_C(0x31504554534b534d) /* "MSKSTEP1" */
#define MASKD_MAGIC_ROWS UINT64_C(0x3153574f524b534d)  /* "MSKROWS1" */
#define MASKD_MAGIC_HELLO UINT64_C(0x314f4c45484b534d) /* "MSKHELO1" */
#define MASKD_MAGIC_GRANT UINT64_C(0x31544e52474b534d) /* "MSKGRNT1" */

/* ---- items: one sequence in one step -------------------------------------------------------------------------- */

enum maskd_action { MASKD_ADVANCE = 0, MASKD_OPEN = 1, MASKD_FORK = 2, MASKD_CLOSE = 3 };
enum maskd_item_flags { MASKD_WANT_FORCED = 1 };
#define MASKD_ROLLBACK_ALL (-1)
#define MASKD_NO_ROW (-1)

typedef struct { /* 64 bytes */
    int64_t sequence_id;        /* > 0, chosen by the engine, never reused within a session */
    int64_t grammar_id;         /* MASKD_OPEN */
    int64_t source_sequence_id; /* MASKD_FORK */
    uint16_t action;
    uint16_t flags;
    int32_t rollback;       /* tokens undone first; MASKD_ROLLBACK_ALL = every one */
    int32_t row;            /* first row, or MASKD_NO_ROW; uses rows row .. row + draft_count */
    uint32_t accept_offset; /* index into the tokens of the cell */
    uint32_t accept_count;  /* accepted all or none */
    uint32_t draft_count;   /* drafts stand right behind the accepted tokens; walked for rows, then undone */
    uint8_t zero[16];
} maskd_item;

/* ---- results: the same order as the items --------------------------------------------------------------------- */

enum maskd_status {
    MASKD_OK = 0,
    MASKD_INVALID_ITEM = 1,         /* detail_index: number of the bad field, see docs */
    MASKD_GRAMMAR_NOT_FOUND = 2,    /* detail_value: grammar_id */
    MASKD_SEQUENCE_NOT_FOUND = 3,   /* detail_value: sequence_id */
    MASKD_SEQUENCE_EXISTS = 4,      /* detail_value: sequence_id */
    MASKD_SEQUENCE_CAPACITY = 5,    /* detail_value: the limit */
    MASKD_TOKEN_OUT_OF_RANGE = 6,   /* detail_index: which token; detail_value: its id */
    MASKD_TOKEN_REJECTED = 7,       /* detail_index: which token; detail_value: its id */
    MASKD_SEQUENCE_TERMINATED = 8,  /* detail_value: position */
    MASKD_ROLLBACK_TOO_FAR = 9,     /* detail_value: tokens there are */
    MASKD_NO_TOKEN_ALLOWED = 10,    /* the grammar is at a dead end */
    MASKD_BACKEND_FAILED = 11,      /* the library failed; sequence unchanged, or closed when detail_value is 1 */
    MASKD_STEP_DEADLINE = 12,       /* the item takes too long; detail_index: where it stands, see maskd_late_index;
                                       detail_value: microseconds allowed */
    MASKD_BACKENDS_DISAGREE = 13    /* moved to another backend, which refuses a token; detail_index, detail_value: which;
                                       the sequence is closed */
};
enum maskd_late_index {
    MASKD_LATE_UNDER_WAY = -1, /* it goes on; an item without tokens asks for its result */
    MASKD_LATE_NOT_BEGUN = 0,  /* an earlier item is under way; send this one again */
    MASKD_LATE_CLOSED = 1      /* the sequence is closed, as its grammar asks for */
};
enum maskd_result_flags { MASKD_TERMINATED = 1, MASKD_ACCEPTING = 2, MASKD_ALL_ALLOWED = 4 };

typedef struct { /* 64 bytes */
    int64_t sequence_id;
    uint16_t status;
    uint16_t flags;
    int32_t row;
    uint32_t row_count;      /* rows filled: 1 + accepted drafts; 0 when none was wanted, terminated or failed */
    uint32_t accepted_count; /* on TOKEN_REJECTED: how many would have been accepted */
    uint32_t position;       /* tokens accepted since the sequence was opened */
    uint32_t forced_offset;  /* index into the forced tokens of the cell */
    uint32_t forced_count;
    int32_t detail_index;
    int64_t detail_value;
    uint8_t zero[16];
} maskd_result;

/* ---- segments ------------------------------------------------------------------------------------------------- */

enum maskd_state { MASKD_STARTING = 0, MASKD_READY = 1, MASKD_DRAINING = 2, MASKD_CLOSED = 3 };

typedef struct { /* header of the steps segment; words that change stand alone on 128 bytes */
    uint64_t magic;
    uint16_t layout_major, layout_minor;
    uint32_t header_bytes;
    uint64_t total_bytes;
    uint32_t cell_count, item_capacity;
    uint32_t token_capacity, zero0;
    uint64_t cells_offset, cell_stride_bytes;
    uint64_t items_offset, tokens_offset; /* within a cell */
    int64_t session_id;
    uint8_t zero1[0x200 - 0x50];
    uint64_t published_step; /* 0x200, engine, release */
    uint32_t engine_processor; /* 0x208, engine: 1 + the processor that rings; 0 = not told */
    uint8_t zero2[0x280 - 0x20c];
    uint32_t engine_need_wakeup; /* 0x280, engine */
    uint8_t zero3[0x300 - 0x284];
} maskd_steps_header;

typedef struct { /* 128 bytes */
    uint64_t step;
    uint32_t item_count, token_count;
    uint8_t zero[112];
} maskd_steps_cell;

typedef struct { /* header of the rows segment */
    uint64_t magic; /* stored last, with release: ready */
    uint16_t layout_major, layout_minor;
    uint32_t header_bytes;
    uint64_t total_bytes;
    uint32_t cell_count, item_capacity;
    uint32_t row_capacity, forced_capacity;
    uint64_t cells_offset, cell_stride_bytes;
    uint64_t results_offset, forced_offset, rows_offset; /* within a cell */
    uint64_t row_stride_bytes;
    uint32_t vocab_size, token_capacity;
    int64_t session_id;
    uint64_t worker_epoch;    /* changes with every worker process */
    uint8_t fingerprint[32];  /* of the vocabulary */
    uint8_t zero1[0x100 - 0x90];
    uint32_t state; /* 0x100, enum maskd_state */
    uint8_t zero2[0x180 - 0x104];
    uint64_t heartbeat; /* 0x180, rises while the worker lives */
    uint8_t zero3[0x200 - 0x188];
    uint64_t completed_step; /* 0x200, worker, release */
    uint8_t zero4[0x280 - 0x208];
    uint32_t worker_need_wakeup; /* 0x280, worker */
    uint8_t zero5[0x300 - 0x284];
} maskd_rows_header;

typedef struct { /* 128 bytes */
    uint64_t lock; /* 2 * step - 1 while being written, 2 * step when done */
    uint64_t step;
    uint32_t item_count, forced_count;
    uint64_t duration_ns; /* time the worker spent on this step */
    uint8_t zero[96];
} maskd_rows_cell;

/* ---- the data socket (SOCK_SEQPACKET): one message each way, then it stays open as the lease ------------------- */

typedef struct { /* 48 bytes, client to daemon */
    uint64_t magic;
    uint16_t layout_major, layout_minor;
    uint32_t zero0;
    uint8_t token[16];
    uint8_t zero1[16];
} maskd_hello;

typedef struct { /* 64 bytes, worker to client; with SCM_RIGHTS: rows, steps, doorbell (an eventfd, the engine rings), reply (a pipe, the worker rings: read and drop) */
    uint64_t magic;
    uint32_t status; /* 0 = granted, else enum maskd_refusal; no descriptors then */
    uint16_t layout_major, layout_minor;
    int64_t session_id;
    uint64_t rows_bytes, steps_bytes;
    uint8_t zero[24];
} maskd_grant;

enum maskd_refusal { MASKD_GRANTED = 0, MASKD_BAD_HELLO = 1, MASKD_BAD_VERSION = 2, MASKD_BAD_TOKEN = 3, MASKD_BAD_USER = 4, MASKD_NO_WORKER = 5 };

#if defined(__cplusplus)
#define MASKD_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define MASKD_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif
MASKD_STATIC_ASSERT(sizeof(maskd_item) == 64, "item");
MASKD_STATIC_ASSERT(sizeof(maskd_result) == 64, "result");
MASKD_STATIC_ASSERT(sizeof(maskd_steps_header) == 0x300, "steps header");
MASKD_STATIC_ASSERT(sizeof(maskd_rows_header) == 0x300, "rows header");
MASKD_STATIC_ASSERT(sizeof(maskd_steps_cell) == 128, "steps cell");
MASKD_STATIC_ASSERT(sizeof(maskd_rows_cell) == 128, "rows cell");
MASKD_STATIC_ASSERT(sizeof(maskd_hello) == 48, "hello");
MASKD_STATIC_ASSERT(sizeof(maskd_grant) == 64, "grant");

/* ---- ordering ------------------------------------------------------------------------------------------------- */

static inline uint64_t maskd_load_u64(const void *address) { return __atomic_load_n((const uint64_t *)address, __ATOMIC_ACQUIRE); }
static inline uint32_t maskd_load_u32(const void *address) { return __atomic_load_n((const uint32_t *)address, __ATOMIC_ACQUIRE); }
static inline void maskd_store_u64(void *address, uint64_t value) { __atomic_store_n((uint64_t *)address, value, __ATOMIC_RELEASE); }
static inline void maskd_store_u32(void *address, uint32_t value) { __atomic_store_n((uint32_t *)address, value, __ATOMIC_RELEASE); }
/* Between a store and the load of the peer's flag; needed on x86 too, where a store may pass a later load. */
static inline void maskd_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void maskd_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#ifndef MASKD_NO_POSIX
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* ---- an attached session: everything below is for engines; the daemon does not use it -------------------------- */

typedef struct {
    int lease_fd, doorbell_fd, reply_fd;
    maskd_steps_header *steps;
    const maskd_rows_header *rows;
    uint64_t steps_bytes, rows_bytes; /* copies: what is mapped */
    uint64_t next_step;               /* the one to publish next; the first is 1 */
} maskd_session;

static inline maskd_steps_cell *maskd_steps_cell_of(const maskd_session *s, uint64_t step) {
    return (maskd_steps_cell *)((char *)s->steps + s->steps->cells_offset + (step % s->steps->cell_count) * s->steps->cell_stride_bytes);
}
static inline const maskd_rows_cell *maskd_rows_cell_of(const maskd_session *s, uint64_t step) {
    return (const maskd_rows_cell *)((const char *)s->rows + s->rows->cells_offset + (step % s->rows->cell_count) * s->rows->cell_stride_bytes);
}
static inline maskd_item *maskd_items(const maskd_session *s, uint64_t step) {
    return (maskd_item *)((char *)maskd_steps_cell_of(s, step) + s->steps->items_offset);
}
static inline int32_t *maskd_tokens(const maskd_session *s, uint64_t step) {
    return (int32_t *)((char *)maskd_steps_cell_of(s, step) + s->steps->tokens_offset);
}
static inline const maskd_result *maskd_results(const maskd_session *s, uint64_t step) {
    return (const maskd_result *)((const char *)maskd_rows_cell_of(s, step) + s->rows->results_offset);
}
static inline const int32_t *maskd_row(const maskd_session *s, uint64_t step, uint32_t row) {
    return (const int32_t *)((const char *)maskd_rows_cell_of(s, step) + s->rows->rows_offset + row * s->rows->row_stride_bytes);
}

/* Attaches with the token of CreateSession. Returns 0, -1 (errno), or a positive enum maskd_refusal. */
static inline int maskd_attach(maskd_session *session, const char *data_socket_path, const uint8_t token[16]) {
    struct sockaddr_un address;
    maskd_hello hello;
    maskd_grant grant;
    int fds[4] = {-1, -1, -1, -1}, i;
    union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(fds))]; } control;
    struct iovec part;
    struct msghdr message;
    struct cmsghdr *rights;
    struct stat steps_stat, rows_stat;

    memset(session, 0, sizeof(*session));
    memset(&address, 0, sizeof(address));
    address.sun_family = AF_UNIX;
    if (strlen(data_socket_path) >= sizeof(address.sun_path)) return -1;
    strcpy(address.sun_path, data_socket_path);
    session->lease_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (session->lease_fd < 0) return -1;
    memset(&hello, 0, sizeof(hello));
    hello.magic = MASKD_MAGIC_HELLO;
    hello.layout_major = MASKD_LAYOUT_MAJOR;
    hello.layout_minor = MASKD_LAYOUT_MINOR;
    memcpy(hello.token, token, 16);
    part.iov_base = &grant;
    part.iov_len = sizeof(grant);
    memset(&message, 0, sizeof(message));
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof(control);
    if (connect(session->lease_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        send(session->lease_fd, &hello, sizeof(hello), MSG_NOSIGNAL) != (ssize_t)sizeof(hello) ||
        recvmsg(session->lease_fd, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(grant) || grant.magic != MASKD_MAGIC_GRANT) {
        close(session->lease_fd);
        return -1;
    }
    if (grant.status != MASKD_GRANTED) {
        close(session->lease_fd);
        return (int)grant.status;
    }
    rights = CMSG_FIRSTHDR(&message);
    if (rights && rights->cmsg_type == SCM_RIGHTS && rights->cmsg_len == CMSG_LEN(sizeof(fds))) memcpy(fds, CMSG_DATA(rights), sizeof(fds));
    if (fds[3] < 0 || fstat(fds[0], &rows_stat) < 0 || fstat(fds[1], &steps_stat) < 0 || (uint64_t)rows_stat.st_size != grant.rows_bytes ||
        (uint64_t)steps_stat.st_size != grant.steps_bytes) {
        for (i = 0; i < 4; i++)
            if (fds[i] >= 0) close(fds[i]);
        close(session->lease_fd);
        return -1;
    }
    session->rows_bytes = grant.rows_bytes;
    session->steps_bytes = grant.steps_bytes;
    session->rows = (const maskd_rows_header *)mmap(NULL, grant.rows_bytes, PROT_READ, MAP_SHARED, fds[0], 0);
    session->steps = (maskd_steps_header *)mmap(NULL, grant.steps_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    close(fds[0]);
    close(fds[1]);
    session->doorbell_fd = fds[2];
    session->reply_fd = fds[3];
    session->next_step = 1;
    if ((const void *)session->rows != MAP_FAILED && (void *)session->steps != MAP_FAILED && maskd_load_u64(&session->rows->magic) == MASKD_MAGIC_ROWS &&
        session->rows->layout_major == MASKD_LAYOUT_MAJOR)
        return 0;
    if ((const void *)session->rows != MAP_FAILED) munmap((void *)(uintptr_t)session->rows, grant.rows_bytes);
    if ((void *)session->steps != MAP_FAILED) munmap(session->steps, grant.steps_bytes);
    close(fds[2]);
    close(fds[3]);
    close(session->lease_fd);
    return -1;
}

/* Publishes the step that was written into the cell of session->next_step, and returns its number. */
static inline uint64_t maskd_publish(maskd_session *session, uint32_t item_count, uint32_t token_count) {
    uint64_t step = session->next_step++, one = 1;
    maskd_steps_cell *cell = maskd_steps_cell_of(session, step);
    cell->step = step;
    cell->item_count = item_count;
    cell->token_count = token_count;
    maskd_store_u64(&session->steps->published_step, step); /* HANDOFF engine -> worker */
    maskd_fence();
    if (!maskd_load_u32(&session->rows->worker_need_wakeup)) return step;
    maskd_store_u32(&session->steps->engine_processor, (uint32_t)(sched_getcpu() + 1)); /* a hint: the worker keeps off it */
    if (write(session->doorbell_fd, &one, sizeof(one)) < 0) return step; /* rung already */
    return step;
}

static inline int64_t maskd_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Waits for a step, spinning for spin_us first: 0 = done, 1 = timeout, -1 = the worker or the daemon is gone. */
static inline int maskd_wait(maskd_session *session, uint64_t step, int spin_us, int timeout_ms) {
    int64_t start = maskd_now_ns();
    struct pollfd fds[2] = {{session->reply_fd, POLLIN, 0}, {session->lease_fd, POLLIN, 0}};
    char rings[4096];
    int answer = 1;
    do { /* HANDOFF worker -> engine */
        if (maskd_load_u64(&session->rows->completed_step) >= step) return 0;
        maskd_pause();
    } while (maskd_now_ns() - start < (int64_t)spin_us * 1000);
    do {
        maskd_store_u32(&session->steps->engine_need_wakeup, 1);
        maskd_fence();
        if (maskd_load_u64(&session->rows->completed_step) >= step) answer = 0;
        else if (fds[1].revents) answer = -1; /* the lease ended, and the step had not been answered before it did */
        else if (maskd_now_ns() - start < (int64_t)timeout_ms * 1000000) {
            poll(fds, 2, 50); /* bounded re-check: a lost wake-up costs 50 ms, never a hang */
            if ((fds[0].revents & POLLIN) && read(session->reply_fd, rings, sizeof(rings)) < 0) fds[0].revents = 0;
            continue;
        }
        maskd_store_u32(&session->steps->engine_need_wakeup, 0);
        return answer;
    } while (1);
}

/* Leaves: the worker frees the session when the lease closes. Rows must not be read any more. */
static inline void maskd_detach(maskd_session *session) {
    munmap((void *)(uintptr_t)session->rows, session->rows_bytes);
    munmap(session->steps, session->steps_bytes);
    close(session->doorbell_fd);
    close(session->reply_fd);
    close(session->lease_fd);
}
#endif /* MASKD_NO_POSIX */

#endif /* MASKD_SHM_H */
