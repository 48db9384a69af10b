// cuda_stream.cuh: dense layers of 1 to 64 rows on tensor cores, bound by reading the weights once.
//
// In order: weights as bf16 fragments; rows of x in the order of those; the end of a unit; stream_kernel; stream_dense,
// its launcher.
//
// All that decoding multiplies comes through here (a row, the beams of a row, the captions of a batch), the Q-Former's
// queries and a prompt of up to 64 tokens. An mma takes 16 rows of w as its left and 8 rows of x as its right operand,
// so that a column of the result costs the same for 1 and for 8 rows and the arithmetic stays far below the time that
// the weights take to arrive.
//
//     block:  16 rows of w (gated: 8 of either half) at a time, called a unit, and a slab of their columns
//     warp:   every 8th chunk of that, 64 bytes of each row: 32 bf16, 64 int8 or 128 int4 columns
//     lane:   g = lane/4, t = lane%4: bytes 16t..16t+15 of rows g and g+8
//
// The sum over k does not ask for an order: what a lane holds of a row of w is taken as the k that its fragment has
// room for, and x lies in shared memory in that same order (x_place), so that no fragment is ever shuffled.
//
// Weights come by cp.async into a ring that each warp has for itself, STREAM_STAGES chunks ahead and on into the next
// unit: the sums at the end of a unit do not stop the stream, nor does the start of a kernel, since the first chunks
// are on their way before pdl_wait. Where one block cannot hold its columns of x, or there are fewer units than
// multiprocessors, columns are split over blocks; the last one to finish a unit adds the parts up in their order, so
// that results are the same in every run.
//
// Bytes: OC*C weights (and scales) from device memory; T*C of x per block and, when split, the parts, in the L2 cache.
// Not here: f32 weights, rows of w that are no multiple of 16 bytes (cuda_matvec.cuh); many rows (cuda_dense.cuh).
#ifndef CUDA_STREAM_CUH
#define CUDA_STREAM_CUH

#include "cuda_weights.cuh"

enum {
    STREAM_WARPS = 8,
    STREAM_STAGES = 4,
    STREAM_MOST = 64,         // rows of x
    STREAM_NORM_MOST = 4,     // and of those that are normed on the way: beyond, every block would read too much anew
    STREAM_RING = STREAM_STAGES * STREAM_WARPS * 1024,
};

template <int W> static __host__ __device__ constexpr int chunk_columns() {
    return W == DT_BF16 ? 32 : W == DT_INT8 ? 64 : 128;
}

// ---------------------------------------------------------------------------------------------------------
// Weights: a chunk is 1 (bf16), 2 (int8) or 4 (int4) times 32 columns, two mma each. Fragments are made without a
// conversion instruction: an integer in the low bits of 0x43xx is a bf16 between 128 and 256.

// Two times two signed bytes, exact: 128 + the lower seven bits, minus 128 or 256.
static __device__ __forceinline__ void int8_fragment(u32 out[2], u32 u) {
    #pragma unroll
    for (int i = 0; i < 2; i++, u >>= 8)
        out[i] = fma_bf16x2((u & 0x007F007Fu) | 0x43004300u, 0x3F803F80u, (u & 0x00800080u) | 0xC300C300u);
}

// Eight nibbles q as q - 8 = (128 + q) - 136.
static __device__ __forceinline__ void int4_fragment(u32 out[4], u32 u) {
    #pragma unroll
    for (int i = 0; i < 4; i++, u >>= 4)
        out[i] = fma_bf16x2((u & 0x000F000Fu) | 0x43004300u, 0x3F803F80u, 0xC308C308u);
}

// 16 bytes that lane (g,t) fetched lie here among the 32 pieces of a row group. For int4, lanes read 4 bytes of each
// of the quad's pieces (a group of 32 columns has one scale and must not mix with others): the exclusive or makes
// these reads hit every bank once.
template <int W> static __device__ __forceinline__ int piece_at(int g, int t) {
    return g * 4 + (W == DT_INT4 ? t ^ (g >> 1 & 3) : t);
}

