// test/fuzz/fuzz_model.c: weight files from a stranger: opening, checking, the tokenizer inside, and a whole answer
// when the file is accepted.
//
// An input is:   u8 mode | head of a file        what lies behind the head follows from a small generator
//   mode & 1: the checksum of the head is left as it is; & 2: so is the length in it; & 4: the head is the whole file
// In order: the mutator, which knows where the head's parts are; the file; an answer; the target.

#include "../../blip2.h"
#include "../../tokenizer.h"
#include "../fixture.h"
#include "fuzz.h"
#include "forward.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEADER = 64, RECORD = 96, N_INTS = 34, N_FLOATS = 15, DIRECTORY = 584, MOST_FILE = 1 << 18 };
static const uint32_t SPECIAL[] = {0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 255, 256, 1024, 4096, 65535, 65536, 262144,
                                   1048576, 4194303, 4194304, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x3F800000,
                                   0x7FC00000, 0x7F800000, 0x40000000, 0x33D6BF95};

static uint32_t special(uint32_t r) { return SPECIAL[r % (sizeof SPECIAL / sizeof *SPECIAL)]; }

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    if (size < 1 + DIRECTORY + RECORD || seed % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
    uint32_t random = seed | 1;
    uint8_t *head = data + 1;
    const size_t n = size - 1, tensors = read_u32(head + 40) % 512, tokenizer = read_u32(head + 44);
    const size_t records = (n - DIRECTORY) / RECORD < tensors ? (n - DIRECTORY) / RECORD : tensors;
    for (uint32_t times = 1 + fixture_random(&random) % 3; times; times--) {
        const uint32_t r = fixture_random(&random), what = r % 8, v = fixture_random(&random);
        const size_t at = DIRECTORY + RECORD * (records ? r / 8 % records : 0);
        if (what == 0) put_u32(head + HEADER + r / 8 % (N_INTS + N_FLOATS) * 4, special(v));
        else if (what == 1) put_u32(head + HEADER + r / 8 % N_INTS * 4, v % 40);
        else if (what == 2 && records) put_u32(head + at + 48 + v % 3 * 4, special(v / 3));
        else if (what == 3 && records) put_u64(head + at + 64 + v % 2 * 8, (uint64_t)(v / 2 % 1024) * 256);
        else if (what == 4 && records) LLVMFuzzerMutate(head + at, 48, 48);
        else if (what == 5) put_u32(head + 8 + v % 10 * 4, special(v / 10));
        else if (what == 6 && DIRECTORY + RECORD * tensors + tokenizer <= n && tokenizer)
            LLVMFuzzerMutate(head + DIRECTORY + RECORD * tensors, tokenizer, tokenizer);
        else if (what == 7 && r / 8 % 8 == 0) data[0] = (uint8_t)(v % 8);
    }
    return size;
}

// data -> the file of that name; false when it would be larger than MOST_FILE.
static bool write_file(int fd, const uint8_t *data, size_t size) {
    static uint8_t file[MOST_FILE], rest[MOST_FILE];
    if (!rest[1]) {   // small numbers in f32 and bf16, whatever the offset
        uint32_t random = 1;
        for (size_t i = 0; i < MOST_FILE; i++)
            rest[i] = (uint8_t)(i % 2 ? 0x3C | (fixture_random(&random) & 0x80) : fixture_random(&random));
    }
    Fixture f = {file, size - 1};
    memcpy(file, data + 1, size - 1);
    const int mode = data[0];
    if (!(mode & 4) && f.n >= HEADER) {
        const uint64_t wanted = read_u64(file + 24);
        if (wanted > MOST_FILE) return false;
        if (wanted >= f.n) memcpy(file + f.n, rest + f.n, wanted - f.n), f.n = wanted;
        else if (mode & 2) f.n = wanted;
    }
    if (!(mode & 2) && f.n >= 32) put_u64(file + 24, f.n);
    if (!(mode & 1)) fixture_seal(&f);
    return ftruncate(fd, (off_t)f.n) == 0 && pwrite(fd, file, f.n, 0) == (ssize_t)f.n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("weights", MFD_CLOEXEC);
        CHECK(fd >= 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (size < 1 || size > MOST_FILE || !write_file(fd, data, size)) return 0;
    Model m;
    Err e = {0};
    if (model_open(&m, path, &e)) {
        CHECK(e.text[0] && !m.file);
        return 0;
    }
    (void)model_verify(&m, &e);
    Bytes choices = {data + 1 + DIRECTORY, 16};
    forward(&m, &choices);
    model_close(&m);
    return 0;
}
