// dev/cuda/matvec.cu: a dense layer for a few rows, from a thread per output to the launcher of cuda_stream.cuh.
//
//     x (T,C) bf16, w (OC,C) bf16, int8 or int4, b (OC) -> out (T,OC) f32 = x w^T + b          T = 1 or 5
//
// This is decoding: one new token per row, every weight of the model read once for it, more than nine tenths of a
// caption's time. Must move: OC*C weights, 2, 1 or 9/16 bytes each (int4: half a byte and an f16 scale per 32). A
// weight meets T numbers and is never seen again, so arithmetic is next to nothing and the one question is how close
// the reads come to the bandwidth. T = 5 is beam search: five times the result for the same bytes, if one pass does it.
#include "ladder.h"

#include "cuda_dense.cuh"

extern "C" {
#include "cpu.h"
}

typedef struct { float *out; const bf16 *x; Tensor w; const float *b; int T; } Product;

// Version 1: a thread per output, which walks along its row of w. The lanes of a warp are at 32 rows at once, 2*C bytes
// apart: each load of two bytes costs a transaction of 32. They would be of use to the next 15 loads if the cache
// could hold them for all threads that long. Limit: transactions; bytes moved: up to 16 times the weights.
__global__ void matvec1(Product p) {
    // x (T,C), w (OC,C), b (OC) -> out (T,OC)
    const int o = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, C = p.w.cols;
    if (o >= p.w.rows) return;
    float sum = p.b[o];
    for (int c = 0; c < C; c++) sum += weight_at(p.w, o, c) * bf16_to_f32(p.x[(size_t)t * C + c]);
    p.out[(size_t)t * p.w.rows + o] = sum;
}

// Version 2: a warp per output, lane after lane along the row, so that a warp reads 64 (int8: 32, int4: 16) bytes in a
// row. All bytes are used. Limit: each thread asks for two bytes and then waits; to keep device memory busy, some
// 40 KB per multiprocessor must be asked for at any time, and 64 warps of 64 bytes are 4.
__global__ void matvec2(Product p) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, o = blockIdx.x * 4 + warp, t = blockIdx.y, C = p.w.cols;
    if (o >= p.w.rows) return;
    float sum = 0;
    for (int c = lane; c < C; c += 32) sum += weight_at(p.w, o, c) * bf16_to_f32(p.x[(size_t)t * C + c]);
    sum = warp_sum(sum);
    if (lane == 0) p.out[(size_t)t * p.w.rows + o] = sum + p.b[o];
}

// 16 bytes of a weight row: 8 bf16, 16 int8 or one group of 32 int4, as floats. The scale of int8 is left to the end.
template <int W> static __device__ void unpack_16(float *f, uint4 v, float scale) {
    const u32 u[4] = {v.x, v.y, v.z, v.w};
    #pragma unroll
    for (int i = 0; i < 16; i++) {
        const u32 byte = u[i / 4] >> (i % 4 * 8);
        if (W == DT_BF16 && i % 2 == 0) f[i / 2] = i % 4 ? bf16_hi(u[i / 4]) : bf16_lo(u[i / 4]);
        if (W == DT_INT8) f[i] = (float)(int8_t)byte;
        if (W == DT_INT4) {
            f[i] = (float)((int)(byte & 15) - 8) * scale;
            f[i + 16] = (float)((int)(byte >> 4 & 15) - 8) * scale;
        }
    }
}

// The 16 bytes number i of row o, and the scale that belongs to them.
template <int W> static __device__ uint4 load_16(float *scale, const Tensor &w, int o, int i, int pieces) {
    const size_t at = (size_t)o * pieces + i;
    *scale = W == DT_INT4 ? f16_to_f32(((const f16 *)w.scale)[at]) : 1;
    return load_stream_128((const uint8_t *)w.data + at * 16);
}

// Rows that are no multiple of 16 bytes are not aligned: version 2's way, for small shapes only.
static bool aligned(const Tensor &w) {
    return w.dtype == DT_INT4 || w.cols % (w.dtype == DT_BF16 ? 8 : 16) == 0;
}

// Version 3: 16 bytes a lane, so a warp asks for 512 with one instruction and unpacks them in registers. x comes from
// the L1 cache. Limit: one load under way per thread: the warp waits for the 512 bytes before it asks for the next;
// and for T rows the weights are read T times (from L2 beyond the first, if rows of blocks run side by side).
template <int W> __global__ void matvec3(Product p) {
    constexpr int E = W == DT_BF16 ? 8 : W == DT_INT8 ? 16 : 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, o = blockIdx.x * 4 + warp, t = blockIdx.y, C = p.w.cols;
    const int pieces = (C + E - 1) / E;
    if (o >= p.w.rows) return;
    const bf16 *x = p.x + (size_t)t * C;
    float sum = 0;
    for (int i = lane; i < pieces; i += 32) {
        float f[E], scale;
        const uint4 v = load_16<W>(&scale, p.w, o, i, pieces);
        unpack_16<W>(f, v, scale);
        #pragma unroll
        for (int k = 0; k < E; k++) sum += i * E + k < C ? f[k] * bf16_to_f32(x[i * E + k]) : 0;
    }
    sum = warp_sum(sum);
    if (W == DT_INT8) sum *= ((const float *)p.w.scale)[o];
    if (lane == 0) p.out[(size_t)t * p.w.rows + o] = sum + p.b[o];
}

