// test/cuda_sim/cuda_sim_memory.cpp: every memory access: is it allowed, and is it ordered after what it depends on?
//
// In order: address ranges, allocations, the record of accesses and the rules of order, sim_access, the calls that
// -fsanitize=thread puts at each access, faults.
//
// Device memory, pinned memory, shared memory and the stacks of fibers each have an address range, so that an address
// tells what it is. Device memory is out of reach (PROT_NONE) unless an operation runs. For every two bytes of device,
// pinned and shared memory the last writer and the last reader are kept: operation, block, thread and time. Accesses
// that conflict must be ordered: by streams and events between operations, by barriers within a block, by a fence and
// an atomic between blocks. It does not matter whether the order that was drawn made the result wrong.
#include "sim_internal.h"
#include <algorithm>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const uintptr_t DEVICE_SPAN = (uintptr_t)32 << 30, PINNED_SPAN = (uintptr_t)4 << 30;
enum { PAGE = 4096, OFFSET = 256, GRANULE = 2 };

extern "C" void *__asan_region_is_poisoned(void *, size_t) __attribute__((weak));
extern "C" void __asan_poison_memory_region(void const volatile *, size_t) __attribute__((weak));

// ---------------------------------------------------------------------------------------------------------
// Ranges

enum { MANY_WARP = 1, MANY_BLOCK = 2, MANY_GRID = 4, ATOMIC = 8, PENDING = 16, BYTE = 32 };
struct Record { uint32_t op, block, tick; uint16_t thread, flags; };
struct Shadow { Record w, r; };

struct Allocation { uintptr_t start; size_t bytes; bool live; int number; };
struct Range {
    uintptr_t base, bytes, top;
    Shadow *shadow;
    std::vector<Allocation> all;                // by address
    Allocation *last;
    const char *name;
};
static Range device = {0, 0, 0, NULL, {}, NULL, "device"}, pinned = {0, 0, 0, NULL, {}, NULL, "pinned"};
static Range shared = {0, 0, 0, NULL, {}, NULL, "shared"};
static uintptr_t stack_start, stack_bytes;
static size_t used, total = (size_t)8 << 30;
static int open_depth;

static void *reserve(size_t bytes, int protection) {
    void *p = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) sim_fail("memory", "cannot reserve %zu bytes of address space", bytes);
    return p;
}

static void make_range(Range *r, size_t bytes, int protection) {
    r->base = r->top = (uintptr_t)reserve(bytes, protection);
    r->bytes = bytes;
    r->shadow = (Shadow *)reserve(bytes / GRANULE * sizeof(Shadow), PROT_READ | PROT_WRITE);
}

static void on_fault(int, siginfo_t *info, void *);

void sim_memory_init() {
    if (device.base) return;
    make_range(&device, DEVICE_SPAN, PROT_NONE);
    make_range(&pinned, PINNED_SPAN, PROT_READ | PROT_WRITE);
    make_range(&shared, (size_t)SHARED_SLOTS * SHARED_SPAN, PROT_READ | PROT_WRITE);
    stack_t alternative = {reserve(1 << 18, PROT_READ | PROT_WRITE), 0, 1 << 18};
    sigaltstack(&alternative, NULL);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
}

void sim_stack_region(uintptr_t start, uintptr_t bytes) { stack_start = start, stack_bytes = bytes; }
uint8_t *sim_shared_arena(int slot) { return (uint8_t *)shared.base + (size_t)slot * SHARED_SPAN; }

static Range *range_of(uintptr_t a) {
    return a - device.base < device.bytes ? &device : a - pinned.base < pinned.bytes ? &pinned :
           a - shared.base < shared.bytes ? &shared : NULL;
}

Region sim_region(const void *p) {
    Range *r = range_of((uintptr_t)p);
    return r == &device ? R_DEVICE : r == &pinned ? R_PINNED : r == &shared ? R_SHARED : R_OTHER;
}

// ---------------------------------------------------------------------------------------------------------
// Allocations: never at the same address twice, aligned to 256 bytes and no better, poisoned with NaN.

