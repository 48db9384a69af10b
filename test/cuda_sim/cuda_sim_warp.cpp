// test/cuda_sim/cuda_sim_warp.cpp: what the threads of a warp do together: shuffles, votes, __syncwarp, ldmatrix, mma.
//
// In order: fragments of mma, ldmatrix, shuffles, the meeting of the lanes.
// The last lane to arrive does the work for all; they must have come to the same line with the same mask.
#include "sim_fibers.h"
#include <string.h>

enum SimWarp { SIM_SYNCWARP, SIM_SHFL, SIM_XOR, SIM_DOWN, SIM_UP, SIM_BALLOT, SIM_LDMATRIX, SIM_LDMATRIX_T, SIM_MMA };
const char *const sim_warp_name[] = {"__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync",
                                     "__shfl_up_sync", "a vote", "ldmatrix", "ldmatrix.trans", "mma.sync"};
struct SimMma { float *d; const uint32_t *a, *b; };
struct SimRow { uint32_t *r; const void *row; };

// The 16-bit element (row, column) of what lane l holds in register r. Formulas: PTX ISA, "Matrix fragments for
// mma.m16n8k16" and "ldmatrix"; compared with CUTLASS's tables by fragments.py.
int sim_a_row(int l, int r) { return l / 4 + 8 * (r % 2); }
int sim_a_column(int l, int r, int half) { return l % 4 * 2 + half + 8 * (r / 2); }
int sim_b_row(int l, int r, int half) { return l % 4 * 2 + half + 8 * r; }
int sim_b_column(int l) { return l / 4; }
int sim_d_row(int l, int i) { return l / 4 + 8 * (i / 2); }
int sim_d_column(int l, int i) { return l % 4 * 2 + i % 2; }

static float half_of(uint32_t word, int half) {
    uint32_t u = half ? word & 0xFFFF0000u : word << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static void do_mma(Warp *w) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        const SimMma *x = (const SimMma *)(uintptr_t)w->lane[l]->bits;
        for (int h = 0; h < 2; h++) {
            for (int r = 0; r < 4; r++) a[sim_a_row(l, r)][sim_a_column(l, r, h)] = half_of(x->a[r], h);
            for (int r = 0; r < 2; r++) b[sim_b_row(l, r, h)][sim_b_column(l)] = half_of(x->b[r], h);
        }
    }
    for (int l = 0; l < 32; l++) {
        const SimMma *x = (const SimMma *)(uintptr_t)w->lane[l]->bits;
        for (int i = 0; i < 4; i++) {
            float sum = x->d[i];
            const float *row = a[sim_d_row(l, i)];
            for (int k = 0; k < 16; k++) sum += row[k] * b[k][sim_d_column(l, i)];
            x->d[i] = sum;
        }
    }
}

static void do_ldmatrix(Warp *w, bool trans) {
    uint16_t m[4][8][8];
    Fiber *caller = static_cast<Fiber *>(sim_self);
    for (int l = 0; l < 32; l++) {
        const SimRow *x = (const SimRow *)(uintptr_t)w->lane[l]->bits;
        sim_run_as(w->lane[l]);
        if (sim_region(x->row) != R_SHARED) sim_fail("ldmatrix", "row address %p is not in shared memory", x->row);
        if ((uintptr_t)x->row % 16) sim_fail("misaligned", "ldmatrix: row address %p", x->row);
        sim_access((uintptr_t)x->row, 16, 0);
        memcpy(m[l / 8][l % 8], x->row, 16);
    }
    sim_run_as(caller);
    for (int l = 0; l < 32; l++) {
        const SimRow *x = (const SimRow *)(uintptr_t)w->lane[l]->bits;
        int i = l / 4, j = l % 4 * 2;
        for (int r = 0; r < 4; r++) {
            x->r[r] = trans ? m[r][j][i] | (uint32_t)m[r][j + 1][i] << 16 : m[r][i][j] | (uint32_t)m[r][i][j + 1] << 16;
        }
    }
}