// Columns 32*sub.. of a chunk of a row of w as the words {a0,a2} of two mma.
template <int W>
static __device__ __forceinline__ void fragment(u32 (&a)[4], const uint8_t *pieces, uint4 own, int sub, int g, int t) {
    const u32 u[4] = {own.x, own.y, own.z, own.w};
    if constexpr (W == DT_BF16) a[0] = u[0], a[1] = u[1], a[2] = u[2], a[3] = u[3];
    else if constexpr (W == DT_INT8) int8_fragment(a, u[2 * sub]), int8_fragment(a + 2, u[2 * sub + 1]);
    else int4_fragment(a, *(const u32 *)(pieces + piece_at<W>(g, sub) * 16 + t * 4));
}

// Four scales of a row's groups from 4*chunk on; zero beyond the last.
static __device__ __forceinline__ uint2 scales_4(const Tensor &w, int row, int chunk) {
    const int groups = (w.cols + 31) / 32, at = chunk * 4;
    const f16 *p = (const f16 *)w.scale + (size_t)row * groups + at;
    if (groups % 4 == 0) return *(const uint2 *)p;
    u32 s[4];
    #pragma unroll
    for (int i = 0; i < 4; i++) s[i] = at + i < groups ? p[i] : 0;
    return make_uint2(s[0] | s[1] << 16, s[2] | s[3] << 16);
}

// ---------------------------------------------------------------------------------------------------------
// Rows of x. Lane t of a quad reads 8 numbers at 8t of every 32: right operands {b0,b1} of the two mma.

template <int W> static __device__ __forceinline__ int x_place(int c) {
    if constexpr (W == DT_BF16) return c;
    else if constexpr (W == DT_INT8) {   // byte q of word i of lane t; words 2h and 2h+1 are one read
        const int t = c / 16 % 4, i = c / 4 % 4, q = c % 4;
        return c / 64 * 64 + (i / 2 * 4 + t) * 8 + i % 2 * 4 + q % 2 * 2 + q / 2;
    } else {                             // byte q of lane t's word, its lower or upper nibble
        const int h = c / 16 % 2, t = c / 4 % 4, q = c % 4;
        return c / 32 * 32 + t * 8 + q % 2 * 4 + h * 2 + q / 2;
    }
}

// Elements between rows of x in shared memory: 64 bytes beyond a multiple of 128, so that two rows share no bank.
static __host__ __device__ inline int stream_stride(int cols) { return cols % 64 ? cols : cols + 32; }

