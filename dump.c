// dump.c: stage outputs as a safetensors file (see dump.h).

#include "dump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void dump_add(void *dump, const char *name, const float *x, int rows, int cols) {
    // x (rows,cols)
    Dump *d = dump;
    const size_t bytes = (size_t)rows * cols * sizeof *x, start = d->data.len;
    char shape[64];
    if (!strcmp(name, "pixel_values")) snprintf(shape, sizeof shape, "3,%d,%d", d->S, d->S);
    else if (!strcmp(name, "logits")) snprintf(shape, sizeof shape, "%d", cols);
    else snprintf(shape, sizeof shape, "%d,%d", rows, cols);
    text_printf(&d->header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                d->header.len ? "," : "", name, shape, start, start + bytes);
    text_add(&d->data, (const char *)x, bytes);
}

static int write_all(FILE *f, const Dump *d) {
    // The header is padded with spaces so that the data start at a multiple of 8.
    const size_t len = d->header.len + 2, padded = (len + 7) & ~(size_t)7;
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)padded >> 8 * i);
    return fwrite(length, 8, 1, f) == 1 && fprintf(f, "{%s}%*s", d->header.data, (int)(padded - len), "") > 0 &&
           fwrite(d->data.data, d->data.len, 1, f) == 1 && fflush(f) == 0 && fsync(fileno(f)) == 0 ? 0 : -1;
}

int dump_write(const Dump *d, const char *path, Err *e) {
    if (text_check(&d->header, e) || text_check(&d->data, e)) return fail_in(e, "%s", path);
    if (!d->data.len) return fail(e, "%s: there is nothing to dump", path);
    // A pipe, a device or a link such as /dev/stdout is written to as it is: renaming would put a file in its place.
    struct stat st;
    const bool in_place = lstat(path, &st) == 0 && !S_ISREG(st.st_mode);
    Text tmp = {0};
    text_printf(&tmp, in_place ? "%s" : "%s.tmp", path);
    if (text_check(&tmp, e)) return -1;
    FILE *f = fopen(tmp.data, "wb");
    int bad = f ? write_all(f, d) : -1;
    int why = errno;
    // fsync is not possible on pipes and devices; that alone is no failure.
    if (f && bad && why == EINVAL) bad = 0;
    if (f && fclose(f) && !bad) { bad = -1; why = errno; }
    if (!bad && !in_place && rename(tmp.data, path)) { bad = -1; why = errno; }
    if (bad && f && !in_place) unlink(tmp.data);
    text_free(&tmp);
    return bad ? fail(e, "cannot write %s: %s", path, strerror(why)) : 0;
}

void dump_free(Dump *d) {
    text_free(&d->header);
    text_free(&d->data);
}
