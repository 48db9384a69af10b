// test/cuda_layer_tests.h: the small launchers of cuda_layers.cuh, and attention over the past, against plain loops.
//
// In order: a device copy that is freed at the end; patches and tokens; norms; activations; embeddings of every dtype;
// gathered rows and keys and values in the cache; one new token over its past.
// Outputs lie between canaries and hold NaN at the start, sizes are odd. Included by test_cuda.cu.
// Not here: dense layers, attention over whole sequences (test_cuda.cu).
#ifndef TEST_CUDA_LAYER_TESTS_H
#define TEST_CUDA_LAYER_TESTS_H

#include "cuda_buffers.h"

struct OnDevice {       // a copy of x, as T
    Buffer b;
    template <typename T> explicit OnDevice(const std::vector<T> &x) : b(buffer_of(x.size() * sizeof(T), x.data())) {}
    ~OnDevice() { CUDA_CHECK(cudaFree(b.base)); }
    template <typename T> T *to() const { return at<T>(b); }
};

// x as the launcher wants it: f32, or rounded to bf16
template <typename T> static std::vector<T> as(const std::vector<float> &x) {
    if constexpr (sizeof(T) == 2) return narrow(x);
    else return x;
}

template <typename T> static void expect_output(Buffer out, const std::vector<float> &want, const char *what) {
    std::vector<T> raw(want.size());
    fetch(raw.data(), out, what);
    expect_near(raw, want, what);
}

template <typename T> static const char *type_name() { return sizeof(T) == 2 ? "bf16" : "f32"; }

// ---------------------------------------------------------------------------------------------------------

template <typename T> static void test_patches(int B, int S, int P) {
    char what[80];
    snprintf(what, sizeof what, "patches %s, %d images of %d, patches of %d", type_name<T>(), B, S, P);
    if (!wanted(what)) return;
    const int G = S / P, C = 3 * P * P;
    const Pixels norm = {{0.5f, 0.4f, 0.3f}, {0.3f, 0.2f, 0.1f}};
    std::vector<uint8_t> pixels((size_t)B * S * S * 3);
    uint32_t seed = 5;
    for (uint8_t &v : pixels) v = (uint8_t)fixture_random(&seed);
    std::vector<float> want;
    for (int b = 0; b < B; b++)
        for (int g = 0; g < G * G; g++)
            for (int c = 0; c < C; c++) {
                const int ch = c / (P * P), y = g / G * P + c / P % P, x = g % G * P + c % P;
                const uint8_t pixel = pixels[((size_t)(b * S + y) * S + x) * 3 + ch];
                want.push_back((pixel / 255.0f - norm.mean[ch]) / norm.std[ch]);
            }
    const OnDevice in(pixels);
    Buffer out = buffer_of(want.size() * sizeof(T), NULL);
    patches<T>(0, at<T>(out), in.to<uint8_t>(), norm, B, S, P);
    expect_output<T>(out, want, what);
}

static void test_token_rows(int B, int N, int D) {
    char what[64];
    snprintf(what, sizeof what, "tokens (%d,%d,%d)", B, N, D);
    if (!wanted(what)) return;
    const std::vector<float> patch = numbers((size_t)B * (N - 1) * D, 3, false), cls = numbers(D, 5, false);
    const std::vector<float> pos = numbers((size_t)N * D, 7, false);
    std::vector<float> want;
    for (int b = 0; b < B; b++)
        for (int n = 0; n < N; n++)
            for (int i = 0; i < D; i++)
                want.push_back((n ? patch[((size_t)b * (N - 1) + n - 1) * D + i] : cls[i]) + pos[(size_t)n * D + i]);
    const OnDevice p(patch), c(cls), q(pos);
    Buffer out = buffer_of(want.size() * 4, NULL);
    tokens(0, at<float>(out), p.to<float>(), c.to<float>(), q.to<float>(), B, N, D);
    expect_output<float>(out, want, what);
}