// Version 4: four loads under way per thread before the first is used, and all T rows of x in shared memory as f32, so
// that one pass over the weights serves them all. Bytes moved: the weights once. Limit: a block is one short life:
// fetch x, four outputs, end; blocks that start late leave multiprocessors empty at the end; at four bytes per lane
// and 32 apart (int4), reads of x meet on the same banks of shared memory.
template <int W, int T> __global__ void matvec4(Product p) {
    constexpr int E = W == DT_BF16 ? 8 : W == DT_INT8 ? 16 : 32, AHEAD = 4;
    SHARED_DYNAMIC(float, xs);            // (T, pieces*E)
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, o = blockIdx.x * 4 + warp, C = p.w.cols;
    const int pieces = (C + E - 1) / E, ld = pieces * E;
    for (int i = threadIdx.x; i < T * ld; i += blockDim.x)
        xs[i] = i % ld < C && i / ld < p.T ? bf16_to_f32(p.x[(size_t)(i / ld) * C + i % ld]) : 0;
    __syncthreads();
    if (o >= p.w.rows) return;
    float sum[T] = {};
    for (int i = lane; i < pieces; i += 32 * AHEAD) {
        uint4 v[AHEAD];
        float scale[AHEAD];
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + 32 * k < pieces) v[k] = load_16<W>(&scale[k], p.w, o, i + 32 * k, pieces);
        #pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (i + 32 * k >= pieces) continue;
            float f[E];
            unpack_16<W>(f, v[k], scale[k]);
            #pragma unroll
            for (int t = 0; t < T; t++)
                #pragma unroll
                for (int e = 0; e < E; e++) sum[t] += f[e] * xs[t * ld + (i + 32 * k) * E + e];
        }
    }
    #pragma unroll
    for (int t = 0; t < T; t++) {
        float y = warp_sum(sum[t]);
        if (W == DT_INT8) y *= ((const float *)p.w.scale)[o];
        if (lane == 0 && t < p.T) p.out[(size_t)t * p.w.rows + o] = y + p.b[o];
    }
}

// Version 5: rows_kernel of cuda_matvec.cuh, which ships for f32 weights and rows of odd lengths. As many blocks as
// the card holds stay for the whole layer, so x is fetched once per block; x stays bf16, its pieces swapped about so
// that no two lanes meet on a bank; several warps share an output where that leaves fewer of them idle in the last
// round. Bytes moved: the weights once per 8 rows. Limit: arithmetic. A weight costs an unpacking and T multiply-adds
// on CUDA cores; at 5 rows, and for int4 at any number, that is more than is issued while it arrives.

template <int W> static bool launch5(const Ladder *l, const Dense &d, const Device &dev) {
    return rows_dense_of<W, bf16>(l->s, d, dev);
}

// Version 6: stream_dense() of cuda_stream.cuh. Tensor cores: 16 rows of w against up to 8 rows of x in an instruction,
// so that 5 rows cost what 1 does, and the order of k is the one in which lanes fetched their bytes: nothing is
// shuffled. Weights come by cp.async, four chunks ahead in a ring of each warp that goes on through the ends of rows,
// and before the kernel ahead in the stream has ended. Where rows of w are few, their columns are split over blocks.
// Bytes moved: the weights once, sums of split columns through L2. Limit: device memory.

template <int W> static bool launch34(const Ladder *l, int version, const Product &p) {
    if (!aligned(p.w)) {
        LAUNCH(matvec2, dim3(ceil_div(p.w.rows, 4), p.T), dim3(128), 0, l->s, p);
        return true;
    }
    if (version == 3) {
        LAUNCH(matvec3<W>, dim3(ceil_div(p.w.rows, 4), p.T), dim3(128), 0, l->s, p);
        return true;
    }
    const int E = W == DT_BF16 ? 8 : W == DT_INT8 ? 16 : 32;
    const size_t shared = (size_t)(p.T == 1 ? 1 : 5) * ceil_div(p.w.cols, E) * E * sizeof(float);
    if (p.T > 5 || shared > (size_t)l->shared_most) return false;
    const auto kernel = p.T == 1 ? matvec4<W, 1> : matvec4<W, 5>;
    CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH(kernel, dim3(ceil_div(p.w.rows, 4)), dim3(128), shared, l->s, p);
    return true;
}

