// test/cuda_sim/cuda_sim.cpp: runs one kernel: blocks and threads as fibers, in an order drawn from the seed.
//
// In order: failure, random numbers, fibers, the scheduler, barriers, cp.async, fences, programmatic dependent launch,
// shared memory. Not here: warp primitives, ldmatrix, mma (cuda_sim_warp.cpp).
//
// One thread of the operating system runs everything. Up to three blocks are under way at once; the next fiber is
// drawn from all that can go on, whenever one waits, ends, or has made a random number of memory accesses.
#include "sim_fibers.h"
#include <algorithm>
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { STACK_BYTES = 1 << 16, STACK_GUARD = 1 << 12, MOST_THREADS = 1024 };
enum SimBarrier { SIM_SYNC, SIM_OR, SIM_AND, SIM_COUNT };

static Block blocks[SHARED_SLOTS];
static std::vector<Fiber *> ready;
static Fiber *self;                          // the fiber that runs; the same as sim_self
static void *scheduler_sp;
static uint8_t *stacks;
static const Kernel *kernel;
static long breath, silence;                 // accesses until the next change of fibers; changes without progress

ThreadState *sim_self;
uint32_t sim_tick = 1;
std::vector<uint32_t> sim_releases;
uintptr_t sim_pc, sim_bank, sim_bank_bytes;

bool sim_running() { return self != NULL; }

// ---------------------------------------------------------------------------------------------------------
// Failure

static void print_source(uintptr_t pc) {
    Dl_info info;
    if (!pc || !dladdr((void *)pc, &info) || !info.dli_fname) return;
    char command[600], line[500];
    snprintf(command, sizeof command, "addr2line -s -e '%.400s' %#lx 2>/dev/null", info.dli_fname,
             (unsigned long)(pc - (uintptr_t)info.dli_fbase - 1));
    FILE *f = popen(command, "r");
    if (!f) return;
    if (fgets(line, sizeof line, f) && line[0] != '?') fprintf(stderr, "cuda_sim:   at %s", line);
    pclose(f);
}

void sim_fail(const char *kind, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fflush(stdout);
    fprintf(stderr, "cuda_sim: %s: ", kind);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\n");
    if (sim_op && kernel) {
        fprintf(stderr, "cuda_sim:   in kernel %s launched at %s:%d, grid (%u,%u,%u), block (%u,%u,%u)\n",
                kernel->name.c_str(), kernel->file.c_str(), kernel->line, kernel->grid.x, kernel->grid.y,
                kernel->grid.z, kernel->block.x, kernel->block.y, kernel->block.z);
    } else if (sim_op) {
        fprintf(stderr, "cuda_sim:   in %s\n", sim_op->name.c_str());
    }
    if (self) {
        fprintf(stderr, "cuda_sim:   block (%u,%u,%u), thread (%u,%u,%u)\n", self->owner->idx.x, self->owner->idx.y,
                self->owner->idx.z, self->idx.x, self->idx.y, self->idx.z);
    }
    print_source(sim_pc);
    fflush(stderr);
    _exit(86);
}

// ---------------------------------------------------------------------------------------------------------
// Random numbers: splitmix64

static uint64_t random_state = 1;

void sim_seed(uint64_t seed) { random_state = seed * 0x9E3779B97F4A7C15u + 1; }

