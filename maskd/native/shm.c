/* maskd._shm: what Python cannot do with shared memory: ordering, spinning, one bounded copy of foreign bytes, rows bit by bit.
 *
 * Stable ABI (Python >= 3.10), no dependency but maskd_shm.h and rows.h. Memory is given as integer addresses; the caller
 * (maskd/shm/segments.py) owns the mapping and has checked that base + offset lies within it.
 * Knows nothing about grammars, sequences or sessions.
 */
#define PY_SSIZE_T_CLEAN
#define MASKD_NO_POSIX
#include <Python.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "maskd_shm.h"
#include "rows.h"

#define POINTER(type, address) ((type *)(uintptr_t)(address))

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static PyObject *load_u64(PyObject *self, PyObject *args) {
    unsigned long long address;
    (void)self;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    return PyLong_FromUnsignedLongLong(maskd_load_u64(POINTER(void, address)));
}

static PyObject *load_u32(PyObject *self, PyObject *args) {
    unsigned long long address;
    (void)self;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    return PyLong_FromUnsignedLong(maskd_load_u32(POINTER(void, address)));
}

static PyObject *store_u64(PyObject *self, PyObject *args) {
    unsigned long long address, value;
    (void)self;
    if (!PyArg_ParseTuple(args, "KK", &address, &value)) return NULL;
    maskd_store_u64(POINTER(void, address), value);
    Py_RETURN_NONE;
}

static PyObject *store_u32(PyObject *self, PyObject *args) {
    unsigned long long address;
    unsigned int value;
    (void)self;
    if (!PyArg_ParseTuple(args, "KI", &address, &value)) return NULL;
    maskd_store_u32(POINTER(void, address), value);
    Py_RETURN_NONE;
}

static PyObject *fence(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    maskd_fence();
    Py_RETURN_NONE;
}

/* processor() -> the number of the processor that the caller runs on; it may be another one at once. */
static PyObject *processor(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyLong_FromLong(sched_getcpu());
}

/* publish(word, value, peer_flag, fd, processor_word = 0) -> bool: store, full fence, ring only if the peer sleeps. With a processor_word,
 * that gets 1 + the caller's processor before the ring. */
static PyObject *publish(PyObject *self, PyObject *args) {
    unsigned long long word, value, flag, processor_word = 0;
    uint64_t one = 1;
    int fd;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKKi|K", &word, &value, &flag, &fd, &processor_word)) return NULL;
    maskd_store_u64(POINTER(void, word), value);
    maskd_fence();
    if (!maskd_load_u32(POINTER(void, flag))) Py_RETURN_FALSE;
    if (processor_word) maskd_store_u32(POINTER(void, processor_word), (uint32_t)(sched_getcpu() + 1));
    /* EAGAIN: the peer has wake-ups waiting already. EPIPE: it has gone, and its lease will say so. */
    if (write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN && errno != EPIPE) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_TRUE;
}

/* spin(words, targets, nanoseconds) -> index of the first word that is >= its target, or -1. Releases the GIL. */
static PyObject *spin(PyObject *self, PyObject *args) {
    PyObject *words, *targets;
    unsigned long long nanoseconds;
    Py_ssize_t count, i, found = -1;
    uint64_t *values;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOK", &words, &targets, &nanoseconds)) return NULL;
    count = PyList_Size(words);
    if (count < 0) return NULL;
    if (PyList_Size(targets) != count) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "words and targets differ in length");
        return NULL;
    }
    values = malloc(sizeof(uint64_t) * 2 * (size_t)(count ? count : 1));
    if (!values) return PyErr_NoMemory();
    for (i = 0; i < count; i++) {
        values[2 * i] = PyLong_AsUnsignedLongLong(PyList_GetItem(words, i));
        values[2 * i + 1] = PyLong_AsUnsignedLongLong(PyList_GetItem(targets, i));
        if (PyErr_Occurred()) {
            free(values);
            return NULL;
        }
    }
    Py_BEGIN_ALLOW_THREADS;
    uint64_t end = now_ns() + nanoseconds;
    do {
        for (int turn = 0; turn < 32 && found < 0; turn++) { /* the clock costs more than a look */
            for (i = 0; i < count; i++)
                if (maskd_load_u64(POINTER(void, values[2 * i])) >= values[2 * i + 1]) {
                    found = i;
                    break;
                }
            if (found < 0) maskd_pause();
        }
    } while (found < 0 && now_ns() < end);
    Py_END_ALLOW_THREADS;
    free(values);
    return PyLong_FromSsize_t(found);
}

