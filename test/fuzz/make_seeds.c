// test/fuzz/make_seeds.c FOLDER: seeds for the targets that read weight files and tokenizer sections, from
// test/fixture.c and test/data: FOLDER/model, FOLDER/tokenizer and FOLDER/forward, which must be there.

#include "../fixture.h"

#include <stdlib.h>
#include <string.h>

static size_t read_file(uint8_t *to, size_t room, const char *path) {
    FILE *f = fopen(path, "rb");
    CHECK(f);
    const size_t n = fread(to, 1, room, f);
    fclose(f);
    return n;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    static uint8_t section[1 << 16], out[1 << 17];
    static const char *const names[] = {"bpe", "unigram", "unigram_trim"};
    static const char text[] =
        "a photo of two dogs, isn't it? \xE2\x96\x81</s><pad> 'll don't 3.1 \xC3\xA9\xEF\xAC\x81";
    char path[512];
    for (int k = 0; k < 3; k++) {
        snprintf(path, sizeof path, "test/data/tokenizers/%s.tok", names[k]);
        const size_t n = read_file(section, sizeof section, path);
        memcpy(out, section, n);
        memcpy(out + n, text, sizeof text);
        out[n + sizeof text] = sizeof text, out[n + sizeof text + 1] = 0, out[n + sizeof text + 2] = 3;
        snprintf(path, sizeof path, "%s/tokenizer/section-%s", argv[1], names[k]);
        fixture_write(path, out, n + sizeof text + 3);
        memcpy(out, text, sizeof text - 1);
        out[sizeof text - 1] = (uint8_t)k;
        snprintf(path, sizeof path, "%s/tokenizer/text-%s", argv[1], names[k]);
        fixture_write(path, out, sizeof text);
        for (int dtype = DT_F32; dtype <= DT_INT4; dtype++) {   // heads of weight files
            Config c = fixture_config(k ? T5 : OPT);
            c.V = 500;   // the tokenizers have up to 481 ids
            Fixture f = fixture_make(&c, dtype, section, n, 1);
            const size_t head = read_u64(f.data + 16);
            out[0] = 0;
            memcpy(out + 1, f.data, head);
            fixture_free(&f);
            snprintf(path, sizeof path, "%s/model/%s-%d", argv[1], names[k], dtype);
            fixture_write(path, out, head + 1);
        }
    }
    uint32_t random = 1;
    for (int k = 0; k < 64; k++) {
        for (int i = 0; i < 120; i++) out[i] = (uint8_t)fixture_random(&random);
        snprintf(path, sizeof path, "%s/forward/%d", argv[1], k);
        fixture_write(path, out, 120);
    }
    return 0;
}