static bool launch(const Ladder *l, int version, const Product &p, const Device &dev) {
    switch (version) {
    case 1: LAUNCH(matvec1, dim3(ceil_div(p.w.rows, 128), p.T), dim3(128), 0, l->s, p); return true;
    case 2: LAUNCH(matvec2, dim3(ceil_div(p.w.rows, 4), p.T), dim3(128), 0, l->s, p); return true;
    case 3: case 4:
        return p.w.dtype == DT_BF16 ? launch34<DT_BF16>(l, version, p)
             : p.w.dtype == DT_INT8 ? launch34<DT_INT8>(l, version, p) : launch34<DT_INT4>(l, version, p);
    }
    Dense d = {};
    d.out = p.out, d.kind = OUT_F32, d.x = p.x, d.w = p.w, d.b = p.b, d.act = ACT_NONE;
    d.T = p.T, d.OC = p.w.rows, d.C = p.w.cols;
    if (version == 6) return stream_dense(l->s, d, dev);
    return p.w.dtype == DT_BF16 ? launch5<DT_BF16>(l, d, dev)
         : p.w.dtype == DT_INT8 ? launch5<DT_INT8>(l, d, dev) : launch5<DT_INT4>(l, d, dev);
}

static void run_case(Ladder *l, const char *what, int dtype, int T, int OC, int C) {
    const double weight = dtype == DT_BF16 ? 2 : dtype == DT_INT8 ? 1 : 9.0 / 16;
    const char *name = dtype == DT_BF16 ? "bf16" : dtype == DT_INT8 ? "int8" : "int4";
    if (!ladder_case(l, OC * (C * weight + 4.0 + 4.0 * T) + 2.0 * T * C, 0, "%s%s, (%d,%d) x (%d,%d)", what, name, T, C,
                     OC, C)) return;
    const LadderWeight w = ladder_weight(dtype, OC, C, 5);
    const std::vector<float> x = ladder_numbers((size_t)T * C, 1, true), b = ladder_numbers(OC, 2, false);
    std::vector<float> want((size_t)T * OC);
    cpu_matmul(want.data(), x.data(), &w.tensor, b.data(), T);
    Product p = {NULL, ladder_input_bf16(l, x), ladder_input(l, w), ladder_input(l, b), T};
    p.out = (float *)ladder_output(l, LADDER_F32, want, 1e-5);     // order of sums only; measured up to 2e-6
    Lt lt = {};
    ladder_blas(l, &lt.handle, &lt.workspace, &lt.workspace_bytes);
    Dense d = {};
    d.out = p.out, d.kind = OUT_F32, d.x = p.x, d.w = p.w, d.act = ACT_NONE, d.T = T, d.OC = OC, d.C = C;
    const Device dev = ladder_device<Device>(l);
    const std::function<bool()> library = [&] { return lt_dense(l->s, &lt, d, p.b, false); };
    ladder_run(l, [&](int version) { return launch(l, version, p, dev); }, dtype == DT_BF16 ? library : nullptr);
    for (int i = 0; i < lt.n; i++) lt_forget(&lt.plans[i]);
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "matvec",
        {{"a thread per output", "lanes read 32 rows at once: 2 bytes used of each transaction of 32"},
         {"a warp per output", "neighbours read neighbours; too few bytes under way at a time"},
         {"16 bytes a lane", "512 bytes a warp and load; one load under way per thread; T rows read w T times"},
         {"four loads ahead, all rows at once", "one pass for all rows, x in shared memory; blocks live too short"},
         {"rows_dense: blocks that stay", "x fetched once per block, no bank conflicts; arithmetic limits"},
         {"shipped: stream_dense", "tensor cores, a cp.async ring through all rows, columns split over blocks"}});
    for (const int dtype : {DT_BF16, DT_INT8, DT_INT4}) {
        if (l.small) {
            for (const auto &[OC, C] : {std::pair(7, 33), {40, 64}, {130, 160}, {65, 592}})
                for (int T : {1, 3}) run_case(&l, "", dtype, T, OC, C);
            continue;
        }
        for (int T : {1, 5}) {     // OPT-2.7b
            if (T == 1) ladder_show(&l);
            run_case(&l, "fc1, ", dtype, T, 10240, 2560);
            run_case(&l, "qkv, ", dtype, T, 3 * 2560, 2560);
            run_case(&l, "fc2, ", dtype, T, 2560, 10240);
            if (dtype == DT_BF16) run_case(&l, "head, ", dtype, T, 50304, 2560);
        }
    }
    ladder_close(&l);
}