uint64_t sim_random() {
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// ---------------------------------------------------------------------------------------------------------
// Fibers. sim_switch keeps what the System V calling convention preserves, on the stack that it leaves.

#ifndef __x86_64__
#error "test/cuda_sim needs x86-64: write sim_switch for this processor"
#endif
extern "C" void sim_switch(void **save, void *load);
asm(".text\n.globl sim_switch\n.type sim_switch,@function\nsim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

void sim_leave(State state) {
    self->state = state;
    if (state == READY) ready.push_back(self);
    sim_switch(&self->sp, scheduler_sp);
}

void sim_wake(Fiber *f) {
    f->state = READY;
    silence = 0;
    if (f != self) ready.push_back(f);
}

void sim_run_as(Fiber *f) { sim_self = self = f; }

static void check_barrier(Block *b);

static void fiber_main() {
    kernel->run(kernel->call.get());
    sim_pc = 0;
    if (!self->copies.empty()) {
        sim_fail("cp.async", "the thread ended with %zu copies that it did not wait for", self->copies.size());
    }
    if (self->waited) sim_op->waited = true;
    Block *b = self->owner;
    b->live--;
    self->state = DONE;
    silence = 0;
    check_barrier(b);
    Warp *w = &b->warps[self->tid / 32];
    for (int i = 0; i < w->lanes; i++) {
        Fiber *f = w->lane[i];
        if (f->state == AT_WARP && f->mask >> (self->tid % 32) & 1) {
            sim_fail("warp", "lane %d waits at %s:%d in %s with mask %08x, but lane %d has ended", i, f->site.file,
                     f->site.line, sim_warp_name[f->kind], f->mask, self->tid % 32);
        }
    }
    sim_switch(&self->sp, scheduler_sp);
    abort();
}

static void fiber_start(Fiber *f, int slot) {
    uint8_t *top = stacks + ((size_t)slot * MOST_THREADS + f->tid + 1) * STACK_BYTES;
    void **sp = (void **)(top - 8);
    *sp = NULL;
    *--sp = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--sp = NULL;
    f->sp = sp;
    f->state = READY;
    ready.push_back(f);
}

static void make_stacks() {
    size_t bytes = (size_t)SHARED_SLOTS * MOST_THREADS * STACK_BYTES;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) sim_fail("memory", "no stacks for the fibers");
    stacks = (uint8_t *)p;
    for (size_t at = 0; at < bytes; at += STACK_BYTES) mprotect(stacks + at, STACK_GUARD, PROT_NONE);
    sim_stack_region((uintptr_t)stacks, bytes);
}

// Called at every memory access.
void sim_breathe() {
    if (--breath > 0) return;
    breath = 20 + sim_below(2000);
    if (++silence > 20000) sim_fail("hang", "the kernel runs without end");
    sim_leave(READY);
}

// ---------------------------------------------------------------------------------------------------------
// The scheduler

static void block_start(Block *b, int slot, uint32_t linear) {
    b->slot = slot;
    b->linear = linear;
    b->idx = {linear % kernel->grid.x, linear / kernel->grid.x % kernel->grid.y,
              linear / kernel->grid.x / kernel->grid.y};
    b->shared = sim_shared_arena(slot);
    b->start_tick = b->barrier_tick = ++sim_tick;
    b->fence_tick = b->release_tick = b->acquire_tick = 0;
    b->threads = b->live = (int)(kernel->block.x * kernel->block.y * kernel->block.z);
    b->waiting = 0;
    b->at_barrier.clear();
    b->static_bytes = 0;
    b->pieces.clear();
    b->next_piece = 16;
    if (kernel->smem_bytes) {
        b->pieces.push_back({NULL, "dynamic shared memory", 16, (uint32_t)kernel->smem_bytes});
        memset(b->shared + 16, 0xFF, kernel->smem_bytes);
        b->next_piece += (kernel->smem_bytes + 31) / 32 * 32 + 64;
    }
    b->fibers.resize((size_t)b->threads);
    b->warps.resize((size_t)(b->threads + 31) / 32);
    for (int t = 0; t < b->threads; t++) {
        Fiber *f = &b->fibers[t];
        Warp *w = &b->warps[t / 32];
        if (t % 32 == 0) w->lanes = 0, w->waiting = 0, w->tick = sim_tick;
        w->lane[w->lanes++] = f;
        f->block = f->owner = b;
        f->tid = (uint16_t)t;
        f->warp_tick = &w->tick;
        f->waited = !sim_op->pdl;
        f->idx = {t % kernel->block.x, t / kernel->block.x % kernel->block.y, t / kernel->block.x / kernel->block.y};
        f->part_tick = f->part_mask = 0;
        f->copies.clear();
        f->groups = 0;
        fiber_start(f, slot);
    }
}

[[noreturn]] static void deadlock() {
    std::string who;
    for (Block &b : blocks) {
        if (!b.live) continue;
        for (Fiber &f : b.fibers) {
            if (f.state == DONE || who.size() > 1500) continue;
            char text[200];
            snprintf(text, sizeof text, "\n  block %u thread %d waits at %s:%d in %s", b.linear, f.tid, f.site.file,
                     f.site.line, f.state == AT_BARRIER ? "__syncthreads" : sim_warp_name[f.kind]);
            who += text;
        }
    }
    self = NULL;
    sim_fail("deadlock", "no thread can go on:%s", who.c_str());
}

void sim_run_kernel(Op *op) {
    if (!stacks) make_stacks();
    kernel = op->kernel.get();
    sim_bank = (uintptr_t)kernel->call.get();
    sim_bank_bytes = kernel->call_bytes;
    size_t n = (size_t)kernel->grid.x * kernel->grid.y * kernel->grid.z, next = 0, slots = 1 + sim_below(SHARED_SLOTS);
    std::vector<uint32_t> order(n);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) std::swap(order[i - 1], order[sim_below((uint32_t)i)]);
    sim_releases.assign(n, 0);
    breath = 1 + sim_below(1000);
    silence = 0;
    int policy = (int)sim_below(4);      // the thread that came last, the one that came first, or (twice) any
    size_t front = 0;
    for (;;) {
        for (size_t s = 0; s < slots && next < n; s++) {
            if (!blocks[s].live) block_start(&blocks[s], (int)s, order[next++]);
        }
        if (front == ready.size()) {
            ready.clear();
            front = 0;
            bool live = false;
            for (Block &b : blocks) live |= b.live > 0;
            if (live) deadlock();
            break;
        }
        size_t at = policy == 0 ? ready.size() - 1 : policy == 1 ? front :
                    front + sim_below((uint32_t)(ready.size() - front));
        Fiber *f = ready[at];
        if (policy == 1) front++;
        else ready[at] = ready.back(), ready.pop_back();
        if (front > 65536) ready.erase(ready.begin(), ready.begin() + (long)front), front = 0;
        sim_run_as(f);
        sim_switch(&scheduler_sp, f->sp);
        sim_run_as(NULL);
    }
    kernel = NULL;
}