/* What read_step returns, with fields by name: an item that was checked, and the items of a step. */
enum {
    ITEM_STATUS, ITEM_SEQUENCE_ID, ITEM_ACTION, ITEM_FLAGS, ITEM_GRAMMAR_ID, ITEM_SOURCE_SEQUENCE_ID, ITEM_ROLLBACK, ITEM_ROW, ITEM_ACCEPT, ITEM_DRAFTS,
    ITEM_DETAIL_INDEX, ITEM_DETAIL_VALUE, ITEM_FIELDS
};
static PyStructSequence_Field item_fields[] = {
    {"status", "MASKD_OK, or why the item is refused"}, {"sequence_id", NULL}, {"action", NULL}, {"flags", NULL}, {"grammar_id", NULL},
    {"source_sequence_id", NULL}, {"rollback", NULL}, {"row", NULL}, {"accept", "token ids, a tuple"}, {"drafts", "token ids, a tuple"},
    {"detail_index", "of the status"}, {"detail_value", "of the status"}, {NULL, NULL}};
static PyStructSequence_Desc item_description = {"maskd._shm.CheckedItem", "One item in full, as read_step found it.", item_fields, ITEM_FIELDS};

enum { BATCH_IDS, BATCH_TOKENS, BATCH_ROWS, BATCH_OTHERS, BATCH_FIELDS };
static PyStructSequence_Field batch_fields[] = {{"ids", "sequence ids of plain items; 0 for others"}, {"tokens", "the token of each plain item"},
                                                {"rows", "the row of each plain item"}, {"others", "CheckedItem of each other item, by index"}, {NULL, NULL}};
static PyStructSequence_Desc batch_description = {"maskd._shm.Batch", "The items of one step.", batch_fields, BATCH_FIELDS};

typedef struct {
    PyTypeObject *item, *batch;
} module_state;

/* Puts a new reference into a field; a value that could not be made leaves the error set. */
static void put(PyObject *record, Py_ssize_t field, PyObject *value) {
    if (value) PyStructSequence_SetItem(record, field, value);
}

static PyObject *int32_tuple(const int32_t *values, Py_ssize_t count) {
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple && i < count; i++) {
        PyObject *value = PyLong_FromLong(values[i]);
        if (!value || PyTuple_SetItem(tuple, i, value) < 0) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}

enum { /* detail_index of MASKD_INVALID_ITEM */
    FIELD_SEQUENCE_ID = 0, FIELD_ACTION = 1, FIELD_FLAGS = 2, FIELD_ROLLBACK = 3, FIELD_ROW = 4, FIELD_TOKENS = 5, FIELD_ZERO = 6, FIELD_ROW_TAKEN = 7
};

/* What can be said about an item without knowing any sequence. */
static int check_item(const maskd_item *item, const int32_t *tokens, uint32_t token_count, uint32_t vocab_size, uint32_t row_capacity,
                      unsigned char *taken, int32_t *detail_index, int64_t *detail_value) {
    static const uint8_t zero[16];
    uint64_t used = (uint64_t)item->accept_count + item->draft_count;
    *detail_value = 0;
    *detail_index = FIELD_SEQUENCE_ID;
    if (item->sequence_id <= 0) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_ACTION;
    if (item->action > MASKD_CLOSE) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_FLAGS;
    if (item->flags & ~MASKD_WANT_FORCED) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_ROLLBACK;
    if (item->rollback < MASKD_ROLLBACK_ALL) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_ZERO;
    if (memcmp(item->zero, zero, sizeof(zero))) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_TOKENS;
    if (used && (uint64_t)item->accept_offset + used > token_count) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_ROW;
    if (item->row < MASKD_NO_ROW || (item->draft_count && item->row < 0)) return MASKD_INVALID_ITEM;
    if (item->row >= 0 && (uint64_t)item->row + item->draft_count >= row_capacity) return MASKD_INVALID_ITEM;
    *detail_index = FIELD_ROW_TAKEN;
    if (item->row >= 0) {
        for (uint32_t i = 0; i <= item->draft_count; i++)
            if (taken[(uint32_t)item->row + i]) return MASKD_INVALID_ITEM;
        memset(taken + item->row, 1, (size_t)item->draft_count + 1);
    }
    for (uint64_t i = 0; i < used; i++) {
        int32_t token = tokens[item->accept_offset + i];
        if (token < 0 || (uint32_t)token >= vocab_size) {
            *detail_index = (int32_t)i;
            *detail_value = token;
            return MASKD_TOKEN_OUT_OF_RANGE;
        }
    }
    *detail_index = -1;
    return MASKD_OK;
}