// Columns k0 .. k0+cols-1 of the rows of d.x, or of the norm of d.x32, into xs (T, stream_stride(cols)).
template <int W> static __device__ __forceinline__ void stream_rows(bf16 *xs, const Dense &d, int k0, int cols) {
    const int C = d.C, ldx = stream_stride(cols), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    SHARED(float, red, [2][STREAM_WARPS][STREAM_NORM_MOST]);
    float mean[STREAM_NORM_MOST] = {}, s[STREAM_NORM_MOST] = {};
    if (d.x32)
        for (int pass = d.norm_b ? 0 : 1; pass < 2; pass++) {   // the mean, then the variance about it
            #pragma unroll
            for (int r = 0; r < STREAM_NORM_MOST; r++) {
                float sum = 0;
                if (r < d.T)
                    for (int c = threadIdx.x * 4; c < C; c += STREAM_WARPS * 128) {
                        float x[4];
                        unpack(x, load_128(d.x32 + (size_t)r * C + c), 0.0f);
                        #pragma unroll
                        for (int k = 0; k < 4; k++) sum += pass == 0 ? x[k] : (x[k] - mean[r]) * (x[k] - mean[r]);
                    }
                sum = warp_sum(sum);
                if (lane == 0) red[pass][warp][r] = sum;
            }
            __syncthreads();
            #pragma unroll
            for (int r = 0; r < STREAM_NORM_MOST; r++) {
                float all = 0;
                for (int w = 0; w < STREAM_WARPS; w++) all += red[pass][w][r];
                if (pass == 0) mean[r] = all / C;
                else s[r] = 1 / sqrtf(all / C + d.eps);
            }
        }
    #pragma unroll
    for (int r = 0; r < STREAM_NORM_MOST; r++)
        for (int t = r; t < d.T; t += STREAM_NORM_MOST)
            for (int c = threadIdx.x * 8; c < cols; c += STREAM_WARPS * 256) {
                uint4 v = make_uint4(0, 0, 0, 0);
                const int k = k0 + c;
                if (k < C && !d.x32) v = load_128((const bf16 *)d.x + (size_t)t * C + k);
                if (k < C && d.x32) {
                    float x[2][4], y[8];
                    unpack(x[0], load_128(d.x32 + (size_t)t * C + k), 0.0f);
                    unpack(x[1], load_128(d.x32 + (size_t)t * C + k + 4), 0.0f);
                    #pragma unroll
                    for (int i = 0; i < 8; i++)
                        y[i] = ((x[i / 4][i % 4] - mean[r]) * s[r] * d.norm_w[k + i] +
                                (d.norm_b ? d.norm_b[k + i] : 0)) * d.norm_scale;
                    v = pack(y);
                }
                bf16 *to = xs + t * ldx;
                if constexpr (W == DT_BF16) store_128(to + c, v);
                else {
                    const u32 u[4] = {v.x, v.y, v.z, v.w};
                    #pragma unroll
                    for (int i = 0; i < 8; i++) to[x_place<W>(c + i)] = (bf16)(u[i / 2] >> i % 2 * 16);
                }
            }
    __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------

// Where a warp's stream is: chunk i of the slab, of unit u.
typedef struct { int u, i; } Cursor;
static __device__ __forceinline__ void step(Cursor &c, int n) {
    for (c.i += STREAM_WARPS; c.i >= n; c.i -= n) c.u += gridDim.x;
}

// The end of unit u: the warps' sums, and those of the blocks that share it, are added up in their order and go where
// the layer wants them.
template <int W, int NT>
static __device__ __forceinline__ void stream_out(const float (&acc)[NT][4], float *part, const Dense &d,
                                                  const Device &dev, int u, int units, int per) {
    // acc: this lane's of (16,8*NT), part (8 warps, NT*128) -> rows of d.out, columns u*per ..
    SHARED(int, ticket, );
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    #pragma unroll
    for (int m = 0; m < NT; m++)
        #pragma unroll
        for (int e = 0; e < 4; e++) part[(warp * NT + m) * 128 + e * 32 + lane] = acc[m][e];
    __syncthreads();
    float *all = dev.partial + ((size_t)blockIdx.y * units + u) * NT * 128;
    for (int i = threadIdx.x; i < NT * 128; i += 32 * STREAM_WARPS) {
        float y = 0;
        for (int w = 0; w < STREAM_WARPS; w++) y += part[w * NT * 128 + i];
        if (gridDim.y > 1) all[i] = y;
        else part[i] = y;   // only this thread looks at column i of part
    }
    if (gridDim.y > 1) __threadfence();
    __syncthreads();
    bool finishing = true;
    if (gridDim.y > 1) {
        if (threadIdx.x == 0) {
            ticket = atomicAdd(dev.tickets + u, 1);
            if (ticket == (int)gridDim.y - 1) atomicExch(dev.tickets + u, 0);
        }
        __syncthreads();
        finishing = ticket == (int)gridDim.y - 1;
        if (finishing) __threadfence();
    }
    for (int i = threadIdx.x; finishing && i < NT * 128; i += 32 * STREAM_WARPS) {
        const int e = i / 32 % 4, row = i / 128 * 8 + i % 4 * 2 + e % 2;
        const int o = u * per + i % 32 / 4 + (d.gated ? 0 : e / 2 * 8);
        if (row >= d.T || o >= d.OC || (d.gated && e >= 2)) continue;
        float y = 0, z = 0;
        if (gridDim.y == 1) y = part[i], z = d.gated ? part[i + 64] : 0;
        else
            for (int k = 0; k < (int)gridDim.y; k++) {
                const float *p = dev.partial + ((size_t)k * units + u) * NT * 128 + i;
                y += p[0], z += d.gated ? p[64] : 0;
            }
        if (W == DT_INT8) {
            y *= ((const float *)d.w.scale)[o];
            if (d.gated) z *= ((const float *)d.w.scale)[o + d.OC];
        }
        finish<bf16>(d, row, o, y, z);
    }
    __syncthreads();   // before part is written anew
}

template <int W, int NT>
__global__ void __launch_bounds__(32 * STREAM_WARPS, NT <= 2 ? 3 : 2) stream_kernel(Dense d, Device dev, int slab) {
    // see Dense; d.T <= 8*NT, slab: chunks a block, of which gridDim.y make a row
    SHARED_DYNAMIC(uint8_t, smem);   // ring, parts (8 warps, NT*128), xs
    constexpr int CHUNK = chunk_columns<W>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int per = d.gated ? 8 : 16, units = (d.OC + per - 1) / per, chunks = (d.C + CHUNK - 1) / CHUNK;
    const int c0 = blockIdx.y * slab, n = (chunks - c0 < slab ? chunks - c0 : slab);
    const size_t row_bytes = W == DT_BF16 ? (size_t)d.C * 2 : W == DT_INT8 ? d.C : (size_t)(d.C + 31) / 32 * 16;
    uint8_t *ring = smem + warp * 1024;
    float *part = (float *)(smem + STREAM_RING);
    bf16 *xs = (bf16 *)(part + STREAM_WARPS * NT * 128);
    const int ldx = stream_stride(n * CHUNK);

    const auto row_of = [&](int u, int half) { return d.gated ? half * d.OC + u * 8 + g : u * 16 + half * 8 + g; };
    const auto there = [&](int u, int half) { return u < units && u * per + (d.gated ? 0 : half * 8) + g < d.OC; };
    const auto fetch = [&](const Cursor &c, int stage) {
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            const size_t at = (size_t)(c0 + c.i) * 64 + t * 16;
            const bool ok = there(c.u, half) && at < row_bytes;
            const uint8_t *from = (const uint8_t *)d.w.data + (ok ? row_of(c.u, half) * row_bytes + at : 0);
            cp_async_16(ring + stage * STREAM_WARPS * 1024 + half * 512 + piece_at<W>(g, t) * 16, from, ok ? 16 : 0);
        }
        cp_async_commit();
    };
    uint2 scale[2], next_scale[2];
    const auto fetch_scales = [&](const Cursor &c) {
        #pragma unroll
        for (int half = 0; half < 2; half++)
            next_scale[half] = there(c.u, half) ? scales_4(d.w, row_of(c.u, half), c0 + c.i) : make_uint2(0, 0);
    };

    const int going = goes_on(d.going);
    Cursor ahead = {(int)blockIdx.x, warp}, scaled, now;
    for (; ahead.i >= n; ahead.i -= n) ahead.u += gridDim.x;
    now = scaled = ahead;
    #pragma unroll
    for (int stage = 0; stage < STREAM_STAGES; stage++, step(ahead, n)) fetch(ahead, stage);
    if (W == DT_INT4) fetch_scales(scaled);
    pdl_wait();
    pdl_launch();
    if (!going) {
        cp_async_wait<0>();
        return;
    }
    stream_rows<W>(xs, d, c0 * CHUNK, n * CHUNK);

    int stage = 0;
    for (int u = blockIdx.x; u < units; u += gridDim.x) {
        float acc[NT][4] = {};
        for (; now.u == u; step(now, n), stage = (stage + 1) % STREAM_STAGES) {
            cp_async_wait<STREAM_STAGES - 1>();
            if (W == DT_INT4) {
                __syncwarp();
                scale[0] = next_scale[0], scale[1] = next_scale[1];
                step(scaled, n);
                fetch_scales(scaled);
            }
            const uint8_t *pieces = ring + stage * STREAM_WARPS * 1024;
            uint4 own[2] = {};
            if (W != DT_INT4) own[0] = load_128(pieces + lane * 16), own[1] = load_128(pieces + 512 + lane * 16);
            #pragma unroll
            for (int sub = 0; sub < CHUNK / 32; sub++) {
                u32 a[4], b[4];
                fragment<W>(a, pieces, own[0], sub, g, t);
                fragment<W>(b, pieces + 512, own[1], sub, g, t);
                const u32 left[2][4] = {{a[0], b[0], a[1], b[1]}, {a[2], b[2], a[3], b[3]}};
                #pragma unroll
                for (int m = 0; m < NT; m++) {
                    if (m * 8 >= d.T) break;
                    uint4 v = make_uint4(0, 0, 0, 0);
                    if (m * 8 + g < d.T) v = load_128(xs + (m * 8 + g) * ldx + now.i * CHUNK + sub * 32 + t * 8);
                    const u32 right[4] = {v.x, v.y, v.z, v.w};
                    if constexpr (W != DT_INT4) {
                        mma_m16n8k16_bf16(acc[m], left[0], right);
                        mma_m16n8k16_bf16(acc[m], left[1], right + 2);
                    } else {
                        float sum[4] = {};
                        mma_m16n8k16_bf16(sum, left[0], right);
                        mma_m16n8k16_bf16(sum, left[1], right + 2);
                        #pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const u32 two = sub < 2 ? scale[e / 2].x : scale[e / 2].y;
                            acc[m][e] += sum[e] * f16_to_f32((f16)(two >> sub % 2 * 16));
                        }
                    }
                }
            }
            if (W == DT_INT4) __syncwarp();   // all have read what is fetched anew now
            fetch(ahead, stage);
            step(ahead, n);
        }
        stream_out<W, NT>(acc, part, d, dev, u, units, per);
    }
    cp_async_wait<0>();
}