uint3 sim_thread_idx() { return self->idx; }
uint3 sim_block_idx() { return self->owner->idx; }
dim3 sim_block_dim() { return kernel->block; }
dim3 sim_grid_dim() { return kernel->grid; }

void sim_need_kernel(const char *what) {
    if (!self) sim_fail("host", "%s outside of a kernel", what);
}

// ---------------------------------------------------------------------------------------------------------
// Barriers

static void check_barrier(Block *b) {
    if (b->at_barrier.empty()) return;
    Fiber *first = b->at_barrier[0];
    if (b->live < b->threads) {
        sim_fail("barrier", "thread %d waits in __syncthreads at %s:%d, but %d threads of the block have ended",
                 first->tid, first->site.file, first->site.line, b->threads - b->live);
    }
    for (Fiber *f : b->at_barrier) {
        if (f->site.line != first->site.line || strcmp(f->site.file, first->site.file) || f->kind != first->kind) {
            sim_fail("barrier", "thread %d waits at %s:%d, thread %d at %s:%d", first->tid, first->site.file,
                     first->site.line, f->tid, f->site.file, f->site.line);
        }
        if (b->at_barrier.size() < (size_t)b->threads) break;       // all are compared when all are there
    }
    if (b->at_barrier.size() < (size_t)b->threads) return;
    int count = 0;
    for (Fiber *f : b->at_barrier) count += f->arg != 0;
    b->barrier_tick = ++sim_tick;
    silence = 0;
    for (Fiber *f : b->at_barrier) {
        f->result = f->kind == SIM_OR ? count > 0 : f->kind == SIM_AND ? count == b->threads : (uint64_t)count;
        sim_wake(f);
    }
    b->at_barrier.clear();
}

int sim_syncthreads(SimBarrier kind, int predicate, const char *file, int line) {
    sim_need_kernel("__syncthreads");
    sim_pc = 0;
    self->kind = kind;
    self->arg = predicate;
    self->site = {file, line};
    self->state = AT_BARRIER;
    self->owner->at_barrier.push_back(self);
    check_barrier(self->owner);
    sim_leave(self->state);
    return (int)self->result;
}

// ---------------------------------------------------------------------------------------------------------
// cp.async: the destination is poisoned at once and must not be touched until the thread has waited. The source is
// read at either end, as the seed says.

enum SimAsync { SIM_COPY, SIM_COMMIT, SIM_WAIT };