/* One item in full, as a CheckedItem. */
static PyObject *checked_item(PyTypeObject *type, const maskd_item *item, int status, const int32_t *tokens, int32_t detail_index, int64_t detail_value) {
    PyObject *checked = PyStructSequence_New(type);
    int bounded = status == MASKD_OK || status == MASKD_TOKEN_OUT_OF_RANGE; /* else the counts were not believed */
    uint32_t accept_count = bounded ? item->accept_count : 0, draft_count = bounded ? item->draft_count : 0;
    uint32_t offset = accept_count || draft_count ? item->accept_offset : 0;
    if (!checked) return NULL;
    put(checked, ITEM_STATUS, PyLong_FromLong(status));
    put(checked, ITEM_SEQUENCE_ID, PyLong_FromLongLong(item->sequence_id));
    put(checked, ITEM_ACTION, PyLong_FromLong(item->action));
    put(checked, ITEM_FLAGS, PyLong_FromLong(item->flags));
    put(checked, ITEM_GRAMMAR_ID, PyLong_FromLongLong(item->grammar_id));
    put(checked, ITEM_SOURCE_SEQUENCE_ID, PyLong_FromLongLong(item->source_sequence_id));
    put(checked, ITEM_ROLLBACK, PyLong_FromLong(item->rollback));
    put(checked, ITEM_ROW, PyLong_FromLong(item->row));
    put(checked, ITEM_ACCEPT, int32_tuple(tokens + offset, accept_count));
    put(checked, ITEM_DRAFTS, int32_tuple(tokens + offset + accept_count, draft_count));
    put(checked, ITEM_DETAIL_INDEX, PyLong_FromLong(detail_index));
    put(checked, ITEM_DETAIL_VALUE, PyLong_FromLongLong(detail_value));
    if (PyErr_Occurred()) {
        Py_DECREF(checked);
        return NULL;
    }
    return checked;
}

/* Whether every sequence id is there once: unique[i] tells it of item i. Bounded, whatever the ids are: where too many fall
 * on one slot, all of the step count as seen before. slots: a power of two, at least twice the items, all 0. */
static void find_unique(const maskd_item *items, uint32_t count, uint32_t *slots, uint32_t slot_count, unsigned char *unique) {
    enum { MOST_LOOKS = 64 };
    memset(unique, 1, count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = (uint32_t)(((uint64_t)items[i].sequence_id * UINT64_C(0x9e3779b97f4a7c15)) >> 32), looks = 0;
        for (; slots[slot & (slot_count - 1)]; slot++) {
            uint32_t other = slots[slot & (slot_count - 1)] - 1;
            if (items[other].sequence_id == items[i].sequence_id) {
                unique[other] = unique[i] = 0;
                break;
            }
            if (++looks == MOST_LOOKS) {
                memset(unique, 0, count);
                return;
            }
        }
        slots[slot & (slot_count - 1)] = i + 1;
    }
}

/* What nearly every item is: one token for a sequence that is there, and one row. */
static int is_plain(const maskd_item *item) {
    return item->action == MASKD_ADVANCE && !item->flags && !item->rollback && item->accept_count == 1 && !item->draft_count && item->row >= 0;
}

/* Returns 0 on success. */
static int list_int(PyObject *list, Py_ssize_t index, long long value) {
    PyObject *number = PyLong_FromLongLong(value);
    return number ? PyList_SetItem(list, index, number) : -1;
}