// copy: the norm is also written in f32; in_place: over x itself, as the Q-Former does
template <typename T> static void test_norm(int rows, int C, bool rms, bool copy, bool in_place) {
    char what[96];
    snprintf(what, sizeof what, "norm %s (%d,%d)%s%s", type_name<T>(), rows, C, rms ? ", rms" : "",
             in_place ? ", in place" : copy ? ", with a copy" : "");
    if (!wanted(what)) return;
    const std::vector<float> x = numbers((size_t)rows * C, 3, false);
    const std::vector<float> w = numbers(C, 5, false), b = numbers(C, 7, false);
    std::vector<float> want(x.size());
    for (int r = 0; r < rows; r++) {
        double mean = 0, var = 0;
        for (int c = 0; c < C && !rms; c++) mean += (double)x[r * C + c] / C;
        for (int c = 0; c < C; c++) var += (x[r * C + c] - mean) * (x[r * C + c] - mean) / C;
        for (int c = 0; c < C; c++)
            want[r * C + c] = ((x[r * C + c] - mean) / sqrt(var + 1e-5) * w[c] + (rms ? 0 : b[c])) * 0.75;
    }
    const OnDevice dw(w), db(b);
    Buffer dx = buffer_of(x.size() * 4, x.data()), out = buffer_of(x.size() * sizeof(T), NULL);
    Buffer extra = buffer_of(x.size() * 4, NULL);
    norm<T>(0, at<T>(out), in_place ? at<float>(dx) : copy ? at<float>(extra) : NULL, at<float>(dx), dw.to<float>(),
            rms ? NULL : db.to<float>(), 1e-5f, 0.75f, rows, C);
    expect_output<T>(out, want, what);
    std::vector<float> raw(x.size()), other(x.size());
    fetch(raw.data(), extra, what);
    fetch(other.data(), dx, what);
    if (copy) expect_near(in_place ? other : raw, want, what);
    if (!in_place) EXPECT(&tally, other == x, "%s: the input changed", what);
    if (!copy || in_place) EXPECT(&tally, not_finite(raw[0]), "%s: a copy nobody asked for", what);
}

template <typename T> static void test_activate(int rows, int F, int act, bool gated, bool biased) {
    char what[96];
    snprintf(what, sizeof what, "activate %s %d (%d,%d)%s%s", type_name<T>(), act, rows, F, gated ? ", gated" : "",
             biased ? ", bias" : "");
    if (!wanted(what)) return;
    const int ld = gated ? 2 * F : F;
    const std::vector<float> x = numbers((size_t)rows * ld, 3, true), b = numbers(F, 5, false);
    std::vector<float> want;
    for (int r = 0; r < rows; r++)
        for (int f = 0; f < F; f++) {
            double y = x[(size_t)r * ld + f] + (biased ? b[f] : 0);
            if (act == ACT_RELU) y = y > 0 ? y : 0;
            if (act == ACT_GELU) y = 0.5 * y * (1 + erf(y * sqrt(0.5)));
            if (act == ACT_GELU_TANH) y = 0.5 * y * (1 + tanh(sqrt(2 / M_PI) * (y + 0.044715 * y * y * y)));
            want.push_back(gated ? y * x[(size_t)r * ld + F + f] : y);
        }
    const OnDevice in(as<T>(x)), db(b);
    Buffer out = buffer_of(want.size() * sizeof(T), NULL);
    activate<T>(0, at<T>(out), in.to<T>(), biased ? db.to<float>() : NULL, act, gated, rows, F);
    expect_output<T>(out, want, what);
}

// Two rows of images, tokens up to the last of the vocabulary, positions up to the last of the table.
static void test_embed(int dtype, int D, bool positions) {
    char what[64];
    snprintf(what, sizeof what, "embed dtype %d, width %d%s", dtype, D, positions ? ", positions" : "");
    if (!wanted(what)) return;
    const int V = 11, last = 6;
    const std::vector<int> ids = {-1, -2, 3, V - 1, 0, 3, -2}, places = {0, 1, 2, last, 4, 5, 3};
    const Weight w = weight_of(dtype, V, D, 21);
    const std::vector<float> image = numbers((size_t)2 * D, 3, false);
    const std::vector<float> pos = numbers((size_t)(last + 3) * D, 5, false);
    std::vector<float> want;
    for (size_t r = 0; r < ids.size(); r++)
        for (int i = 0; i < D; i++)
            want.push_back((ids[r] < 0 ? image[(size_t)(-1 - ids[r]) * D + i] : w.values[(size_t)ids[r] * D + i]) +
                           (positions ? pos[(size_t)(places[r] + 2) * D + i] : 0));
    const OnDevice di(ids), dp(places), dw(w.bytes), dimage(image), dpos(pos);
    const Tensor tok = {dw.to<void>(), dw.to<uint8_t>() + w.scale_at, dtype, V, D};
    Buffer out = buffer_of(want.size() * 4, NULL);
    for (int i = 0; i < 2; i++)   // the second may start before the first is done
        embed(0, at<float>(out), di.to<int>(), positions ? dp.to<int>() : NULL, &tok, dimage.to<float>(),
              positions ? dpos.to<float>() : NULL, (int)ids.size(), D);
    expect_output<float>(out, want, what);
}

