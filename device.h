// device.h: which backend a device name stands for. The one place where that is decided.
#ifndef DEVICE_H
#define DEVICE_H

#include "blip2.h"

// device: "auto", "cpu", "cuda" or "cuda:N" -> *backend, and *ordinal, the number N of the GPU (0 unless given).
// Returns 0. Or, only for "auto", 1 with why in e: the CPU, because there is no CUDA backend, no driver, no GPU, or one
// that will not do. Or -1 with e: the device is not there, cannot be used, or there is none of that name.
int device_find(const Backend **backend, int *ordinal, const char *device, Err *e);

// The CUDA backend, for what it can say without a GPU (bytes_needed); NULL with e when this build has none.
const Backend *device_cuda(Err *e);

#endif