void sim_memory(size_t bytes) { total = bytes; }
size_t sim_used() { return used; }
size_t sim_total() { return total; }

size_t sim_unfreed() {
    size_t n = 0;
    for (Range *r : {&device, &pinned}) for (Allocation &a : r->all) n += a.live;
    return n;
}

void sim_open(bool open) {
    open_depth += open ? 1 : -1;
    if (open_depth != (open ? 1 : 0) || device.top == device.base) return;
    mprotect((void *)device.base, device.top - device.base, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void *sim_allocate(Region where, size_t bytes) {
    Range *r = where == R_DEVICE ? &device : &pinned;
    size_t span = (OFFSET + bytes + PAGE) / PAGE * PAGE;
    if (r->top + span > r->base + r->bytes) sim_fail("memory", "the simulator's %s range is used up", r->name);
    if (r == &device) {
        if (bytes > total - used) return NULL;
        used += bytes;
    }
    Allocation a = {r->top + OFFSET, bytes, true, (int)r->all.size()};
    r->top += span;
    r->all.push_back(a);
    r->last = NULL;
    if (r == &device) {
        if (open_depth) mprotect((void *)(r->top - span), span, PROT_READ | PROT_WRITE);
        sim_open(true);
    }
    memset((void *)a.start, 0xFF, bytes);
    if (r == &device) {
        sim_open(false);
    } else if (__asan_poison_memory_region) {
        __asan_poison_memory_region((void *)(a.start - OFFSET), OFFSET);
        __asan_poison_memory_region((void *)(a.start + bytes), r->top - (a.start + bytes));
    }
    return (void *)a.start;
}

static Allocation *allocation_of(Range *r, uintptr_t a) {
    if (r->last && a - r->last->start < r->last->bytes) return r->last;
    size_t lo = 0, hi = r->all.size();
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (r->all[mid].start <= a) lo = mid + 1;
        else hi = mid;
    }
    if (lo == 0) return NULL;
    return r->last = &r->all[lo - 1];
}

bool sim_release(Region where, void *p) {
    Range *r = where == R_DEVICE ? &device : &pinned;
    Allocation *a = sim_region(p) == where ? allocation_of(r, (uintptr_t)p) : NULL;
    if (!a || a->start != (uintptr_t)p || !a->live) return false;
    a->live = false;
    if (r == &device) used -= a->bytes;
    uintptr_t first = (a->start + PAGE - 1) / PAGE * PAGE, last = (a->start + a->bytes) / PAGE * PAGE;
    if (first < last) madvise((void *)first, last - first, MADV_DONTNEED);
    if (r == &pinned && __asan_poison_memory_region) __asan_poison_memory_region((void *)a->start, a->bytes);
    return true;
}

bool sim_inside(const void *p, size_t bytes, Region *where) {
    Region region = sim_region(p);
    if (where) *where = region;
    if (region != R_DEVICE && region != R_PINNED) return false;
    Allocation *a = allocation_of(region == R_DEVICE ? &device : &pinned, (uintptr_t)p);
    return a && a->live && (uintptr_t)p - a->start <= a->bytes && bytes <= a->bytes - ((uintptr_t)p - a->start);
}

std::string sim_describe(uintptr_t p) {
    char text[300];
    Range *r = range_of(p);
    if (r == &shared && sim_self) {
        BlockState *b = sim_self->block;
        long at = (long)(p - (uintptr_t)b->shared);
        const BlockState::Piece *best = NULL;
        for (const BlockState::Piece &s : b->pieces) {
            if ((long)s.start <= at && (!best || s.start > best->start)) best = &s;
        }
        if (!best) snprintf(text, sizeof text, "%p, shared memory of another block or before all pieces", (void *)p);
        else snprintf(text, sizeof text, "byte %ld of shared '%s' (%u bytes)", at - (long)best->start, best->name,
                      best->bytes);
    } else if (r && r != &shared) {
        Allocation *a = allocation_of(r, p);
        if (!a) snprintf(text, sizeof text, "%p, before the first %s allocation", (void *)p, r->name);
        else snprintf(text, sizeof text, "byte %zu of %s allocation %d (%zu bytes%s)", (size_t)(p - a->start), r->name,
                      a->number, a->bytes, a->live ? "" : ", freed");
    } else {
        const bool local = p - stack_start < stack_bytes;
        snprintf(text, sizeof text, "%p%s", (void *)p, local ? ", a thread's local memory" : "");
    }
    return text;
}

// ---------------------------------------------------------------------------------------------------------
// Order

// Whether what rec tells happened before what runs now.
static bool ordered(const Record &rec) {
    if (rec.op == 0) return true;
    if (rec.op != sim_op->id) return clock_has(sim_self && !sim_self->waited ? sim_op->early : sim_op->clock, rec.op);
    if (!sim_self) return true;
    const BlockState *b = sim_self->block;
    if (rec.flags & MANY_GRID) return b->acquire_tick > rec.tick;
    if (rec.block != b->linear) {
        uint32_t published = sim_releases[rec.block];
        return published > rec.tick && b->acquire_tick > published;
    }
    if (rec.tick < b->barrier_tick || rec.flags & BYTE) return true;
    if (rec.flags & MANY_BLOCK) return false;
    if (rec.thread / 32 != sim_self->tid / 32) return false;
    if (rec.tick < *sim_self->warp_tick) return true;
    if (!(rec.flags & MANY_WARP) && rec.thread == sim_self->tid) return true;
    return rec.tick < sim_self->part_tick && sim_self->part_mask >> (rec.thread % 32) & 1 && !(rec.flags & MANY_WARP);
}

[[noreturn]] static void race(const Record &rec, const char *then, const char *now, uintptr_t a) {
    if (rec.op != sim_op->id) {
        sim_fail("race", "%s of %s, which operation %u %s: no stream, event or wait orders the two%s", now,
                 sim_describe(a).c_str(), rec.op, then, sim_self && !sim_self->waited ? " (before pdl_wait)" : "");
    }
    sim_fail("race", "%s of %s, which thread %d of block %u %s without a barrier in between", now,
             sim_describe(a).c_str(), rec.thread, rec.block, then);
}

static void record_read(Record *r, const Record &now) {
    if (r->op == now.op && sim_self && !ordered(*r)) {
        int flags = r->flags & (MANY_WARP | MANY_BLOCK | MANY_GRID);
        if (r->block != now.block) flags |= MANY_GRID;
        else if (r->thread / 32 != now.thread / 32) flags |= MANY_BLOCK;
        else if (r->thread != now.thread) flags |= MANY_WARP;
        *r = now;
        r->flags |= (uint16_t)flags;
    } else {
        *r = now;
    }
}

static void check_order(Range *range, uintptr_t a, size_t bytes, int flags) {
    uint32_t oldest = range == &shared ? sim_self->block->start_tick : 0;
    bool write = flags & A_WRITE, atomic = flags & A_ATOMIC;
    Record now = {sim_op->id, 0, sim_tick, 0, (uint16_t)(atomic ? ATOMIC : 0)};
    if (sim_self) now.block = sim_self->block->linear, now.thread = sim_self->tid;
    if (flags & A_ASYNC) now.flags |= PENDING;
    if (bytes == 1) now.flags |= BYTE;
    Shadow *s = range->shadow + (a - range->base) / GRANULE;
    Shadow *end = range->shadow + (a + bytes - 1 - range->base) / GRANULE;
    for (; s <= end; s++) {
        bool has_write = s->w.op && s->w.tick >= oldest;
        if (has_write) {
            if (s->w.flags & PENDING && !(flags & A_ASYNC_DONE && s->w.thread == now.thread)) {
                sim_fail("cp.async", "%s of %s before the wait for the copy that thread %d started",
                         write ? "write" : "read", sim_describe(a).c_str(), s->w.thread);
            }
            bool both_atomic = atomic && s->w.flags & ATOMIC && s->w.op == now.op;
            if (!both_atomic && !ordered(s->w)) race(s->w, "wrote", write ? "write" : "read", a);
        }
        if (!write) {
            if (atomic) continue;
            if (s->r.op && s->r.tick >= oldest) record_read(&s->r, now);
            else s->r = now;
            continue;
        }
        if (s->r.op && s->r.tick >= oldest && !ordered(s->r)) race(s->r, "read", "write", a);
        s->r.op = 0;
        s->w = now;
    }
}

static void check_shared(uintptr_t a, size_t bytes) {
    BlockState *b = sim_self->block;
    uintptr_t at = a - (uintptr_t)b->shared;
    for (const BlockState::Piece &p : b->pieces) {
        if (at - p.start < p.bytes && bytes <= p.bytes - (at - p.start)) return;
    }
    sim_fail("out of bounds", "%zu bytes at %s", bytes, sim_describe(a).c_str());
}

extern char __executable_start, _end;

void sim_access(uintptr_t a, size_t bytes, int flags) {
    if (!bytes) return;
    Range *r = range_of(a);
    if (!r) {
        if (!sim_self) return;
        uintptr_t own = stack_start + (a - stack_start) / 65536 * 65536;
        if (a - stack_start < stack_bytes) {
            uintptr_t here = (uintptr_t)__builtin_frame_address(0);
            if (here - own >= 65536) sim_fail("local memory", "access to the local memory of another thread");
            return;
        }
        bool constant = a - sim_bank < sim_bank_bytes ||
                        (a >= (uintptr_t)&__executable_start && a < (uintptr_t)&_end);
        if (constant && !(flags & A_WRITE)) return;
        sim_fail("host memory", "a kernel %s host memory at %p", flags & A_WRITE ? "writes" : "reads", (void *)a);
    }
    if (r == &shared) {
        if (!sim_self) sim_fail("host", "shared memory outside of a kernel");
        check_shared(a, bytes);
    } else {
        Allocation *al = allocation_of(r, a);
        if (!al || !al->live || a - al->start > al->bytes || bytes > al->bytes - (a - al->start)) {
            sim_fail(al && !al->live ? "use after free" : "out of bounds", "%s %zu bytes at %s",
                     flags & A_WRITE ? "write" : "read", bytes, sim_describe(a).c_str());
        }
    }
    check_order(r, a, bytes, flags);
}

void sim_vector(const void *p, bool write, bool global_only) {
    sim_pc = (uintptr_t)__builtin_return_address(0);
    if ((uintptr_t)p % 16) sim_fail("misaligned", "128-bit access to %s", sim_describe((uintptr_t)p).c_str());
    if (!sim_self) return;
    if (global_only && sim_region(p) != R_DEVICE && sim_region(p) != R_PINNED) {
        sim_fail("global memory", "load_stream_128 of %s", sim_describe((uintptr_t)p).c_str());
    }
    sim_access((uintptr_t)p, 16, write ? A_WRITE : 0);
}

// ---------------------------------------------------------------------------------------------------------
// Accesses of host code that was compiled with the kernels. A loop that polls pinned memory lets the device go on.

static void host_access(uintptr_t a, size_t bytes, bool write, bool poll) {
    Range *r = range_of(a);
    if (r == &device) {
        sim_fail("device memory", "host code %s %s", write ? "writes" : "reads", sim_describe(a).c_str());
    }
    if (r == &pinned) {
        std::lock_guard<std::recursive_mutex> guard(sim_lock);
        if (!sim_inside((void *)a, bytes, NULL)) sim_fail("out of bounds", "host code at %s", sim_describe(a).c_str());
        if (poll && sim_below(4) == 0) sim_progress();
        if (write && sim_pending_reads(a, bytes)) {
            sim_fail("race", "host code writes %s, from which a copy is still to be made", sim_describe(a).c_str());
        }
        const Shadow *s = r->shadow + (a - r->base) / GRANULE;
        if (!poll && s->w.op && !clock_has(sim_host_clock, s->w.op)) {
            sim_fail("race", "host code %s %s without having waited for operation %u, which wrote there",
                     write ? "writes" : "reads", sim_describe(a).c_str(), s->w.op);
        }
        if (!poll && write && s->r.op && !clock_has(sim_host_clock, s->r.op)) {
            sim_fail("race", "host code writes %s without having waited for operation %u, which reads there",
                     sim_describe(a).c_str(), s->r.op);
        }
    } else if (__asan_region_is_poisoned && __asan_region_is_poisoned((void *)a, bytes)) {
        sim_fail("out of bounds", "host code %s %zu bytes at %p, which AddressSanitizer knows as no object",
                 write ? "writes" : "reads", bytes, (void *)a);
    }
}

static void touch(uintptr_t a, size_t bytes, int flags, bool poll, void *pc) {
    sim_pc = (uintptr_t)pc;
    if (!sim_self) { host_access(a, bytes, flags & A_WRITE, poll); return; }
    sim_access(a, bytes, flags);
    sim_breathe();
}

void *sim_memcpy(void *dst, const void *src, size_t n) {
    if (n) {
        touch((uintptr_t)src, n, 0, false, __builtin_return_address(0));
        touch((uintptr_t)dst, n, A_WRITE, false, __builtin_return_address(0));
    }
    return memcpy(dst, src, n);
}

void *sim_memset(void *dst, int value, size_t n) {
    if (n) touch((uintptr_t)dst, n, A_WRITE, false, __builtin_return_address(0));
    return memset(dst, value, n);
}

#define CALLBACKS(n) \
    extern "C" void __tsan_read##n(void *p) { touch((uintptr_t)p, n, 0, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_write##n(void *p) { touch((uintptr_t)p, n, A_WRITE, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_volatile_read##n(void *p) { \
        touch((uintptr_t)p, n, A_ATOMIC, true, __builtin_return_address(0)); } \
    extern "C" void __tsan_volatile_write##n(void *p) { \
        touch((uintptr_t)p, n, A_WRITE | A_ATOMIC, true, __builtin_return_address(0)); }