void sim_cp_async(SimAsync what, void *dst, const void *src, int n) {
    sim_need_kernel("cp.async");
    sim_pc = (uintptr_t)__builtin_return_address(0);
    Fiber *f = self;
    if (what == SIM_COMMIT) {
        f->groups++;
    } else if (what == SIM_COPY) {
        if (n < 0 || n > 16) sim_fail("cp.async", "%d source bytes", n);
        if (sim_region(dst) != R_SHARED) sim_fail("cp.async", "destination %p is not in shared memory", dst);
        if ((uintptr_t)dst % 16 || (uintptr_t)src % 16) sim_fail("misaligned", "cp.async from %p to %p", src, dst);
        if (n && sim_region(src) != R_DEVICE && sim_region(src) != R_PINNED) {
            sim_fail("cp.async", "source %p is not in global memory", src);
        }
        if (n) sim_access((uintptr_t)src, (size_t)n, 0);
        sim_access((uintptr_t)dst, 16, A_WRITE | A_ASYNC);
        Copy c = {(uint8_t *)dst, (const uint8_t *)src, n, f->groups, sim_below(2) == 0, {0}};
        if (c.early && n) memcpy(c.data, src, (size_t)n);
        memset(dst, 0xFF, 16);
        f->copies.push_back(c);
    } else {
        size_t left = 0;
        for (size_t i = 0; i < f->copies.size(); i++) {
            Copy &c = f->copies[i];
            if (c.group >= f->groups - n) { f->copies[left++] = c; continue; }
            if (!c.early && c.bytes) memcpy(c.data, c.src, (size_t)c.bytes);
            sim_access((uintptr_t)c.dst, 16, A_WRITE | A_ASYNC_DONE);
            memcpy(c.dst, c.data, 16);
        }
        f->copies.resize(left);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Fences, atomics, programmatic dependent launch. A block that fenced and then made an atomic has published what it
// wrote; a block that makes an atomic afterwards has seen it.

void __threadfence() { if (self) self->owner->fence_tick = ++sim_tick; }
void __threadfence_system() { __threadfence(); }
void __threadfence_block() { }

void sim_atomic(const void *p, unsigned bytes) {
    sim_need_kernel("an atomic");
    sim_pc = (uintptr_t)__builtin_return_address(0);
    if ((uintptr_t)p % bytes) sim_fail("misaligned", "atomic at %p", p);
    if (sim_region(p) == R_OTHER) sim_fail("atomic", "%p is neither shared nor global memory", p);
    sim_access((uintptr_t)p, bytes, A_WRITE | A_ATOMIC);
    if (sim_region(p) == R_SHARED) return;
    Block *b = self->owner;
    sim_releases[b->linear] = b->release_tick = b->fence_tick;
    b->acquire_tick = ++sim_tick;
}

void pdl_wait() {
    sim_need_kernel("pdl_wait");
    self->waited = true;
}

void pdl_launch() {
    sim_need_kernel("pdl_launch");
    if (!self->waited) sim_op->launched_early = true;
}

void prefetch_l2(const void *p) {
    sim_need_kernel("prefetch");
    sim_pc = (uintptr_t)__builtin_return_address(0);
    if (!sim_inside(p, 1, NULL)) sim_fail("out of bounds", "prefetch of %s", sim_describe((uintptr_t)p).c_str());
}

float f16_to_f32(uint16_t x) {
    int e = x >> 10 & 31, m = x & 1023;
    float v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf((float)(1024 + m), e - 25) : ldexpf((float)m, -24);
    return x >> 15 ? -v : v;
}

// ---------------------------------------------------------------------------------------------------------
// Shared memory. Pieces lie at odd multiples of 16 bytes, so that nothing is aligned better by luck.

void *sim_shared_static(const void *site, size_t bytes, const char *name) {
    sim_need_kernel("shared memory");
    Block *b = self->owner;
    for (BlockState::Piece &p : b->pieces) if (p.site == site) return b->shared + p.start;
    b->static_bytes += (bytes + 15) / 16 * 16;
    if (b->static_bytes > 48 * 1024) sim_fail("limits", "%zu bytes of static shared memory", b->static_bytes);
    if (b->static_bytes + kernel->smem_bytes > kernel->smem_limit) {
        sim_fail("limits", "%zu static and %zu dynamic bytes of shared memory, %zu are allowed: a larger dynamic part "
                 "needs cudaFuncSetAttribute", b->static_bytes, kernel->smem_bytes, kernel->smem_limit);
    }
    uint8_t *p = b->shared + b->next_piece;
    memset(p, 0xFF, bytes);
    b->pieces.push_back({site, name, (uint32_t)b->next_piece, (uint32_t)bytes});
    b->next_piece += (bytes + 31) / 32 * 32 + 64;
    return p;
}

void *sim_shared_dynamic() {
    sim_need_kernel("shared memory");
    if (!kernel->smem_bytes) sim_fail("limits", "the launch has no dynamic shared memory");
    return self->owner->shared + 16;
}
