// cuda_skip.cuh: OPT's second feed-forward layer without the neurons that ReLU set to zero.
//
// In order: a transposed copy of the weight; skip_kernel; skip_dense, its launcher.
//
//     x (T,DL) += b + sum over neurons j with ff[.,j] != 0 of ff[.,j] * w_t[j]        w_t (FL,DL) = transposed fc2.w
//
// Exact: what is left out is zero times a finite weight; only the order of the sums differs from stream_kernel's. With
// several rows a neuron is read when any of them uses it. A neuron is one row of w_t, so that leaving it out saves
// whole lines of memory, which the layout of the file, (DL,FL), would not.
//
// Bytes: 2*DL per living neuron instead of per neuron: a decoder layer of OPT is 12 DL^2 weights, 4 DL^2 of them here.
// Against that stand a second copy of a third of the weights in memory, a second pass of partial sums (ceil(FL/SKIP_J)
// * T * DL f32, in the L2 cache), and that no weight can be asked for before fc1 is done. Whether it pays depends on
// how many neurons of a real checkpoint are dead and was not measured: off unless BLIP2_CUDA_SKIP=1 (blip2.cu).
// Not here: int8 and int4 weights.
#ifndef CUDA_SKIP_CUH
#define CUDA_SKIP_CUH

#include "cuda_weights.cuh"

enum {
    SKIP_WARPS = 8,
    SKIP_O = 256,     // columns of the result a block has: a lane 8 of them, 16 bytes of a row of w_t
    SKIP_J = 512,     // neurons it has, two a thread
    SKIP_AHEAD = 4,   // rows of w_t a warp has under way
    SKIP_MOST = 4,    // rows of x
};

// Tiles of 32 x 32 through shared memory, so that both sides are read and written in lines.
__global__ void __launch_bounds__(256) transpose_kernel(bf16 *out, const bf16 *w, int OC, int C) {
    // w (OC,C) -> out (C,OC)
    SHARED(bf16, tile, [32][34]);
    const int o0 = blockIdx.y * 32, c0 = blockIdx.x * 32, x = threadIdx.x % 32, y = threadIdx.x / 32;
    for (int i = y; i < 32; i += 8) if (o0 + i < OC && c0 + x < C) tile[i][x] = w[(size_t)(o0 + i) * C + c0 + x];
    __syncthreads();
    for (int i = y; i < 32; i += 8) if (c0 + i < C && o0 + x < OC) out[(size_t)(c0 + i) * OC + o0 + x] = tile[x][i];
}

static void transpose(cudaStream_t s, bf16 *out, const bf16 *w, int OC, int C) {
    LAUNCH(transpose_kernel, dim3(ceil_div(C, 32), ceil_div(OC, 32)), dim3(256), 0, s, out, w, OC, C);
}

