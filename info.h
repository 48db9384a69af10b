// info.h: --info: what is in a weight file and what it needs, from its head alone: no tensor is read.
#ifndef INFO_H
#define INFO_H

#include "common.h"
#include "libblip2.h"

// out <- some lines for people, or one JSON object and a newline. path: the weight file's name; device: as --device has
// it; b need not be started.
void info_add(Text *out, const blip2 *b, const char *path, const char *device, bool json);

// Bytes of weights that one decoding step reads, whatever the number of rows.
uint64_t info_step_bytes(const blip2 *b);

#endif
