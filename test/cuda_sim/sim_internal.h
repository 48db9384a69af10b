// test/cuda_sim/sim_internal.h: what the parts of the simulator know of each other.
//
// In order: random numbers, operations and their order, the running kernel, memory. Not for code under test.
#ifndef SIM_INTERNAL_H
#define SIM_INTERNAL_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <functional>
#include <memory>
#include <mutex>
#include <stdint.h>
#include <string>
#include <vector>

[[noreturn]] void sim_fail(const char *kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool sim_running();                             // inside of a kernel, on one of its fibers
extern std::recursive_mutex sim_lock;           // held by every call of the host API

uint64_t sim_random();
static inline uint32_t sim_below(uint32_t n) { return (uint32_t)(sim_random() >> 33) % n; }

// ---------------------------------------------------------------------------------------------------------
// Order. Operations (kernels, copies, fills) that the device must run one after the other share a lane: a stream, or
// the part of a graph that was captured from one. clock[lane] is the last operation of each lane that is certain to be
// over: operation o happened before p exactly when p.clock[o.lane] >= o.seq.

typedef std::vector<uint32_t> Clock;
struct OpOrder { uint32_t lane, seq; };
extern std::vector<OpOrder> sim_ops;            // by operation number, from 1; 0 is what came before all
extern Clock sim_host_clock;                    // what the host has waited for

static inline bool clock_has(const Clock &c, uint32_t op) {
    OpOrder o = sim_ops[op];
    return op == 0 || (o.lane < c.size() && c[o.lane] >= o.seq);
}
void clock_join(Clock *into, const Clock &c);

struct Kernel;
struct Op {
    uint32_t id = 0;
    Clock clock, early;                         // early: all that is certain before pdl_wait()
    bool pdl = false, launched_early = false, waited = false, done = false;
    std::shared_ptr<Op> kernel_ahead;           // for a programmatic dependent launch
    std::vector<std::shared_ptr<Op>> after;     // must be done before this one starts
    std::shared_ptr<Kernel> kernel;             // a kernel,
    std::function<void()> work;                 // or anything else
    std::string name;
    uintptr_t reads = 0;                        // of a copy that is still to be made, its source
    size_t reads_bytes = 0;
    double time = 0;                            // when it was done
};
extern Op *sim_op;                              // the one that runs

struct Kernel {
    const void *function;
    std::string name, file;
    int line;
    dim3 grid, block;
    size_t smem_bytes, smem_limit;              // dynamic bytes; limit for static and dynamic together
    std::shared_ptr<const void> call;           // the arguments, call_bytes of them, for run()
    size_t call_bytes;
    void (*run)(const void *);
};

void sim_run_kernel(Op *op);
size_t sim_smem_optin(int capability);
extern int sim_capability;
bool sim_progress();                            // runs one operation that may run; false when there is none
bool sim_pending_reads(uintptr_t a, size_t n);  // whether a copy that was not made yet reads there
cudaError_t sim_enqueue_work(cudaStream_t stream, const char *name, std::function<void()> work);

// ---------------------------------------------------------------------------------------------------------
// The running kernel, as memory checks see it.

struct BlockState {
    uint3 idx;
    uint32_t linear;
    uint32_t start_tick, barrier_tick, fence_tick, release_tick, acquire_tick;
    uint8_t *shared;                            // its arena, SHARED_SPAN bytes
    struct Piece { const void *site; const char *name; uint32_t start, bytes; };
    std::vector<Piece> pieces;                  // what was taken of it
};
struct ThreadState {
    BlockState *block;
    uint16_t tid;                               // linear in the block
    uint32_t *warp_tick;                        // of the last __syncwarp of the whole warp
    uint32_t part_tick, part_mask;              // and of the last one of a part of it
    bool waited;                                // pdl_wait was called, or need not be
};
extern uintptr_t sim_bank, sim_bank_bytes;      // the arguments of the launch
extern uintptr_t sim_pc;                        // where the program called in, for messages
extern ThreadState *sim_self;                   // NULL outside of kernels
extern uint32_t sim_tick;                       // grows at every barrier of any kind
extern std::vector<uint32_t> sim_releases;      // of the running kernel: by block, the last fence before an atomic
void sim_breathe();                             // lets another fiber run
uint3 sim_thread_idx();

// ---------------------------------------------------------------------------------------------------------
// Memory

enum Region { R_DEVICE, R_PINNED, R_SHARED, R_OTHER };
enum { SHARED_SPAN = 1 << 19, SHARED_SLOTS = 3 };

void sim_memory_init();
Region sim_region(const void *p);
static inline bool sim_on_device(const void *p) { return sim_region(p) == R_DEVICE; }
void *sim_allocate(Region where, size_t bytes);         // NULL when there is not that much
bool sim_release(Region where, void *p);                // false when p is no allocation
bool sim_inside(const void *p, size_t bytes, Region *where);    // within one live allocation
size_t sim_used(), sim_total();
void sim_open(bool open);                               // device memory reachable or not
// Checks an access by the running kernel or operation to any address, and remembers it.
enum { A_WRITE = 1, A_ATOMIC = 2, A_ASYNC = 4, A_ASYNC_DONE = 8 };
void sim_access(uintptr_t a, size_t bytes, int flags);
uint8_t *sim_shared_arena(int slot);
void sim_stack_region(uintptr_t start, uintptr_t bytes);
std::string sim_describe(uintptr_t a);

#endif
