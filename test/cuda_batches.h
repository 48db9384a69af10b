// test/cuda_batches.h: models whose widths are multiples of 16: whole batches go through the tensor-core kernels.
//
// In order: such a model; the step behind the end; all of them.
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
static void test_idle(const Model *m, const char *model, bool f32) {
    char what[96];
    snprintf(what, sizeof what, "%s: idle", model);
    if (!wanted(what)) return;
    const std::vector<uint8_t> pixels = pixels_of(&m->config, 1);
    const Choice how = beams_of(2, 2, 2);
    Run *r = (Run *)open_one(m, &how, 8, what);
    if (!r) return;
    Step step;
    backend_cuda.encode(r, pixels.data(), 1);
    backend_cuda.prompt(r, &one_prompt, 1, &how);
    while (backend_cuda.step(r, &step)) {}
    CUDA_CHECK(cudaStreamSynchronize(r->s));
    const size_t n = (size_t)2 * m->config.V * 4, kv = (size_t)8 * 2 * 2 * m->config.IL * (f32 ? 4 : 2);
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

static void test_batches(void) {
    every_fixture("wide model", wide_config, 777, [](const Model *m, const char *what, int dtype) {
        test_idle(m, what, dtype == DT_F32);
        if (dtype != DT_F32) test_greedy(m, what, false, 2, 66);        // over 64 rows in every pass
    });
}

#endif