CALLBACKS(1)
CALLBACKS(2)
CALLBACKS(4)
CALLBACKS(8)
CALLBACKS(16)
#define UNALIGNED(n) \
    extern "C" void __tsan_unaligned_read##n(void *p) { \
        touch((uintptr_t)p, n, 0, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_unaligned_write##n(void *p) { \
        touch((uintptr_t)p, n, A_WRITE, false, __builtin_return_address(0)); }
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
extern "C" void __tsan_read_range(void *p, unsigned long n) {
    touch((uintptr_t)p, n, 0, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void *p, unsigned long n) {
    touch((uintptr_t)p, n, A_WRITE, false, __builtin_return_address(0));
}
// Atomics of host code (reference counts, threads that upload); device code has its own.
#define HOST_ATOMIC(bits, T) \
    extern "C" T __tsan_atomic##bits##_load(const volatile T *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
    extern "C" void __tsan_atomic##bits##_store(volatile T *p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
    extern "C" T __tsan_atomic##bits##_exchange(volatile T *p, T v, int) { \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
    extern "C" T __tsan_atomic##bits##_fetch_add(volatile T *p, T v, int) { \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
    extern "C" T __tsan_atomic##bits##_fetch_sub(volatile T *p, T v, int) { \
        return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
    extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile T *p, T *c, T v, int, int) { \
        return __atomic_compare_exchange_n(p, c, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
HOST_ATOMIC(8, uint8_t)
HOST_ATOMIC(32, uint32_t)
HOST_ATOMIC(64, uint64_t)
extern "C" void __tsan_vptr_update(void **, void *) { }
extern "C" void __tsan_vptr_read(void **) { }
extern "C" void __tsan_init() { }
extern "C" void __tsan_func_entry(void *) { }
extern "C" void __tsan_func_exit() { }

// ---------------------------------------------------------------------------------------------------------
// Faults: code that was not compiled with the kernels touches device memory, or a fiber's stack is full.

static void on_fault(int, siginfo_t *info, void *) {
    uintptr_t a = (uintptr_t)info->si_addr;
    if (range_of(a) == &device) sim_fail("device memory", "host code touches %s", sim_describe(a).c_str());
    if (a - stack_start < stack_bytes) sim_fail("local memory", "a thread has more than 60 KiB of local variables");
    signal(SIGSEGV, SIG_DFL);
}
