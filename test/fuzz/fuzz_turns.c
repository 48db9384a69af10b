// test/fuzz/fuzz_turns.c: --context files and what becomes of them. An input is a byte that says how many bytes a
// prompt may have, divided by 8, and a file.

#include "../../turns.h"
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

static int count(void *arg, const char *text, size_t n) {
    (void)arg;
    CHECK(strlen(text) == n);
    return (int)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes b = {data, size};
    const int most = 8 * (int)take(&b, 1);
    const int fd = memfd_create("context", MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, b.p, b.n) == (ssize_t)b.n);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    Turns t = {0};
    Err e = {0};
    const int bad = turns_read(&t, path, &e);
    CHECK(bad ? e.text[0] != 0 : t.n >= 0);
    if (!bad) {
        Text prompt = {0};
        const int dropped = turns_prompt(&prompt, &t, "why?", most, count, NULL, &e);
        CHECK(dropped >= 0 && dropped == t.first && t.first <= t.n);
        CHECK(t.first == t.n || prompt.len <= (size_t)most);
        CHECK(turns_prompt(&prompt, &t, "why?", most, count, NULL, &e) == 0);   // once is enough
        text_free(&prompt);
    }
    turns_free(&t);
    close(fd);
    return 0;
}
