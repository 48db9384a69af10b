// device.c: which backend a device name stands for (see device.h).
//
// Not here: what a backend does (blip2.h, section 5).

#include "device.h"

#include <stdlib.h>
#include <string.h>

int device_find(const Backend **backend, int *ordinal, const char *device, Err *e) {
    *ordinal = 0;
    *backend = &backend_cpu;
    if (!strcmp(device, "auto") || !strcmp(device, "cpu")) return 0;
    if (strncmp(device, "cuda", 4) || (device[4] && device[4] != ':'))
        return fail(e, "device '%s': expected auto, cpu, cuda or cuda:N", device);
    if (device[4]) {
        char *end;
        const long n = strtol(device + 5, &end, 10);
        if (device[5] < '0' || device[5] > '9' || *end || n > 1023)
            return fail(e, "device '%s': expected a whole number from 0 behind the colon", device);
        *ordinal = (int)n;
    }
    return fail(e, "device '%s': this build has no CUDA backend; hint: --device cpu", device);
}
