// device.h: which backend a device name stands for. The one place where that is decided.
#ifndef DEVICE_H
#define DEVICE_H

#include "blip2.h"

// device: "auto", "cpu", "cuda" or "cuda:N" -> *backend, and *ordinal, the number N of the GPU (0 unless given).
// "auto" falls back to the CPU. Returns 0, or -1 with e: the device is not there, or there is none of that name.
int device_find(const Backend **backend, int *ordinal, const char *device, Err *e);

#endif
