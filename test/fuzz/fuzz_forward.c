// test/fuzz/fuzz_forward.c: weight files that are valid in every byte, with hyperparameters and numbers that nobody
// would choose: one head of size 1, a patch as large as the image, a vocabulary of two words, weights that are NaN.
//
// An input is a list of choices (fuzz.h). The file is built by test/fixture.c, opened, verified and asked.

#include "../fixture.h"
#include "forward.h"
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

// Fields from a few bytes each, so that most cases are accepted.
static Config choose(Bytes *b) {
    Config c = fixture_config(take_in(b, OPT, T5));
    c.P = take_in(b, 1, 9), c.S = c.P * take_in(b, 1, 3) + take_in(b, 0, 3);
    c.HV = take_in(b, 1, 3), c.DV = c.HV * take_in(b, 1, 9), c.FV = take_in(b, 1, 40), c.LV = take_in(b, 1, 2);
    c.HQ = take_in(b, 1, 3), c.DQ = c.HQ * take_in(b, 1, 9), c.FQ = take_in(b, 1, 40), c.LQ = take_in(b, 1, 3);
    c.XQ = take_in(b, 1, 4), c.Q = take_in(b, 1, 5);
    c.HL = take_in(b, 1, 3), c.AL = take_in(b, 1, 17), c.DL = take_in(b, 1, 40), c.FL = take_in(b, 1, 40);
    c.LD = take_in(b, 1, 2), c.V = take_in(b, 2, 400), c.act = take_in(b, 0, 2), c.tied = take_in(b, 0, 1);
    c.image_token = take_in(b, -1, 5), c.eos = take_in(b, 0, 3), c.pad = take_in(b, 0, 3);
    if (c.family == T5) {
        c.LE = take_in(b, 1, 2), c.start = take_in(b, 0, 3);
        c.buckets = 2 * take_in(b, 2, 40), c.max_distance = c.buckets / 2 + take_in(b, 0, 200);
    } else c.bos = take_in(b, -1, 3), c.positions = c.Q + take_in(b, 0, 30);
    c.repeat_penalty = take_in(b, 0, 3) ? 1 : (float)take_in(b, 0, 1000);
    c.temp = take_in(b, 0, 3) ? 1 : 0.001f * (float)take(b, 3);
    c.top_p = take_in(b, 0, 3) ? 0.9f : 0.001f * (float)take_in(b, 0, 1001);
    c.top_k = take_in(b, 0, 60);
    for (int i = 0, n = take_in(b, 0, 40); i < n; i++) c.prompt[i] = (char)take(b, 1), c.prompt[i + 1] = 0;
    return c;
}

// A tokenizer of 256 pieces, the bytes themselves, without merges, for any V of at least 256; else of V pieces.
static size_t small_tokenizer(uint8_t *p, int V) {
    const uint32_t ids = (uint32_t)(V < 256 ? V : 256);
    const uint32_t head[16] = {0x4B543242, 1, 1, 0, ids, 0, 0, 0, 1, 0, 0, 0, 0, 0, ids};
    size_t at = 0;
    for (int i = 0; i < 16; i++, at += 4) put_u32(p + at, head[i]);
    put_u32(p + at, ids - 1), at += 4;   // prefix
    for (uint32_t i = 0; i <= ids; i++, at += 4) put_u32(p + at, i);
    memset(p + at, 1, ids), at += ids;
    for (uint32_t i = 0; i < 256; i++, at += 4) put_u32(p + at, i % ids);
    for (uint32_t i = 0; i < ids; i++) p[at++] = (uint8_t)i;
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    static uint8_t tokenizer[4096];
    if (fd < 0) {
        fd = memfd_create("weights", MFD_CLOEXEC);
        CHECK(fd >= 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    Bytes b = {data, size};
    Config c = choose(&b);
    c.N = 1 + c.S / c.P * (c.S / c.P), c.NX = (c.LQ + c.XQ - 1) / c.XQ, c.IL = c.HL * c.AL;
    const int dtype = take_in(&b, DT_F32, DT_BF16);
    Fixture f = fixture_make(&c, dtype, tokenizer, small_tokenizer(tokenizer, c.V), 1 + take(&b, 1));
    const uint64_t head = read_u64(f.data + 16);
    for (int spoilt = take_in(&b, 0, 15); spoilt > 12; spoilt--) {   // some numbers that are none, or huge
        static const uint32_t BITS[] = {0x7FC00000, 0xFF800000, 0x7F800000, 0x7F7FFFFF, 0x00000001, 0xFFFFFFFF};
        put_u32(f.data + head + take(&b, 3) % ((f.n - head) / 4) * 4, BITS[take_in(&b, 0, 5)]);
    }
    CHECK(ftruncate(fd, (off_t)f.n) == 0 && pwrite(fd, f.data, f.n, 0) == (ssize_t)f.n);
    fixture_free(&f);
    Model m;
    Err e = {0};
    if (model_open(&m, path, &e)) CHECK(e.text[0]);
    else {
        (void)model_verify(&m, &e);
        forward(&m, &b);
        model_close(&m);
    }
    return 0;
}
