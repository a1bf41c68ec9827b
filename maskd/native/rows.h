/* What is done to packed rows, and with them. A row: bit j of word w is token 32 * w + j, 1 = allowed.
 *
 * Plain C: knows nothing about Python, segments or who makes rows.
 */
#ifndef MASKD_ROWS_H
#define MASKD_ROWS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { ROW_EMPTY = 1, ROW_ACCEPTING = 2, ROW_ALL_ALLOWED = 4 };

/* Clears the bits from token_count on, and says what kind of row it is. */
static inline unsigned char finish_row(uint32_t *row, uint32_t stride_words, uint32_t token_count, const int32_t *stops, size_t stop_count) {
    uint32_t full = token_count / 32, rest = token_count % 32, word = 0;
    unsigned char flags = 0;
    if (full < stride_words) {
        row[full] &= rest ? (UINT32_C(1) << rest) - 1 : 0;
        memset(row + full + 1, 0, sizeof(uint32_t) * (stride_words - full - 1));
    }
    if (row[0] == (full ? UINT32_MAX : (UINT32_C(1) << rest) - 1)) { /* ends at the first word that is not full: the second word of nearly every row */
        while (word < full && row[word] == UINT32_MAX) word++;
        if (word == full && (!rest || row[full] == (UINT32_C(1) << rest) - 1)) flags |= ROW_ALL_ALLOWED;
    }
    for (word = 0; word <= full && word < stride_words && !row[word];) word++;
    if (word > full || word == stride_words) flags |= ROW_EMPTY;
    for (size_t i = 0; i < stop_count; i++)
        if (row[stops[i] / 32] >> (stops[i] % 32) & 1) flags |= ROW_ACCEPTING;
    return flags;
}

/* Returns the one id that the row allows, or -1. */
static inline int64_t only_token_of(const uint32_t *row, uint32_t stride_words) {
    int64_t found = -1;
    for (uint32_t word = 0; word < stride_words; word++) {
        if (!row[word]) continue;
        if (found >= 0 || (row[word] & (row[word] - 1))) return -1;
        found = (int64_t)word * 32 + __builtin_ctz(row[word]);
    }
    return found;
}

/* mask_row_16, _32, _64: sets the logits that the row forbids to minus_infinity, a bit pattern: one code for every format of that size.
 * stride: from one token's logit to the next, in logits. */
#define MASKD_DEFINE_MASK_ROW(bits)                                                                                                                     \
    static inline void mask_row_##bits(uint##bits##_t *logits, ptrdiff_t stride, const uint32_t *row, uint32_t vocab_size,                              \
                                       uint##bits##_t minus_infinity) {                                                                                 \
        for (uint32_t first = 0; first < vocab_size; first += 32) {                                                                                     \
            uint##bits##_t *at = logits + (ptrdiff_t)first * stride;                                                                                    \
            uint32_t left = vocab_size - first, forbidden = ~row[first / 32];                                                                           \
            if (left < 32) forbidden &= (UINT32_C(1) << left) - 1;                                                                                      \
            if (forbidden == UINT32_MAX && stride == 1) { /* most words of most rows */                                                                 \
                for (int i = 0; i < 32; i++) at[i] = minus_infinity;                                                                                    \
                continue;                                                                                                                               \
            }                                                                                                                                           \
            for (; forbidden; forbidden &= forbidden - 1) at[__builtin_ctz(forbidden) * stride] = minus_infinity;                                       \
        }                                                                                                                                               \
    }
MASKD_DEFINE_MASK_ROW(16)
MASKD_DEFINE_MASK_ROW(32)
MASKD_DEFINE_MASK_ROW(64)

#endif /* MASKD_ROWS_H */