/* read_step(cell, items_offset, tokens_offset, item_capacity, token_capacity, vocab_size, row_capacity, step)
 *   -> Batch, or None if the cell itself is broken. Three of its fields are lists with an entry for each item. An item that is not plain,
 * or whose sequence is named twice, has the id 0 there; the dict others has it as a CheckedItem, by its index.
 * Every byte of the foreign cell is copied once into private memory and only then looked at. */
static PyObject *read_step(PyObject *self, PyObject *args) {
    unsigned long long cell_address, items_offset, tokens_offset, step;
    unsigned int item_capacity, token_capacity, vocab_size, row_capacity;
    maskd_steps_cell cell;
    maskd_item *items = NULL;
    int32_t *tokens = NULL;
    uint32_t *slots = NULL, slot_count = 2;
    unsigned char *taken = NULL, *unique = NULL;
    PyObject *ids = NULL, *plain_tokens = NULL, *rows = NULL, *others = NULL, *out = NULL;
    const module_state *state = PyModule_GetState(self);
    if (!PyArg_ParseTuple(args, "KKKIIIIK", &cell_address, &items_offset, &tokens_offset, &item_capacity, &token_capacity, &vocab_size, &row_capacity, &step))
        return NULL;
    memcpy(&cell, POINTER(void, cell_address), sizeof(cell));
    if (cell.step != step || cell.item_count > item_capacity || cell.token_count > token_capacity) Py_RETURN_NONE;
    while (slot_count < 2 * (size_t)cell.item_count && slot_count < UINT32_C(1) << 31) slot_count *= 2;
    items = malloc(sizeof(maskd_item) * ((size_t)cell.item_count + 1));
    tokens = malloc(sizeof(int32_t) * ((size_t)cell.token_count + 1));
    slots = calloc(slot_count, sizeof(uint32_t));
    taken = calloc((size_t)row_capacity + 1, 1);
    unique = malloc((size_t)cell.item_count + 1);
    ids = PyList_New(cell.item_count);
    plain_tokens = PyList_New(cell.item_count);
    rows = PyList_New(cell.item_count);
    others = PyDict_New();
    if (!items || !tokens || !slots || !taken || !unique || !ids || !plain_tokens || !rows || !others) {
        if (!PyErr_Occurred()) PyErr_NoMemory();
        goto done;
    }
    memcpy(items, POINTER(void, cell_address + items_offset), sizeof(maskd_item) * (size_t)cell.item_count);
    memcpy(tokens, POINTER(void, cell_address + tokens_offset), sizeof(int32_t) * (size_t)cell.token_count);
    find_unique(items, cell.item_count, slots, slot_count, unique);
    for (uint32_t i = 0; i < cell.item_count; i++) {
        int32_t detail_index;
        int64_t detail_value;
        int status = check_item(&items[i], tokens, cell.token_count, vocab_size, row_capacity, taken, &detail_index, &detail_value);
        int plain = status == MASKD_OK && unique[i] && is_plain(&items[i]);
        if (list_int(ids, i, plain ? items[i].sequence_id : 0) < 0 || list_int(plain_tokens, i, plain ? tokens[items[i].accept_offset] : 0) < 0 ||
            list_int(rows, i, plain ? items[i].row : 0) < 0)
            goto done;
        if (plain) continue;
        PyObject *index = PyLong_FromUnsignedLong(i), *item = checked_item(state->item, &items[i], status, tokens, detail_index, detail_value);
        int failed = !index || !item || PyDict_SetItem(others, index, item) < 0;
        Py_XDECREF(index);
        Py_XDECREF(item);
        if (failed) goto done;
    }
    out = PyStructSequence_New(state->batch);
    if (!out) goto done;
    put(out, BATCH_IDS, ids);
    put(out, BATCH_TOKENS, plain_tokens);
    put(out, BATCH_ROWS, rows);
    put(out, BATCH_OTHERS, others);
    ids = plain_tokens = rows = others = NULL;
done:
    free(items);
    free(tokens);
    free(slots);
    free(taken);
    free(unique);
    Py_XDECREF(ids);
    Py_XDECREF(plain_tokens);
    Py_XDECREF(rows);
    Py_XDECREF(others);
    return out;
}

