// dev/cuda/cpu_choose.c: what generate.c does inside of a beam step, see cpu.h. Includes generate.c itself.

#include "../../generate.c"

#include "cpu.h"

#include <stdlib.h>

void cpu_beam_candidates(float *value, float *beam, float *token, const float *logits, const float *score, int K,
                         int V) {
    const Choice how = {.beams = K, .captions = 1, .max_new = 4, .length_penalty = 1, .repeat_penalty = 1, .temp = 1,
                        .top_p = 1};
    const uint64_t bytes = search_bytes(1, K, 4, V);
    CHECK(bytes < SIZE_MAX);
    void *memory = aligned_alloc(64, bytes);
    CHECK(memory);
    Search *s = search_init(memory, 1, K, 4, V, -1, 0);
    const int *seen[1] = {NULL}, n_seen[1] = {0};
    search_begin(s, &how, seen, n_seen, 1);
    int n = 0;
    for (int k = 0; k < K; k++) {
        search_process(s, logits + (size_t)k * V, 0, k);
        n = gather(s, n, 0, k, score[k]);
    }
    CHECK(n == 2 * K);
    for (int i = 0; i < n; i++) {
        value[i] = s->best[i].value;
        beam[i] = (float)s->best[i].k;
        token[i] = (float)s->best[i].token;
    }
    free(memory);
}
