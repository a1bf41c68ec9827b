/* The smallest engine in C: attach, open a sequence, accept the tokens of the command line one by one, print every row.
 *
 *   client DATA_SOCKET TOKEN_HEX GRAMMAR_ID TOKEN_ID...
 *
 * One line a step: status, flags, position, then the first words of the row in hex. Also compiled as C++.
 */
#include "maskd_shm.h"

#include <stdio.h>
#include <stdlib.h>

static int print_step(const maskd_session *session, uint64_t step) {
    const maskd_rows_cell *cell = maskd_rows_cell_of(session, step);
    const maskd_result *result = maskd_results(session, step);
    uint64_t lock = maskd_load_u64(&cell->lock), word;
    const int32_t *row = maskd_row(session, step, 0);
    if (lock != 2 * step || cell->step != step || cell->item_count != 1) return -1;
    printf("%u %u %u", (unsigned)result->status, (unsigned)result->flags, (unsigned)result->position);
    for (word = 0; word < session->rows->row_stride_bytes / 4; word++) printf(" %08x", (unsigned)row[word]);
    printf("\n");
    return 0;
}

int main(int argc, char **argv) {
    maskd_session session;
    uint8_t token[16];
    uint64_t step;
    int i, answer;

    if (argc < 4 || strlen(argv[2]) != 32) return 2;
    for (i = 0; i < 16; i++) {
        char byte[3] = {argv[2][2 * i], argv[2][2 * i + 1], 0};
        token[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    answer = maskd_attach(&session, argv[1], token);
    if (answer != 0) {
        printf("refused %d\n", answer);
        return 3;
    }
    for (i = 3; i < argc; i++) {
        maskd_item *item = maskd_items(&session, session.next_step);
        memset(item, 0, sizeof(*item));
        item->sequence_id = 1;
        if (i == 3) {
            item->action = MASKD_OPEN;
            item->grammar_id = atoll(argv[3]);
        } else {
            item->action = MASKD_ADVANCE;
            item->accept_count = 1;
            maskd_tokens(&session, session.next_step)[0] = atoi(argv[i]);
        }
        step = maskd_publish(&session, 1, item->accept_count);
        answer = maskd_wait(&session, step, i % 2 ? 100 : 0, 60000);
        if (answer != 0 || print_step(&session, step) != 0) {
            printf("lost %d\n", answer);
            return 4;
        }
    }
    maskd_detach(&session);
    return 0;
}