enum {
    RESULT_SEQUENCE_ID, RESULT_STATUS, RESULT_FLAGS, RESULT_ROW, RESULT_ROW_COUNT, RESULT_ACCEPTED_COUNT, RESULT_POSITION, RESULT_FORCED,
    RESULT_DETAIL_INDEX, RESULT_DETAIL_VALUE, RESULT_FIELDS
};

/* write_results(cell, results_offset, forced_offset, forced_capacity, step, duration_ns, ids, rows, results)
 * A result is the position of a plain item that went well, with its id and its row in the other two lists. Else it is a tuple
 * of RESULT_FIELDS fields, in the order of their enum. Either may come as a pair with the flags of its row, which are added.
 * The caller has set the lock. */
static PyObject *write_results(PyObject *self, PyObject *args) {
    unsigned long long cell_address, results_offset, forced_offset, step, duration_ns;
    unsigned int forced_capacity, forced_at = 0;
    PyObject *ids, *rows, *results;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKKIKKOOO", &cell_address, &results_offset, &forced_offset, &forced_capacity, &step, &duration_ns, &ids, &rows, &results))
        return NULL;
    maskd_rows_cell *cell = POINTER(maskd_rows_cell, cell_address);
    maskd_result *out = POINTER(maskd_result, cell_address + results_offset);
    int32_t *forced_out = POINTER(int32_t, cell_address + forced_offset);
    Py_ssize_t count = PyList_Size(results);
    if (count < 0) return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *one = PyList_GetItem(results, i), *forced;
        long long field[RESULT_FIELDS], row_flags = 0;
        if (one && PyTuple_Check(one) && PyTuple_Size(one) == 2) {
            row_flags = PyLong_AsLongLong(PyTuple_GetItem(one, 1));
            one = PyTuple_GetItem(one, 0);
            if (PyErr_Occurred()) return NULL;
        }
        if (one && PyLong_Check(one)) {
            PyObject *id = PyList_GetItem(ids, i), *row = id ? PyList_GetItem(rows, i) : NULL;
            if (!row) return NULL;
            maskd_result plain = {.sequence_id = PyLong_AsLongLong(id), .flags = (uint16_t)row_flags, .row = (int32_t)PyLong_AsLong(row), .row_count = 1,
                                  .accepted_count = 1, .position = (uint32_t)PyLong_AsUnsignedLong(one), .forced_offset = forced_at, .detail_index = -1};
            if (PyErr_Occurred()) return NULL;
            out[i] = plain;
            continue;
        }
        if (!one || PyTuple_Size(one) != RESULT_FIELDS) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a result has ten fields");
            return NULL;
        }
        for (int k = 0; k < RESULT_FIELDS; k++) field[k] = k == RESULT_FORCED ? 0 : PyLong_AsLongLong(PyTuple_GetItem(one, k));
        if (PyErr_Occurred()) return NULL;
        forced = PyTuple_GetItem(one, RESULT_FORCED);
        Py_ssize_t forced_count = PyTuple_Size(forced);
        if (forced_count < 0) return NULL;
        if ((unsigned long long)forced_count > forced_capacity - forced_at) forced_count = forced_capacity - forced_at; /* a hint: cut, not failed */
        maskd_result result = {.sequence_id = field[RESULT_SEQUENCE_ID], .status = (uint16_t)field[RESULT_STATUS],
                               .flags = (uint16_t)(field[RESULT_FLAGS] | row_flags), .row = (int32_t)field[RESULT_ROW],
                               .row_count = (uint32_t)field[RESULT_ROW_COUNT], .accepted_count = (uint32_t)field[RESULT_ACCEPTED_COUNT],
                               .position = (uint32_t)field[RESULT_POSITION], .forced_offset = forced_at, .forced_count = (uint32_t)forced_count,
                               .detail_index = (int32_t)field[RESULT_DETAIL_INDEX], .detail_value = field[RESULT_DETAIL_VALUE]};
        for (Py_ssize_t k = 0; k < forced_count; k++) forced_out[forced_at++] = (int32_t)PyLong_AsLong(PyTuple_GetItem(forced, k));
        out[i] = result;
    }
    cell->step = step;
    cell->item_count = (uint32_t)count;
    cell->forced_count = forced_at;
    cell->duration_ns = duration_ns;
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* read_reply(cell, results_offset, forced_offset, item_capacity, forced_capacity, step)
 *   -> (results, forced, duration_ns, failed), copies as bytes, or None if the cell holds another step. */