static void test_gather(int D) {
    char what[64];
    snprintf(what, sizeof what, "gather, width %d", D);
    if (!wanted(what)) return;
    const std::vector<float> x = numbers((size_t)9 * D, 3, false);
    const std::vector<int> rows = {8, 0, 3};
    std::vector<float> want;
    for (int r : rows) want.insert(want.end(), x.begin() + (size_t)r * D, x.begin() + (size_t)(r + 1) * D);
    const OnDevice dx(x), dr(rows);
    Buffer out = buffer_of(want.size() * 4, NULL);
    gather(0, at<float>(out), dx.to<float>(), dr.to<int>(), (int)rows.size(), D);
    expect_output<float>(out, want, what);
}

template <typename T> static void test_kv_store(int I) {
    char what[64];
    snprintf(what, sizeof what, "kv_store %s, width %d", type_name<T>(), I);
    if (!wanted(what)) return;
    const std::vector<int> slot = {2, 0, 4};
    const std::vector<T> qkv = as<T>(numbers((size_t)3 * 3 * I, 3, true));
    const OnDevice dq(qkv), ds(slot);
    Buffer out = buffer_of((size_t)5 * 2 * I * sizeof(T), NULL);
    kv_store<T>(0, at<T>(out), dq.to<T>(), ds.to<int>(), 3, I);
    std::vector<T> raw((size_t)5 * 2 * I);
    fetch(raw.data(), out, what);
    int wrong = 0, kept = 0;
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 2 * I; i++) wrong += raw[(size_t)slot[r] * 2 * I + i] != qkv[(size_t)(3 * r + 1) * I + i];
    for (int s : {1, 3})
        for (size_t i = 0; i < 2 * I * sizeof(T); i++) kept += ((uint8_t *)&raw[(size_t)s * 2 * I])[i] == 0xFF;
    EXPECT(&tally, wrong == 0, "%s: %d elements are wrong", what, wrong);
    EXPECT(&tally, kept == (int)(2 * 2 * I * sizeof(T)), "%s: slots of others were written", what);
}

