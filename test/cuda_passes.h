// test/cuda_passes.h: part of test_cuda.cu: fc2 without dead neurons, pixels to tokens.
//
// In order: those two, each launcher on odd shapes against sums in double. Needs the buffers of test_cuda.cu.
// Not here: dense layers and attention over sequences (test_cuda.cu).
#ifndef CUDA_PASSES_H
#define CUDA_PASSES_H

// Weights of dead neurons are NaN: they must not be read. all: every neuron lives, none: all are dead.
static void test_skip(int rows, int OC, int C, const char *alive) {
    char what[96];
    snprintf(what, sizeof what, "fc2 by neuron, %s alive, (%d,%d) x (%d,%d)", alive, rows, C, OC, C);
    if (!wanted(what)) return;
    std::vector<float> x = numbers((size_t)rows * C, 3, true), b = numbers(OC, 5, false);
    std::vector<float> w = numbers((size_t)OC * C, 7, true), before = numbers((size_t)rows * OC, 9, false), got(before);
    for (int j = 0; j < C; j++) {
        bool dead = true;
        for (int t = 0; t < rows; t++) {
            float &v = x[(size_t)t * C + j];
            if (*alive == 'n' || (*alive == 's' && (v < 0.6f || j < C / 2))) v = j % 2 ? 0.0f : -0.0f;
            dead = dead && v == 0;
        }
        for (int o = 0; o < OC && dead; o++) w[(size_t)o * C + j] = NAN;
    }
    std::vector<float> want(before);
    for (int t = 0; t < rows; t++)
        for (int o = 0; o < OC; o++) {
            double y = b[o];
            for (int j = 0; j < C; j++)
                if (x[(size_t)t * C + j] != 0) y += (double)x[(size_t)t * C + j] * w[(size_t)o * C + j];
            want[t * OC + o] += y;
        }
    const std::vector<uint16_t> x16 = narrow(x), w16 = narrow(w);
    Buffer dx = buffer_of(x16.size() * 2, x16.data()), dw = buffer_of(w16.size() * 2, w16.data());
    Buffer db = buffer_of(b.size() * 4, b.data()), out = buffer_of(before.size() * 4, before.data());
    Buffer dt = buffer_of(w16.size() * 2, NULL), scratch = buffer_of(1 << 16, NULL);
    Buffer tickets = buffer_of(8 * sizeof(int), NULL);
    CUDA_CHECK(cudaMemset(at<void>(tickets), 0, tickets.bytes));
    Device dev = {};
    dev.partial = at<float>(scratch), dev.partial_bytes = 1 << 16, dev.tickets = at<int>(tickets);
    const Tensor tensor = {at<void>(dw), NULL, DT_BF16, OC, C};
    transpose(0, at<bf16>(dt), at<bf16>(dw), OC, C);
    EXPECT(&tally, skip_dense(0, dense_of(at<void>(out), OUT_ADD, at<void>(dx), tensor, at<float>(db), ACT_NONE, rows),
                              at<bf16>(dt), dev), "%s: does not fit", what);
    fetch(got.data(), out, what);
    expect_close(got, want, F32_BOUND, what);
    for (Buffer *u : {&dx, &dw, &db, &dt, &scratch, &tickets}) CUDA_CHECK(cudaFree(u->base));
}

static void test_embed_patches(int dtype, int B, int S, int P, int D) {
    const int G = S / P, C = 3 * P * P, N = G * G + 1;
    char what[96];
    snprintf(what, sizeof what, "pixels to tokens, dtype %d, %d images of %d, patches of %d, width %d", dtype, B, S, P,
             D);
    if (!wanted(what)) return;
    const Weight w = weight_of(dtype, D, C, 31);
    const std::vector<float> b = numbers(D, 5, false), cls = numbers(D, 7, false);
    const std::vector<float> pos = numbers((size_t)N * D, 9, false);
    const Pixels norm = {{0.48f, 0.46f, 0.41f}, {0.27f, 0.26f, 0.28f}};
    std::vector<uint8_t> pixels((size_t)B * S * S * 3);
    uint32_t seed = 3;
    for (uint8_t &v : pixels) v = (uint8_t)fixture_random(&seed);
    std::vector<float> want((size_t)B * N * D), got(want.size());
    for (int i = 0; i < B; i++)
        for (int n = 0; n < N; n++)
            for (int o = 0; o < D; o++) {
                double y = n ? b[o] : cls[o];
                for (int c = 0; n && c < C; c++) {
                    const int ch = c / (P * P), row = (n - 1) / G * P + c / P % P, col = (n - 1) % G * P + c % P;
                    const float v = pixels[(((size_t)i * S + row) * S + col) * 3 + ch] / 255.0f;
                    y += (double)((v - norm.mean[ch]) / norm.std[ch]) * w.values[(size_t)o * C + c];
                }
                want[((size_t)i * N + n) * D + o] = (float)(y + pos[(size_t)n * D + o]);
            }
    Buffer dw = buffer_of(w.bytes.size(), w.bytes.data()), dp = buffer_of(pixels.size(), pixels.data());
    Buffer db = buffer_of(b.size() * 4, b.data()), dc = buffer_of(cls.size() * 4, cls.data());
    Buffer dpos = buffer_of(pos.size() * 4, pos.data()), out = buffer_of(want.size() * 4, NULL);
    const Tensor tensor = {at<void>(dw), at<uint8_t>(dw) + w.scale_at, dtype, D, C};
    embed_patches(0, at<float>(out), at<uint8_t>(dp), norm, tensor, at<float>(db), at<float>(dc), at<float>(dpos), B, S,
                  P);
    fetch(got.data(), out, what);
    expect_close(got, want, BF16_BOUND, what);
    for (Buffer *u : {&dw, &dp, &db, &dc, &dpos}) CUDA_CHECK(cudaFree(u->base));
}

static void test_passes(void) {
    for (int rows : {1, 2, 3})
        for (const char *alive : {"some", "all", "none"})
            test_skip(rows, rows == 2 ? 264 : 40, rows == 3 ? 130 : 1100, alive);
    for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4}) test_embed_patches(dtype, 2, 29, 14, 40);
    test_embed_patches(DT_BF16, 3, 45, 5, 70);
}

#endif