static PyObject *read_reply(PyObject *self, PyObject *args) {
    unsigned long long cell_address, results_offset, forced_offset, step;
    unsigned int item_capacity, forced_capacity;
    int failed = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKKIIK", &cell_address, &results_offset, &forced_offset, &item_capacity, &forced_capacity, &step)) return NULL;
    const maskd_rows_cell *cell = POINTER(const maskd_rows_cell, cell_address);
    uint32_t item_count = cell->item_count, forced_count = cell->forced_count;
    if (maskd_load_u64(&cell->lock) != 2 * step || cell->step != step || item_count > item_capacity || forced_count > forced_capacity) Py_RETURN_NONE;
    const maskd_result *results = POINTER(const maskd_result, cell_address + results_offset);
    for (uint32_t i = 0; i < item_count && !failed; i++) failed = results[i].status != MASKD_OK;
    return Py_BuildValue("y#y#Ki", (const char *)results, (Py_ssize_t)(sizeof(maskd_result) * item_count),
                         POINTER(const char, cell_address + forced_offset), (Py_ssize_t)(sizeof(int32_t) * forced_count),
                         (unsigned long long)cell->duration_ns, failed);
}

/* finish_rows(rows, stride_words, token_count, indices, stops) -> bytes, one flag byte a row; stops[i] is the packed int32 stop ids of row i. */
static PyObject *finish_rows(PyObject *self, PyObject *args) {
    unsigned long long rows;
    unsigned int stride_words, token_count;
    PyObject *indices, *stops;
    char *flags;
    (void)self;
    if (!PyArg_ParseTuple(args, "KIIOO", &rows, &stride_words, &token_count, &indices, &stops)) return NULL;
    Py_ssize_t count = PyList_Size(indices);
    if (count < 0) return NULL;
    PyObject *out = PyBytes_FromStringAndSize(NULL, count);
    if (!out) return NULL;
    flags = PyBytes_AsString(out);
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long long index = PyLong_AsUnsignedLongLong(PyList_GetItem(indices, i));
        PyObject *stop = PyList_GetItem(stops, i);
        char *stop_bytes = stop ? PyBytes_AsString(stop) : NULL;
        if (!stop_bytes || PyErr_Occurred()) {
            Py_DECREF(out);
            return NULL;
        }
        flags[i] = (char)finish_row(POINTER(uint32_t, rows) + (size_t)index * stride_words, stride_words, token_count, (const int32_t *)(void *)stop_bytes,
                                    (size_t)PyBytes_Size(stop) / 4);
    }
    return out;
}

/* only_token(row, stride_words) -> the one id that the row allows, or -1. */
static PyObject *only_token(PyObject *self, PyObject *args) {
    unsigned long long address;
    unsigned int stride_words;
    (void)self;
    if (!PyArg_ParseTuple(args, "KI", &address, &stride_words)) return NULL;
    return PyLong_FromLongLong(only_token_of(POINTER(const uint32_t, address), stride_words));
}

/* mask_logits(logits, logit_bytes, minus_infinity, position_stride, token_stride, vocab_size, rows, row_stride_words, row_count, row_indices)
 * Masks position i by row row_indices[i], or not if that is negative. Strides in logits; minus_infinity as bits. Releases the GIL.
 * Raises IndexError for an index past the rows, before anything is masked. */