// A block: SKIP_O columns, SKIP_J neurons. It lists the living ones in their order; warp i takes entries i, i + 8, ...
// Sums of the warps, then of the blocks of a column are added in order, the latter by the last block to finish.
template <int R>
__global__ void __launch_bounds__(32 * SKIP_WARPS) skip_kernel(Dense d, Device dev, const bf16 *w_t) {
    // d.x (T,C) activations, T <= R; w_t (C,OC) -> d.out (T,OC) +=
    SHARED(int, alive, [SKIP_J]);
    SHARED(int, count, [SKIP_J / 32]);
    SHARED(float, part, [SKIP_WARPS][R][SKIP_O]);
    SHARED(int, ticket, );
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, o = blockIdx.x * SKIP_O + lane * 8;
    const bf16 *x = (const bf16 *)d.x;
    const int going = goes_on(d.going);
    pdl_wait();
    pdl_launch();
    if (!going) return;
    unsigned votes[SKIP_J / (32 * SKIP_WARPS)];
    #pragma unroll
    for (int i = 0; i < SKIP_J / (32 * SKIP_WARPS); i++) {
        const int at = (i * SKIP_WARPS + warp) * 32 + lane, j = blockIdx.y * SKIP_J + at;
        bool lives = false;
        for (int r = 0; r < d.T; r++) lives = lives || (j < d.C && (x[(size_t)r * d.C + j] & 0x7FFF) != 0);
        votes[i] = __ballot_sync(0xFFFFFFFFu, lives);
        if (lane == 0) count[i * SKIP_WARPS + warp] = __popc(votes[i]);
    }
    __syncthreads();
    int n = 0;
    for (int i = 0; i < SKIP_J / 32; i++) n += count[i];
    #pragma unroll
    for (int i = 0; i < SKIP_J / (32 * SKIP_WARPS); i++) {
        int before = __popc(votes[i] & ((1u << lane) - 1));
        for (int k = 0; k < i * SKIP_WARPS + warp; k++) before += count[k];
        if (votes[i] >> lane & 1) alive[before] = blockIdx.y * SKIP_J + (i * SKIP_WARPS + warp) * 32 + lane;
    }
    __syncthreads();
    float acc[R][8] = {};
    for (int i = warp; o < d.OC && i < n; i += SKIP_AHEAD * SKIP_WARPS) {
        uint4 v[SKIP_AHEAD];
        float a[SKIP_AHEAD][R];
        #pragma unroll
        for (int k = 0; k < SKIP_AHEAD; k++) {
            const bool there = i + k * SKIP_WARPS < n;
            const int j = alive[there ? i + k * SKIP_WARPS : i];
            v[k] = load_stream_128(w_t + (size_t)j * d.OC + o);
            #pragma unroll
            for (int r = 0; r < R; r++) a[k][r] = there && r < d.T ? bf16_to_f32(x[(size_t)r * d.C + j]) : 0;
        }
        #pragma unroll
        for (int k = 0; k < SKIP_AHEAD; k++) {
            float w[8];
            unpack(w, v[k], bf16());
            #pragma unroll
            for (int r = 0; r < R; r++)
                #pragma unroll
                for (int e = 0; e < 8; e++) acc[r][e] += a[k][r] * w[e];
        }
    }
    #pragma unroll
    for (int r = 0; r < R; r++)
        #pragma unroll
        for (int e = 0; e < 8; e++) part[warp][r][e * 32 + lane] = acc[r][e];   // see where it is read
    __syncthreads();
    const int blocks = gridDim.y;
    for (int i = threadIdx.x; i < R * SKIP_O; i += 32 * SKIP_WARPS) {
        float y = 0;
        for (int w = 0; w < SKIP_WARPS; w++) y += part[w][i / SKIP_O][i % SKIP_O];
        dev.partial[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * R * SKIP_O + i] = y;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        ticket = atomicAdd(dev.tickets + blockIdx.x, 1);
        if (ticket == blocks - 1) atomicExch(dev.tickets + blockIdx.x, 0);
    }
    __syncthreads();
    if (ticket != blocks - 1) return;
    __threadfence();
    for (int i = threadIdx.x; i < R * SKIP_O; i += 32 * SKIP_WARPS) {
        const int row = i / SKIP_O, column = blockIdx.x * SKIP_O + i % 32 * 8 + i % SKIP_O / 32;
        float y = 0;
        for (int k = 0; k < blocks; k++) y += dev.partial[((size_t)k * gridDim.x + blockIdx.x) * R * SKIP_O + i];
        if (row < d.T && column < d.OC) finish<bf16>(d, row, column, y, 0);
    }
}

// False: not for this layer, nothing was launched.
static bool skip_dense(cudaStream_t s, const Dense &d, const bf16 *w_t, const Device &dev) {
    const int R = d.T <= 1 ? 1 : d.T <= 2 ? 2 : SKIP_MOST;
    const dim3 grid(ceil_div(d.OC, SKIP_O), ceil_div(d.C, SKIP_J));
    if (d.T > SKIP_MOST || d.x32 || d.gated || d.OC % 8 || !dev.partial || grid.x > STREAM_TICKETS) return false;
    if ((size_t)grid.x * grid.y * R * SKIP_O * sizeof(float) > dev.partial_bytes) return false;
    const auto kernel = R == 1 ? skip_kernel<1> : R == 2 ? skip_kernel<2> : skip_kernel<SKIP_MOST>;
    LAUNCH_PDL(kernel, grid, dim3(32 * SKIP_WARPS), 0, s, d, dev, w_t);
    return true;
}

#endif
