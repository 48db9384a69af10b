// test/cuda_batches.h: models whose widths are multiples of 16: whole batches go through the tensor-core kernels.
//
// In order: such a model; the step behind the end; more images than go through at once; all of them.
// Not here: odd widths, single prompts (test_cuda.cu).
#ifndef TEST_CUDA_BATCHES_H
#define TEST_CUDA_BATCHES_H

static Config wide_config(int family) {
    Config c = fixture_config(family);
    c.DV = 32, c.HV = 2, c.FV = 48, c.DQ = 16, c.HQ = 2, c.FQ = 32, c.DL = 48, c.HL = 3, c.AL = 16, c.FL = 80, c.V = 90;
    c.IL = c.HL * c.AL;
    return c;
}

// A step that is queued behind the end reads no weights: logits and keys stay as they were, but not when the flag says
// that the search goes on.
static void test_idle(const Model *m, const char *model, bool f32, int rows) {
    char what[96];
    snprintf(what, sizeof what, "%s: idle, %d rows", model, rows);
    if (!wanted(what)) return;
    const std::vector<uint8_t> pixels = pixels_of(&m->config, 1);
    Choice how = beams_of(rows < 64 ? rows : 1, rows, 2);
    how.sample = how.beams == 1;
    Run *r = (Run *)open_one(m, &how, 8, what);
    if (!r) return;
    Step step;
    backend_cuda.encode(r, pixels.data(), 1);
    backend_cuda.prompt(r, &one_prompt, 1, &how);
    while (backend_cuda.step(r, &step)) {}
    CUDA_CHECK(cudaStreamSynchronize(r->s));
    const size_t n = (size_t)rows * m->config.V * 4, kv = (size_t)8 * rows * 2 * m->config.IL * (f32 ? 4 : 2);
    const auto changed = [&](void *on_device, size_t bytes) {
        std::vector<uint8_t> now(bytes);
        CUDA_CHECK(cudaMemcpy(now.data(), on_device, bytes, cudaMemcpyDeviceToHost));
        size_t other = 0;
        for (uint8_t x : now) other += x != 0x55;
        return other;
    };
    for (int going = 0; going < 2; going++) {
        CUDA_CHECK(cudaMemsetAsync(r->logits, 0x55, n, r->s));
        CUDA_CHECK(cudaMemsetAsync(r->kv_new, 0x55, kv, r->s));
        if (going) CUDA_CHECK(cudaMemsetAsync(&((Search *)r->search_block)->more, 1, sizeof(bool), r->s));
        if (f32) feed<float>(r);
        else feed<bf16>(r);
        CUDA_CHECK(cudaStreamSynchronize(r->s));
        const size_t x = changed(r->logits, n), y = changed(r->kv_new, kv);
        EXPECT(&tally, (x > 0) == going && (y > 0) == going, "%s: a step %s: another result, %zu bytes of logits and"
               " %zu of keys were changed", what, going ? "that goes on" : "behind the end", x, y);
    }
    backend_cuda.close(r);
}

// Images in two turns, twice (the second time from graphs): each as it would be alone.
static void test_turns(const Model *m, const char *model, bool f32) {
    char what[96];
    snprintf(what, sizeof what, "%s: turns", model);
    if (!wanted(what)) return;
    const int B = IMAGES_AT_ONCE + 2;
    const size_t n = (size_t)m->config.Q * m->config.DL, bytes = (size_t)m->config.S * m->config.S * 3;
    const std::vector<uint8_t> pixels = pixels_of(&m->config, B);
    Err e;
    Limits lim = {};
    lim.B = lim.R = B, lim.prompt = lim.max_new = 2, lim.threads = 1;
    Run *r = (Run *)backend_cuda.open(m, &lim, &e);
    EXPECT(&tally, r, "%s: %s", what, e.text);
    if (!r) return;
    std::vector<float> got(B * n), alone(n);
    for (int k = 0; k < 2; k++) {
        CUDA_CHECK(cudaMemsetAsync(r->image_rows, 0xFF, got.size() * sizeof(float), r->s));
        backend_cuda.encode(r, pixels.data(), B);
        CUDA_CHECK(cudaMemcpy(got.data(), r->image_rows, got.size() * sizeof(float), cudaMemcpyDeviceToHost));
        for (int b : {0, B - 3, B - 2, B - 1}) {
            backend_cuda.encode(r, pixels.data() + b * bytes, 1);
            CUDA_CHECK(cudaMemcpy(alone.data(), r->image_rows, n * sizeof(float), cudaMemcpyDeviceToHost));
            const Diff d = diff_floats(got.data() + b * n, alone.data(), n);
            const double bound = f32 ? 1e-5 : 3e-2;
            EXPECT(&tally, d.rel_l2 <= bound, "%s: image %d, round %d: %.2e, bound %.0e", what, b, k, d.rel_l2, bound);
        }
    }
    backend_cuda.close(r);
}

static void test_batches(void) {
    every_fixture("wide model", wide_config, 777, [](const Model *m, const char *what, int dtype) {
        test_idle(m, what, dtype == DT_F32, 2);
        if (dtype != DT_F32) test_idle(m, what, false, 90);
        if (dtype == DT_BF16) test_turns(m, what, false);
        if (dtype != DT_F32) test_greedy(m, what, false, 2, 66);        // over 64 rows in every pass
    });
}

#endif