static void do_shuffle(Warp *w, int kind, unsigned mask) {
    for (int l = 0; l < w->lanes; l++) {
        if (!(mask >> l & 1)) continue;
        Fiber *f = w->lane[l];
        if (f->width <= 0 || f->width > 32 || (f->width & (f->width - 1))) sim_fail("warp", "width %d", f->width);
        int first = l / f->width * f->width, from = l;
        if (kind == SIM_SHFL) from = first + (f->arg & (f->width - 1));
        if (kind == SIM_XOR) from = l ^ f->arg;
        if (kind == SIM_DOWN) from = l + f->arg;
        if (kind == SIM_UP) from = l - f->arg;
        if (kind != SIM_SHFL && (from < first || from >= first + f->width)) from = l;
        if (!(mask >> from & 1)) {
            sim_fail("warp", "lane %d reads lane %d in %s at %s:%d, which mask %08x does not name", l, from,
                     sim_warp_name[kind], f->site.file, f->site.line, mask);
        }
        f->result = w->lane[from]->bits;
    }
}

uint64_t sim_warp(SimWarp kind, unsigned mask, uint64_t bits, int arg, int width, const char *file, int line) {
    sim_need_kernel(sim_warp_name[kind]);
    sim_pc = 0;
    Fiber *self = static_cast<Fiber *>(sim_self);
    Warp *w = &self->owner->warps[self->tid / 32];
    int lane = self->tid % 32;
    if (!(mask >> lane & 1)) sim_fail("warp", "%s:%d: mask %08x lacks the calling lane %d", file, line, mask, lane);
    if (w->lanes < 32 && mask >> w->lanes) {
        sim_fail("warp", "%s:%d: mask %08x names lanes of a warp that has only %d", file, line, mask, w->lanes);
    }
    self->kind = kind, self->mask = mask, self->bits = bits, self->arg = arg, self->width = width;
    self->site = {file, line};
    self->state = AT_WARP;
    w->waiting |= 1u << lane;
    for (int l = 0; l < w->lanes; l++) {
        if ((mask >> l & 1) && w->lane[l]->state == DONE) {
            sim_fail("warp", "%s:%d: %s with mask %08x, but lane %d has ended", file, line, sim_warp_name[kind], mask,
                     l);
        }
    }
    if ((w->waiting & mask) == mask) {
        unsigned ballot = 0;
        for (int l = 0; l < w->lanes; l++) {
            if (!(mask >> l & 1)) continue;
            Fiber *f = w->lane[l];
            if (f->kind != kind || f->mask != mask || f->site.line != line || strcmp(f->site.file, file)) {
                sim_fail("warp", "lane %d is at %s:%d in %s with mask %08x, lane %d at %s:%d in %s with mask %08x",
                         lane, file, line, sim_warp_name[kind], mask, l, f->site.file, f->site.line,
                         sim_warp_name[f->kind], f->mask);
            }
            ballot |= (unsigned)(f->bits & 1) << l;
            f->result = 0;
        }
        if (kind == SIM_SYNCWARP) {
            ++sim_tick;
            if (mask == 0xFFFFFFFFu >> (32 - w->lanes)) w->tick = sim_tick;
            for (int l = 0; l < w->lanes; l++) {
                if (mask >> l & 1) w->lane[l]->part_tick = sim_tick, w->lane[l]->part_mask = mask;
            }
        } else if (kind == SIM_BALLOT) {
            for (int l = 0; l < w->lanes; l++) if (mask >> l & 1) w->lane[l]->result = ballot;
        } else if (kind == SIM_MMA) {
            do_mma(w);
        } else if (kind == SIM_LDMATRIX || kind == SIM_LDMATRIX_T) {
            do_ldmatrix(w, kind == SIM_LDMATRIX_T);
        } else {
            do_shuffle(w, kind, mask);
        }
        w->waiting &= ~mask;
        for (int l = 0; l < w->lanes; l++) if (mask >> l & 1) sim_wake(w->lane[l]);
    }
    sim_leave(self->state);
    return self->result;
}
