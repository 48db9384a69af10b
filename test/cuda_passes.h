// test/cuda_passes.h: part of test_cuda.cu: attention over the past, fc2 without dead neurons, pixels to tokens.
//
// In order: those three, each launcher on odd shapes against sums in double. Needs the buffers of test_cuda.cu.
// Not here: dense layers and attention over sequences (test_cuda.cu).
#ifndef CUDA_PASSES_H
#define CUDA_PASSES_H

// Two rows about prompts 1 and 0; t tokens fed before this one, in slots that the line names. cross: no new ones.
template <typename T> static void test_past(int A, int t, bool cross, bool biased) {
    const int H = 3, I = H * A, R = 2, max_new = 90, n_of[] = {4, 37}, first_of[] = {0, 4}, prompt_of[] = {1, 0};
    const int ldq = cross ? I : 3 * I, ldb = max_new + 40;
    char what[96];
    snprintf(what, sizeof what, "past, %zu bytes, heads of %d, t %d%s%s", sizeof(T), A, t, cross ? ", cross" : "",
             biased ? ", biased" : "");
    const bool small = sizeof(T) == 2;
    const std::vector<float> q = numbers((size_t)R * ldq, 3, small), kv = numbers((size_t)41 * 2 * I, 5, small);
    const std::vector<float> fresh = numbers((size_t)max_new * R * 2 * I, 7, small), bias = numbers((size_t)H * ldb, 9, false);
    std::vector<int> line(2 * R * max_new, -1);   // what is not of this half must not be followed
    for (int r = 0; r < R; r++)
        for (int i = 0; i <= t; i++) line[((t + 1) % 2 * R + r) * max_new + i] = i == t ? r : (i + r) % 3 % 2;
    std::vector<float> want((size_t)R * I);
    for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) {
            const int b = prompt_of[r], last = n_of[b] + (cross ? -1 : t);
            std::vector<double> s(last + 1);
            std::vector<const float *> key(last + 1);
            double top = -1e30, sum = 0;
            for (int j = 0; j <= last; j++) {
                key[j] = j < n_of[b] ? &kv[(size_t)(first_of[b] + j) * 2 * I]
                       : &fresh[((size_t)(j - n_of[b]) * R + line[((t + 1) % 2 * R + r) * max_new + j - n_of[b]]) * 2 * I];
                for (int k = 0; k < A; k++) s[j] += (double)q[(size_t)r * ldq + h * A + k] * key[j][h * A + k];
                s[j] = s[j] * 0.3f + (biased ? bias[h * ldb + last - j] : 0);
                top = fmax(top, s[j]);
            }
            for (double &x : s) sum += x = exp(x - top);
            for (int k = 0; k < A; k++) {
                double y = 0;
                for (int j = 0; j <= last; j++) y += s[j] / sum * key[j][I + h * A + k];
                want[(size_t)r * I + h * A + k] = (float)y;
            }
        }
    const std::vector<T> qt = as<T>(q), kvt = as<T>(kv), ft = as<T>(fresh);
    Buffer dq = buffer_of(qt.size() * sizeof(T), qt.data()), dkv = buffer_of(kvt.size() * sizeof(T), kvt.data());
    Buffer df = buffer_of(ft.size() * sizeof(T), ft.data()), db = buffer_of(bias.size() * 4, bias.data());
    Buffer dl = buffer_of(line.size() * 4, line.data()), dn = buffer_of(sizeof n_of, n_of), dt = buffer_of(sizeof t, &t);
    Buffer dfirst = buffer_of(sizeof first_of, first_of), dp = buffer_of(sizeof prompt_of, prompt_of);
    Buffer out = buffer_of(want.size() * sizeof(T), NULL);
    Past p = {};
    p.out = at<void>(out), p.q = at<void>(dq), p.kv = at<void>(dkv), p.first_of = at<int>(dfirst), p.n_of = at<int>(dn);
    p.prompt_of = at<int>(dp), p.kv_new = cross ? NULL : at<void>(df), p.line = at<int>(dl), p.t = at<int>(dt);
    p.bias = biased ? at<float>(db) : NULL, p.ldq = ldq, p.R = R, p.max_new = max_new, p.ldb = ldb, p.scale = 0.3f;
    p.rows = R, p.H = H, p.A = A;
    attend_past<T>(0, p);
    expect_output<T>(out, want, what);
    for (Buffer *u : {&dq, &dkv, &df, &db, &dl, &dn, &dt, &dfirst, &dp}) CUDA_CHECK(cudaFree(u->base));
}

// Weights of dead neurons are NaN: they must not be read. all: every neuron lives, none: all are dead.
static void test_skip(int rows, int OC, int C, const char *alive) {
    char what[96];
    snprintf(what, sizeof what, "fc2 by neuron, %s alive, (%d,%d) x (%d,%d)", alive, rows, C, OC, C);
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
    snprintf(what, sizeof what, "pixels to tokens, dtype %d, %d images of %d, patches of %d, width %d", dtype, B, S, P, D);
    const Weight w = weight_of(dtype, D, C, 31);
    const std::vector<float> b = numbers(D, 5, false), cls = numbers(D, 7, false), pos = numbers((size_t)N * D, 9, false);
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
                    const float v = (pixels[(((size_t)i * S + row) * S + col) * 3 + ch] / 255.0f - norm.mean[ch]) / norm.std[ch];
                    y += (double)v * w.values[(size_t)o * C + c];
                }
                want[((size_t)i * N + n) * D + o] = (float)(y + pos[(size_t)n * D + o]);
            }
    Buffer dw = buffer_of(w.bytes.size(), w.bytes.data()), dp = buffer_of(pixels.size(), pixels.data());
    Buffer db = buffer_of(b.size() * 4, b.data()), dc = buffer_of(cls.size() * 4, cls.data());
    Buffer dpos = buffer_of(pos.size() * 4, pos.data()), out = buffer_of(want.size() * 4, NULL);
    const Tensor tensor = {at<void>(dw), at<uint8_t>(dw) + w.scale_at, dtype, D, C};
    embed_patches(0, at<float>(out), at<uint8_t>(dp), norm, tensor, at<float>(db), at<float>(dc), at<float>(dpos), B, S, P);
    fetch(got.data(), out, what);
    expect_close(got, want, BF16_BOUND, what);
    for (Buffer *u : {&dw, &dp, &db, &dc, &dpos}) CUDA_CHECK(cudaFree(u->base));
}

static void test_passes(void) {
    for (int A : {8, 80, 88, 128, 200}) test_past<bf16>(A, A == 8 ? 0 : 70, A == 128, A % 5 == 0);
    test_past<bf16>(6, 3, false, true);
    for (int A : {5, 40, 100, 256}) test_past<float>(A, 2, A == 40, A == 5);
    for (int rows : {1, 2, 3})
        for (const char *alive : {"some", "all", "none"}) test_skip(rows, rows == 2 ? 264 : 40, rows == 3 ? 130 : 1100, alive);
    for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4}) test_embed_patches(dtype, 2, 29, 14, 40);
    test_embed_patches(DT_BF16, 3, 45, 5, 70);
}

#endif