template <int W, int NT> static bool stream_launch(cudaStream_t s, const Dense &d, const Device &dev) {
    const int per = d.gated ? 8 : 16, units = ceil_div(d.OC, per), chunks = ceil_div(d.C, chunk_columns<W>());
    const int per_sm = NT <= 2 ? 2 : 1, fixed = STREAM_RING + NT * STREAM_WARPS * 512 + 1024;
    const int room = (dev.shared_most / per_sm - fixed - 1024) / (d.T * 2) - 32;   // columns of x
    if (room < chunk_columns<W>()) return false;
    int split = ceil_div(chunks, room / chunk_columns<W>());
    while (dev.partial && units * split < dev.sms && split * 2 * STREAM_WARPS <= chunks) split *= 2;
    const int slab = ceil_div(chunks, split);
    split = ceil_div(chunks, slab);
    const size_t bytes = (size_t)split * units * NT * 512;
    if (split > 1 && (!dev.partial || bytes > dev.partial_bytes || units > STREAM_TICKETS)) return false;
    const int blocks = ceil_div(dev.sms * per_sm, split), grid = units < blocks ? units : blocks;
    const size_t shared = STREAM_RING + NT * STREAM_WARPS * 512 +
                          (size_t)d.T * stream_stride(slab * chunk_columns<W>()) * sizeof(bf16);
    const auto kernel = stream_kernel<W, NT>;
    CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH_PDL(kernel, dim3(grid, split), dim3(32 * STREAM_WARPS), shared, s, d, dev, slab);
    return true;
}

template <int W> static bool stream_dense_of(cudaStream_t s, const Dense &d, const Device &dev) {
    return d.T <= 8 ? stream_launch<W, 1>(s, d, dev) : d.T <= 16 ? stream_launch<W, 2>(s, d, dev)
         : d.T <= 32 ? stream_launch<W, 4>(s, d, dev) : stream_launch<W, 8>(s, d, dev);
}

// False: not for this layer, nothing was launched.
static bool stream_dense(cudaStream_t s, const Dense &d, const Device &dev) {
    const int dtype = d.w.dtype;
    if (d.T > STREAM_MOST || (d.x32 && d.T > STREAM_NORM_MOST) || (uintptr_t)(d.x32 ? d.x32 : d.x) % 16) return false;
    if (dtype == DT_F32 || d.C % 8 || (dtype == DT_INT8 && d.C % 16) || (uintptr_t)d.w.data % 16) return false;
    return dtype == DT_BF16 ? stream_dense_of<DT_BF16>(s, d, dev)
         : dtype == DT_INT8 ? stream_dense_of<DT_INT8>(s, d, dev) : stream_dense_of<DT_INT4>(s, d, dev);
}

#endif
