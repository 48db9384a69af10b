// device.c: which backend a device name stands for (see device.h).
//
// In order: the shared object with the CUDA backend, which is looked for only when needed; device names.
// The program itself needs no CUDA library: blip2_cuda.so brings or finds what it needs, and where it cannot be loaded
// there is the CPU. It lies beside the program, or in ../lib/blip2 seen from there (make install).
// Not here: what a backend does (blip2.h, section 5).

#include "device.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const Backend *backend;
    const uint64_t *layout;
    int (*find)(int ordinal, Err *e);
} Cuda;

// The folder of the program, with a slash at its end; false when the system does not say.
static bool program_folder(char *out, size_t room) {
    const ssize_t n = readlink("/proc/self/exe", out, room - 1);
    if (n <= 0) return false;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    if (!slash) return false;
    slash[1] = 0;
    return true;
}

// The backend's libraries take a moment to load, and time and memory for nothing where there is no driver.
static bool driver_there(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver) dlclose(driver);
    return driver != NULL;
}

// Returns 0: loaded (and it stays so). Or -1 with e: there is no such file, it cannot be loaded, or, unless a GPU was
// asked for by name, there is no driver.
static int cuda_load(Cuda *c, bool by_name, Err *e) {
    static const char *const PLACES[] = {"blip2_cuda.so", "../lib/blip2/blip2_cuda.so"};
    char folder[4096], path[sizeof folder + 32];
    const bool known = program_folder(folder, sizeof folder);
    for (size_t i = 0; known && i < sizeof PLACES / sizeof *PLACES; i++) {
        snprintf(path, sizeof path, "%s%s", folder, PLACES[i]);
        if (access(path, R_OK)) continue;
        if (!by_name && !driver_there()) return fail(e, "no NVIDIA driver on this machine");
        void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!so) return fail(e, "cannot load the CUDA backend: %s", dlerror());
        c->backend = dlsym(so, "backend_cuda");
        c->layout = dlsym(so, "backend_cuda_layout");
        *(void **)&c->find = dlsym(so, "backend_cuda_find");    // POSIX's way to a function pointer
        const uint64_t layout = sizeof(Model) * 1000003 + sizeof(Limits) * 1009 + sizeof(Backend);
        if (!c->backend || !c->layout || !c->find || *c->layout != layout)
            return fail(e, "%s belongs to another version of this program; hint: run make again", path);
        return 0;
    }
    return fail(e, "this build has no CUDA backend%s",
                by_name ? "; hint: install the CUDA toolkit (it needs nvcc) and run make again" : "");
}

const Backend *device_cuda(Err *e) {
    Cuda cuda = {0};
    return cuda_load(&cuda, false, e) ? NULL : cuda.backend;
}

int device_find(const Backend **backend, int *ordinal, const char *device, Err *e) {
    const bool automatic = !strcmp(device, "auto");
    Cuda cuda = {0};
    *ordinal = 0;
    *backend = &backend_cpu;
    e->text[0] = 0;
    if (!strcmp(device, "cpu")) return 0;
    if (!automatic && (strncmp(device, "cuda", 4) || (device[4] && device[4] != ':')))
        return fail(e, "device '%s': expected auto, cpu, cuda or cuda:N", device);
    if (!automatic && device[4]) {
        const char *number = device + 5;
        const size_t digits = strspn(number, "0123456789");
        if (digits < 1 || digits > 9 || number[digits])
            return fail(e, "device '%s': expected a whole number from 0 behind the colon", device);
        *ordinal = atoi(number);
    }
    if (!cuda_load(&cuda, !automatic, e) && !cuda.find(*ordinal, e)) {
        *backend = cuda.backend;
        return 0;
    }
    return automatic ? 1 : fail_in(e, "device '%s'", device);
}