static PyObject *mask_logits(PyObject *self, PyObject *args) {
    unsigned long long logits, minus_infinity, rows;
    long long position_stride, token_stride;
    unsigned int logit_bytes, vocab_size, row_stride_words, row_count;
    PyObject *row_indices;
    int32_t *index;
    (void)self;
    if (!PyArg_ParseTuple(args, "KIKLLIKIIO", &logits, &logit_bytes, &minus_infinity, &position_stride, &token_stride, &vocab_size, &rows, &row_stride_words,
                          &row_count, &row_indices))
        return NULL;
    Py_ssize_t count = PyList_Size(row_indices);
    if (count < 0) return NULL;
    index = malloc(sizeof(int32_t) * ((size_t)count + 1));
    if (!index) return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        index[i] = (int32_t)PyLong_AsLong(PyList_GetItem(row_indices, i));
        if (!PyErr_Occurred() && index[i] >= 0 && (uint32_t)index[i] >= row_count) PyErr_Format(PyExc_IndexError, "row %d of %u rows", index[i], row_count);
        if (PyErr_Occurred()) {
            free(index);
            return NULL;
        }
    }
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (index[i] < 0) continue;
        const uint32_t *row = POINTER(const uint32_t, rows) + (size_t)index[i] * row_stride_words;
        uint64_t at = logits + (uint64_t)(i * position_stride * (long long)logit_bytes);
        if (logit_bytes == 2) mask_row_16(POINTER(uint16_t, at), (ptrdiff_t)token_stride, row, vocab_size, (uint16_t)minus_infinity);
        if (logit_bytes == 4) mask_row_32(POINTER(uint32_t, at), (ptrdiff_t)token_stride, row, vocab_size, (uint32_t)minus_infinity);
        if (logit_bytes == 8) mask_row_64(POINTER(uint64_t, at), (ptrdiff_t)token_stride, row, vocab_size, minus_infinity);
    }
    Py_END_ALLOW_THREADS;
    free(index);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"load_u64", load_u64, METH_VARARGS, "load_u64(address) -> int: acquire load."},
    {"load_u32", load_u32, METH_VARARGS, "load_u32(address) -> int: acquire load."},
    {"store_u64", store_u64, METH_VARARGS, "store_u64(address, value): release store."},
    {"store_u32", store_u32, METH_VARARGS, "store_u32(address, value): release store."},
    {"fence", fence, METH_NOARGS, "fence(): full fence."},
    {"publish", publish, METH_VARARGS, "publish(word, value, peer_flag, fd, processor_word=0) -> bool: release store, full fence, ring if the peer sleeps."},
    {"processor", processor, METH_NOARGS, "processor() -> int: where the caller runs."},
    {"spin", spin, METH_VARARGS, "spin(words, targets, nanoseconds) -> int: index of the first word >= its target, or -1; releases the GIL."},
    {"read_step", read_step, METH_VARARGS, "read_step(cell, items_offset, tokens_offset, item_capacity, token_capacity, vocab_size, row_capacity, step)"},
    {"write_results", write_results, METH_VARARGS, "write_results(cell, results_offset, forced_offset, forced_capacity, step, duration_ns, ids, rows, results)"},
    {"read_reply", read_reply, METH_VARARGS, "read_reply(cell, results_offset, forced_offset, item_capacity, forced_capacity, step)"},
    {"finish_rows", finish_rows, METH_VARARGS, "finish_rows(rows, stride_words, token_count, indices, stops) -> bytes: flags, one a row."},
    {"only_token", only_token, METH_VARARGS, "only_token(row, stride_words) -> int: the one allowed id, or -1."},
    {"mask_logits", mask_logits, METH_VARARGS, "mask_logits(logits, logit_bytes, minus_infinity, position_stride, token_stride, vocab_size, rows, row_stride_words, row_count, row_indices)"},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    state->item = PyStructSequence_NewType(&item_description);
    state->batch = PyStructSequence_NewType(&batch_description);
    if (!state->item || !state->batch) return -1;
    return PyModule_AddType(module, state->item) < 0 ? -1 : PyModule_AddType(module, state->batch);
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->item);
    Py_VISIT(state->batch);
    return 0;
}

static int clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->item);
    Py_CLEAR(state->batch);
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "maskd._shm", .m_doc = "Ordering, spinning and bounded copies for shared memory.", .m_size = sizeof(module_state),
    .m_methods = methods, .m_slots = slots, .m_traverse = traverse, .m_clear = clear};

PyMODINIT_FUNC PyInit__shm(void) { return PyModuleDef_Init(&module); }
