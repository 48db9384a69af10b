// test/cuda_sim/sim_fibers.h: threads, warps and blocks of the running kernel, for the scheduler and cuda_sim_warp.cpp.
//
// In order: the structures, what the scheduler offers. Not for code under test.
#ifndef SIM_FIBERS_H
#define SIM_FIBERS_H

#include "sim_internal.h"

enum State { READY, AT_BARRIER, AT_WARP, DONE };
struct Site { const char *file; int line; };
struct Copy { uint8_t *dst; const uint8_t *src; int bytes, group; bool early; uint8_t data[16]; };

struct Block;
struct Fiber : ThreadState {
    void *sp;
    uint3 idx;
    Block *owner;
    State state;
    int kind, arg, width;                   // of what it waits for
    unsigned mask;
    Site site;
    uint64_t bits, result;
    std::vector<Copy> copies;               // cp.async under way
    int groups;                             // committed so far
};

struct Warp { Fiber *lane[32]; int lanes; unsigned waiting; uint32_t tick; };

struct Block : BlockState {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    int slot, threads, live, waiting;
    size_t static_bytes, next_piece;
    std::vector<Fiber *> at_barrier;
};

extern const char *const sim_warp_name[];       // by SimWarp

void sim_need_kernel(const char *what);         // stops host code that calls `what`
void sim_leave(State state);                    // lets others run; returns when this fiber is woken
void sim_wake(Fiber *f);
void sim_run_as(Fiber *f);                      // whose accesses and failures it is from now on

#endif