// Five rows that answer two prompts; token t, whose ancestors lie in slots of other rows, as after a beam moved. What a
// row must not see holds NaN. cross: cross-attention, the shared part only, whatever t is.
template <typename T> static void test_past(int A, int H, int t, bool cross, bool biased) {
    char what[96];
    snprintf(what, sizeof what, "past %s, heads of %d, token %d%s%s", type_name<T>(), A, t, cross ? ", cross" : "",
             biased ? ", biased" : "");
    if (!wanted(what)) return;
    enum { ROWS = 5, MOST = 73, SLOTS = 44 };
    const int I = H * A, ldq = cross ? I : 3 * I, ldb = SLOTS + MOST;
    const std::vector<int> first_of = {2, 39}, n_of = {36, 3}, prompt_of = {0, 1, 0, 1, 1}, at_t = {t};
    const std::vector<float> q = numbers((size_t)ROWS * ldq, 3, true), bias = numbers((size_t)H * ldb, 5, false);
    std::vector<float> kv = numbers((size_t)SLOTS * 2 * I, 7, true);
    std::vector<float> fresh = numbers((size_t)MOST * ROWS * 2 * I, 11, true);
    std::vector<int> line(2 * ROWS * MOST, 99);
    int *half = &line[(size_t)((t + 1) % 2) * ROWS * MOST];
    std::vector<char> used(MOST * ROWS, 0);
    for (int r = 0; r < ROWS; r++)
        for (int k = 0; k <= t; k++) {
            half[r * MOST + k] = k == t ? r : (3 * r + 2 * k + 1) % ROWS;
            used[k * ROWS + half[r * MOST + k]] = 1;
        }
    for (int s = 0; s < MOST * ROWS; s++)
        if (!used[s]) for (int i = 0; i < 2 * I; i++) fresh[(size_t)s * 2 * I + i] = NAN;
    for (int s : {0, 1, 38, 42, 43}) for (int i = 0; i < 2 * I; i++) kv[(size_t)s * 2 * I + i] = NAN;
    std::vector<float> want((size_t)ROWS * I);
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < H; h++) {
            const int n = n_of[prompt_of[r]], all = n + (cross ? 0 : t + 1);
            std::vector<double> s(all), y(A, 0);
            std::vector<const float *> key(all);
            double top = -1e30, sum = 0;
            for (int j = 0; j < all; j++) {
                key[j] = j < n ? &kv[(size_t)(first_of[prompt_of[r]] + j) * 2 * I + h * A]
                               : &fresh[((size_t)(j - n) * ROWS + half[r * MOST + j - n]) * 2 * I + h * A];
                for (int k = 0; k < A; k++) s[j] += (double)q[(size_t)r * ldq + h * A + k] * key[j][k];
                s[j] = s[j] * 0.3f + (biased ? bias[(size_t)h * ldb + all - 1 - j] : 0);
                top = fmax(top, s[j]);
            }
            for (int j = 0; j < all; j++) sum += s[j] = exp(s[j] - top);
            for (int k = 0; k < A; k++) {
                for (int j = 0; j < all; j++) y[k] += s[j] / sum * key[j][I + k];
                want[(size_t)r * I + h * A + k] = y[k];
            }
        }
    const OnDevice dq(as<T>(q)), dkv(as<T>(kv)), dnew(as<T>(fresh)), dbias(bias), dline(line), dt(at_t);
    const OnDevice df(first_of), dn(n_of), dp(prompt_of);
    Buffer out = buffer_of(want.size() * sizeof(T), NULL);
    Past p = {};
    p.out = at<T>(out), p.q = dq.to<T>(), p.kv = dkv.to<T>(), p.kv_new = cross ? NULL : dnew.to<T>();
    p.first_of = df.to<int>(), p.n_of = dn.to<int>(), p.prompt_of = dp.to<int>(), p.line = dline.to<int>();
    p.t = dt.to<int>(), p.bias = biased ? dbias.to<float>() : NULL, p.ldb = ldb, p.ldq = ldq, p.R = ROWS;
    p.max_new = MOST, p.scale = 0.3f, p.rows = ROWS, p.H = H, p.A = A;
    for (int i = 0; i < 2; i++) attend_past<T>(0, p);
    expect_output<T>(out, want, what);
}

static void test_layers(void) {
    test_patches<float>(2, 13, 4);
    test_patches<bf16>(1, 14, 14);
    test_patches<bf16>(3, 29, 7);
    test_token_rows(3, 5, 33);
    test_token_rows(1, 2, 130);
    for (int rows : {1, 5, 9}) {
        test_norm<float>(rows, 33, rows == 5, rows == 9, rows == 9);
        test_norm<bf16>(rows, 130, rows == 9, rows == 5, false);
    }
    for (int act : {(int)ACT_NONE, (int)ACT_RELU, (int)ACT_GELU, (int)ACT_GELU_TANH})
        for (int F : {7, 40}) {
            test_activate<bf16>(3, F, act, act == ACT_GELU, F == 40);
            test_activate<float>(5, F, act, act == ACT_GELU_TANH, F == 7);
        }
    for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4}) {
        test_embed(dtype, 33, true);
        test_embed(dtype, 70, false);
    }
    test_gather(37);
    test_kv_store<bf16>(9);
    test_kv_store<float>(70);
    for (int A : {6, 80, 128}) test_past<bf16>(A, 2, A == 80 ? 12 : 3, false, A == 6);
    for (int A : {8, 80, 88, 128, 200}) test_past<bf16>(A, 1, A == 8 ? 0 : 70, A == 128, A % 5 == 0);
    test_past<bf16>(64, 2, -1, true, false);
    for (int A : {5, 40, 100, 256}) test_past<float>(A, 3, 2, A == 40, A == 5);
    test_past<float>(88, 1, 6, false, true);
    test_past<float>(200, 1, 0, false, false);
}

#endif
