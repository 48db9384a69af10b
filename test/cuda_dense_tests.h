// test/cuda_dense_tests.h: part of test_cuda.cu: dense layers of every dtype and form against sums in double.
//
// In order: one layer, the shapes. Needs blip2.cu and the buffers of test_cuda.cu.
// Not here: fc2 without dead neurons (cuda_passes.h), layers within a model (test_cuda.cu).
#ifndef CUDA_DENSE_TESTS_H
#define CUDA_DENSE_TESTS_H

// form: 0 rows kernel, 1 the same with a norm in front, 2 own tensor-core kernel, 3 the library, 4 tiles of 88 rows;
// shared_most: of the device, 0 for all there is; little of it splits columns over blocks
template <typename T>
static void test_dense(int dtype, int form, int rows, int OC, int C, int act, bool gated, int shared_most = 0) {
    char what[128];
    snprintf(what, sizeof what, "dense dtype %d, %zu-byte activations, form %d, (%d,%d) x (%d,%d)%s", dtype, sizeof(T),
             form, rows, C, OC, C, gated ? ", gated" : "");
    if (!wanted(what)) return;
    const bool small = sizeof(T) == 2;
    const Weight w = weight_of(dtype, OC * (gated ? 2 : 1), C, 7 + OC);
    std::vector<float> x = numbers((size_t)rows * C, 3, small && form != 1), b = numbers(OC, 5, small);
    std::vector<float> nw = numbers(C, 11, false), nb = numbers(C, 13, false), normed = x, want((size_t)rows * OC);
    if (form == 1)
        for (int t = 0; t < rows; t++) {
            double mean = 0, var = 0;
            for (int c = 0; c < C; c++) mean += x[t * C + c] / C;
            for (int c = 0; c < C; c++) var += (x[t * C + c] - mean) * (x[t * C + c] - mean) / C;
            for (int c = 0; c < C; c++) normed[t * C + c] = (x[t * C + c] - mean) / sqrt(var + 1e-5) * nw[c] + nb[c];
        }
    for (int t = 0; t < rows; t++)
        for (int o = 0; o < OC; o++) {
            double y = b[o], g = 0;
            for (int c = 0; c < C; c++) {
                y += (double)normed[t * C + c] * w.values[(size_t)o * C + c];
                if (gated) g += (double)normed[t * C + c] * w.values[(size_t)(o + OC) * C + c];
            }
            if (act == ACT_GELU) y = 0.5 * y * (1 + erf(y * sqrt(0.5)));
            if (act == ACT_RELU && y < 0) y = 0;
            want[t * OC + o] = gated ? y * g : y;
        }
    const std::vector<uint16_t> x16 = narrow(x);
    Buffer dw = buffer_of(w.bytes.size(), w.bytes.data()), dx32 = buffer_of(x.size() * 4, x.data());
    Buffer dx = buffer_of(x.size() * sizeof(T), small ? (const void *)x16.data() : x.data());
    Buffer db = buffer_of(b.size() * 4, b.data()), dnw = buffer_of(nw.size() * 4, nw.data());
    Buffer dnb = buffer_of(nb.size() * 4, nb.data()), out = buffer_of(want.size() * 4, NULL);
    const Tensor tensor = {at<void>(dw), at<uint8_t>(dw) + w.scale_at, dtype, OC * (gated ? 2 : 1), C};
    Dense d = form == 1 ? dense_norm(at<void>(out), OUT_F32, at<float>(dx32), at<float>(dnw), at<float>(dnb), 1e-5f,
                                     tensor, at<float>(db), act, rows)
                        : dense_of(at<void>(out), OUT_F32, at<void>(dx), tensor, at<float>(db), act, rows);
    d.OC = OC, d.gated = gated, d.norm_scale = 1;
    Device dev = {};
    CUDA_CHECK(cudaDeviceGetAttribute(&dev.sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA_CHECK(cudaDeviceGetAttribute(&dev.shared_most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    dev.sms = dev.sms > 4 ? 4 : dev.sms;   // so that blocks take several turns
    if (shared_most) dev.shared_most = shared_most;
    Lt lt = {};
    const size_t workspace = form == 4 ? 1 << 18 : 1 << 16;
    Buffer scratch = buffer_of(workspace, NULL), tickets = buffer_of(64 * sizeof(int), NULL);   // one for each unit
    CUDA_CHECK(cudaMemset(at<void>(tickets), 0, tickets.bytes));
    dev.partial = at<float>(scratch), dev.partial_bytes = workspace, dev.tickets = at<int>(tickets);
    if (form < 2) {
        EXPECT(&tally, rows_dense<T>(0, d, dev), "%s: does not fit", what);
        CUDA_CHECK(cudaDeviceSynchronize());
        std::vector<int> left(64);
        CUDA_CHECK(cudaMemcpy(left.data(), at<int>(tickets), left.size() * sizeof(int), cudaMemcpyDeviceToHost));
        int taken = 0;
        for (int n : left) taken += n != 0;
        EXPECT(&tally, taken == 0, "%s: %d tickets were not given back", what, taken);
    } else if (form == 2) gemm(0, d);
    else if (form == 4) {
        EXPECT(&tally, tile_fits(d), "%s: no shape for it", what);
        dev.sms *= 8;
        tile_dense(0, d, dev);
    }
    else {
        CUBLAS_CHECK(cublasLtCreate(&lt.handle));
        lt.workspace = at<void>(scratch), lt.workspace_bytes = workspace;
        EXPECT(&tally, lt_dense(0, &lt, d, at<float>(db), act == ACT_RELU), "%s: the library cannot", what);
    }
    std::vector<float> got(want.size());
    fetch(got.data(), out, what);
    const Diff diff = diff_floats(got.data(), want.data(), want.size());
    const double bound = small ? BF16_BOUND : F32_BOUND;
    EXPECT(&tally, diff.rel_l2 <= bound, "%s: %.2e, bound %.0e", what, diff.rel_l2, bound);
    lt_close(&lt);
    for (Buffer *u : {&dw, &dx32, &dx, &db, &dnw, &dnb, &scratch, &tickets}) CUDA_CHECK(cudaFree(u->base));
}

static void test_dense_layers(void) {
    for (int dtype : {DT_BF16, DT_INT8, DT_INT4}) {   // tensor cores, up to 64 rows
        const bool split = dtype != DT_BF16;
        test_dense<bf16>(dtype, 1, 4, 40, 336, ACT_GELU, true);
        test_dense<bf16>(dtype, 0, 5, 23, 336, ACT_NONE, true, 80 << 10);
        test_dense<bf16>(dtype, 1, 2, 7, 1040, ACT_RELU, false, 80 << 10);
        test_dense<bf16>(dtype, 0, 13, 23, 208, ACT_NONE, split, 100 << 10);
        test_dense<bf16>(dtype, 0, 29, 40, 544, ACT_NONE, !split, 64 << 10);
        test_dense<bf16>(dtype, 0, 64, 50, 176, ACT_RELU, split);
    }
    for (int dtype : {DT_BF16, DT_INT8, DT_INT4}) {   // tiles of 64 or 88 rows
        test_dense<bf16>(dtype, 4, 88, 130, 144, ACT_GELU, false);
        test_dense<bf16>(dtype, 4, 67, 24, 1104, ACT_GELU, true);   // columns split over two blocks
    }
    test_dense<bf16>(DT_INT4, 4, 65, 130, 120, ACT_NONE, false);    // an odd number of groups, the last one not whole
    test_dense<bf16>(DT_INT8, 4, 89, 24, 80, ACT_RELU, false);
    test_dense<bf16>(DT_INT4, 4, 177, 70, 72, ACT_RELU, true);
    test_dense<bf16>(DT_INT8, 4, 257, 9, 16, ACT_NONE, false);
    test_dense<bf16>(DT_BF16, 3, 70, 40, 64, ACT_RELU, false);
    test_dense<float>(DT_F32, 3, 20, 24, 40, ACT_NONE, false);
    const int shapes[][2] = {{40, 64}, {7, 33}, {130, 160}, {65, 588}};
    for (const auto &s : shapes) {
        for (int rows : {1, 2, 3, 8, 11}) {
            test_dense<float>(DT_F32, rows % 2, rows, s[0], s[1], ACT_NONE, rows == 3);
            for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4})
                test_dense<bf16>(dtype, rows % 2, rows, s[0], s[1], ACT_GELU, rows == 2);
        }
        for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4})
            test_dense<bf16>(dtype, 2, 70, s[0], s[1], ACT_RELU, false);
    }
}

#endif
