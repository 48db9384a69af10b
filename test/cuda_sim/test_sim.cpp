// test/cuda_sim/test_sim.cpp: the simulator itself: every kind of mistake that it promises to find is made once and
// must be found, and the right program beside it must pass and give the right numbers.
//
// In order: running a scenario in a process of its own, races and barriers, warps, memory, cp.async, tensor cores,
// limits, the table of all scenarios (those of the host API: host_scenarios.h).
#include "../../cuda_common.h"
#include "../check.h"
#include <sys/wait.h>
#include <unistd.h>

static Tally tally;

// Runs f(seed) in a child and returns its exit code; what it wrote to stderr goes to text.
static int run_child(void (*f)(), int seed, char *text, size_t room) {
    int fd[2];
    if (pipe(fd)) return -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(fd[1], 2);
        close(fd[0]);
        sim_seed((uint64_t)seed);
        f();
        CUDA_CHECK(cudaDeviceSynchronize());
        _exit(0);
    }
    close(fd[1]);
    size_t n = 0;
    ssize_t got;
    while ((got = read(fd[0], text + n, room - 1 - n)) > 0) n += (size_t)got;
    text[n] = 0;
    close(fd[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

// word: what the report must contain, NULL when the scenario is right. `of` seeds, of which at least one must find it
// (all of them unless the mistake is a matter of chance).
static void scenario(const char *name, void (*f)(), const char *word) {
    static char text[1 << 16];
    for (int seed = 1; seed <= 4; seed++) {
        int code = run_child(f, seed, text, sizeof text);
        if (!word) EXPECT(&tally, code == 0, "%s, seed %d: exit code %d: %s", name, seed, code, text);
        else EXPECT(&tally, code != 0 && strstr(text, word), "%s, seed %d: exit code %d, no '%s' in: %s", name, seed,
                    code, word, text);
    }
}

static void demand(bool ok, const char *what, int line) {
    if (ok) return;
    fprintf(stderr, "wrong result: line %d: %s\n", line, what);
    _exit(2);
}
#define DEMAND(cond) demand(cond, #cond, __LINE__)

template <class T> static T *device_array(size_t n, const T *from = NULL) {
    T *p;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof(T)));
    if (from) CUDA_CHECK(cudaMemcpy(p, from, n * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

template <class T> static void fetch(T *to, const T *from, size_t n) {
    CUDA_CHECK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost));
}

// ---------------------------------------------------------------------------------------------------------
// Races and barriers

template <int BARRIER> __global__ void reverse(float *x) {
    SHARED(float, s, [96]);
    s[threadIdx.x] = x[threadIdx.x];
    if (BARRIER == 1) __syncthreads();
    if (BARRIER == 2) __syncwarp();
    if (BARRIER == 3 && threadIdx.x < 64) __syncthreads();
    if (BARRIER == 4) {
        if (threadIdx.x < 64) __syncthreads();
        else __syncthreads();
    }
    x[threadIdx.x] = s[95 - threadIdx.x];
}

template <int BARRIER> static void run_reverse() {
    float x[96];
    for (int i = 0; i < 96; i++) x[i] = (float)i;
    float *d = device_array(96, x);
    LAUNCH(reverse<BARRIER>, 1, 96, 0, 0, d);
    fetch(x, d, 96);
    for (int i = 0; i < 96; i++) DEMAND(x[i] == (float)(95 - i));
    CUDA_CHECK(cudaFree(d));
    DEMAND(sim_unfreed() == 0);
}

// ---------------------------------------------------------------------------------------------------------
// Warps

template <int WRONG> __global__ void warp_sum(float *x) {
    int lane = threadIdx.x % 32;
    float v = x[threadIdx.x];
    unsigned mask = WRONG == 1 ? 0x0000FFFFu : 0xFFFFFFFFu;
    if (WRONG == 2 && lane == 31) return;
    if (WRONG == 3) {
        if (lane < 16) v += __shfl_xor_sync(mask, v, 16);
        else v += __shfl_xor_sync(mask, v, 16);
    } else if (WRONG == 4) {
        if (lane < 16) v += __shfl_down_sync(0x0000FFFFu, v, 16);
    } else {
        v += __shfl_xor_sync(mask, v, 16);
    }
    for (int d = 8; d; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    unsigned all = __ballot_sync(0xFFFFFFFFu, lane % 2);
    x[threadIdx.x] = all == 0xAAAAAAAAu ? v : -1;
}

template <int WRONG> static void run_warp_sum() {
    float x[64], got[64];
    for (int i = 0; i < 64; i++) x[i] = (float)i;
    float *d = device_array(64, x);
    LAUNCH(warp_sum<WRONG>, 1, 64, 0, 0, d);
    fetch(got, d, 64);
    for (int i = 0; i < 64; i++) DEMAND(got[i] == (i < 32 ? 496.0f : 1520.0f));
}

// Warp-private shared memory: __syncwarp is enough, a shuffle is not.
template <int SYNC> __global__ void warp_reverse(int *x) {
    SHARED(int, s, [64]);
    s[threadIdx.x] = x[threadIdx.x];
    if (SYNC) __syncwarp();
    else (void)__shfl_sync(0xFFFFFFFFu, 0, 0);
    x[threadIdx.x] = s[threadIdx.x ^ 31];
}
template <int SYNC> static void run_warp_reverse() {
    int x[64];
    for (int i = 0; i < 64; i++) x[i] = i;
    int *d = device_array(64, x);
    LAUNCH(warp_reverse<SYNC>, 1, 64, 0, 0, d);
    fetch(x, d, 64);
    for (int i = 0; i < 64; i++) DEMAND(x[i] == (i ^ 31));
}

__global__ void spin(const volatile int *flag) { while (*flag == 0) { } }
static void run_spin() {
    int zero = 0;
    LAUNCH(spin, 1, 1, 0, 0, device_array(1, &zero));
}

// ---------------------------------------------------------------------------------------------------------
// Memory

template <int WRONG> __global__ void add_one(float *x, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (WRONG == 1 ? i <= n : i < n) x[i] += 1;
}
template <int WRONG> static void run_add_one() {
    float x[100] = {0};
    float *d = device_array(100, x);
    LAUNCH(add_one<WRONG>, dim3(2), 64, 0, 0, WRONG == 2 ? x : d, 100);
    CUDA_CHECK(cudaDeviceSynchronize());
    if (WRONG == 3) x[0] = d[0];
    if (WRONG == 5) {
        LAUNCH(add_one<0>, 2, 64, 0, 0, d, 100);
        float *late = d;
        CUDA_CHECK(cudaFree(d));
        LAUNCH(add_one<0>, 2, 64, 0, 0, late, 100);
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    fetch(x, d, WRONG == 4 ? 101 : 100);
    for (int i = 0; i < 100; i++) DEMAND(x[i] == 1);
}

__global__ void copy_raw(float *y, const float *x) { y[threadIdx.x] = x[threadIdx.x] * 0; }
static void run_poison() {          // memory that nobody wrote is NaN
    float y[32], *d = device_array(64, (float *)NULL);
    LAUNCH(copy_raw, 1, 32, 0, 0, d + 32, d);
    fetch(y, d + 32, 32);
    for (int i = 0; i < 32; i++) DEMAND(not_finite(y[i]));
}

template <int SHIFT, int HOW> __global__ void vectors(float *x) {
    if (HOW == 0) *(float4 *)(x + SHIFT) = *(const float4 *)(x + 8);
    if (HOW == 1) store_128(x, load_stream_128(x + 8 + SHIFT));
    if (HOW == 2) store_128(x + SHIFT, load_128(x + 8));
}
template <int SHIFT, int HOW> static void run_vectors() {
    float x[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5};
    float *d = device_array(16, x);
    LAUNCH((vectors<SHIFT, HOW>), 1, 1, 0, 0, d);
    fetch(x, d, 16);
    DEMAND(x[0] == 1 && x[3] == 4);
}

template <int WRONG> __global__ void shared_bounds(float *x) {
    SHARED_DYNAMIC(float, s);
    s[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = s[31 - threadIdx.x + WRONG];
}
template <int WRONG> static void run_shared_bounds() {
    LAUNCH(shared_bounds<WRONG>, 1, 32, 128, 0, device_array(32, (float *)NULL));
}

template <int WRONG> __global__ void blocks_race(int *x) {
    if (WRONG) x[0] = 1;
    else atomicAdd(x, 1);
}
template <int WRONG> static void run_blocks_race() {
    int x = 0, *d = device_array(1, &x);
    LAUNCH(blocks_race<WRONG>, 7, 1, 0, 0, d);
    fetch(&x, d, 1);
    DEMAND(x == 7);
}

// The last block to arrive sums what all wrote: the fence makes it right.
template <int FENCE> __global__ void last_block(int *out, int *part, int *count) {
    part[blockIdx.x] = (int)blockIdx.x;
    if (FENCE) __threadfence();
    if (atomicAdd(count, 1) != (int)gridDim.x - 1) return;
    int sum = 0;
    for (int i = 0; i < (int)gridDim.x; i++) sum += part[i];
    *out = sum;
}
template <int FENCE> static void run_last_block() {
    int zero = 0, out, *d = device_array(1, &zero);
    LAUNCH(last_block<FENCE>, 9, 1, 0, 0, d, device_array(9, (int *)NULL), device_array(1, &zero));
    fetch(&out, d, 1);
    DEMAND(out == 36);
}

// ---------------------------------------------------------------------------------------------------------
// cp.async

template <int WRONG> __global__ void staged(float *y, const float *x) {
    SHARED(float, s, [2][128]);
    int t = (int)threadIdx.x;
    for (int k = 0; k < 2; k++) {
        cp_async_16(&s[k][4 * t], x + 128 * k + 4 * t + (WRONG == 3), k ? 8 : 16);
        cp_async_commit();
    }
    if (WRONG == 1) cp_async_wait<2>();
    else cp_async_wait<1>();
    if (WRONG != 2) __syncthreads();
    for (int j = 0; j < 4; j++) y[4 * t + j] = s[0][127 - 4 * t - j];
    if (WRONG != 4) cp_async_wait<0>();
    if (WRONG != 4) for (int j = 0; j < 4; j++) y[128 + 4 * t + j] = s[1][4 * t + j];
}
template <int WRONG> static void run_staged() {
    float x[260], y[256];
    for (int i = 0; i < 260; i++) x[i] = (float)i;
    float *d = device_array(256, (float *)NULL);
    LAUNCH(staged<WRONG>, 1, 32, 0, 0, d, device_array(260, x));
    fetch(y, d, 256);
    for (int i = 0; i < 128; i++) DEMAND(y[i] == (float)(127 - i));
    for (int i = 128; i < 256; i++) DEMAND(y[i] == (i % 4 < 2 ? (float)i : 0));
}

// ---------------------------------------------------------------------------------------------------------
// Tensor cores: d (16,8) = a (16,16) b (16,8) with both operands by ldmatrix, b from its row-major form by .trans

template <int WRONG> __global__ void multiply(float *d, const bf16 *a, const bf16 *b) {
    SHARED(bf16, sa, [16][24]);
    SHARED(bf16, sb, [16][24]);
    int lane = (int)threadIdx.x;
    for (int i = lane; i < 256; i += 32) {
        sa[i / 16][i % 16] = a[i];
        sb[i / 16][i % 16] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : 0;
    }
    __syncwarp();
    u32 ra[4], rb[4];
    ldmatrix_x4(ra, &sa[lane % 16][lane / 16 * 8]);
    ldmatrix_x4_trans(rb, &sb[lane % 16][WRONG == 2 ? 1 : lane / 16 * 8]);
    if (WRONG == 1) { u32 swap = ra[1]; ra[1] = ra[2]; ra[2] = swap; }
    float sum[4] = {0, 0, 0, 0};
    mma_m16n8k16_bf16(sum, ra, rb);
    for (int i = 0; i < 4; i++) d[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
template <int WRONG> static void run_multiply() {
    bf16 a[256], b[128];
    for (int i = 0; i < 256; i++) a[i] = f32_to_bf16((float)(i * 7 % 23 - 11));
    for (int i = 0; i < 128; i++) b[i] = f32_to_bf16((float)(i * 5 % 19 - 9));
    float got[128], *d = device_array(128, (float *)NULL);
    LAUNCH(multiply<WRONG>, 1, 32, 0, 0, d, device_array(256, a), device_array(128, b));
    fetch(got, d, 128);
    for (int i = 0; i < 16; i++) for (int j = 0; j < 8; j++) {
        float want = 0;
        for (int k = 0; k < 16; k++) want += bf16_to_f32(a[i * 16 + k]) * bf16_to_f32(b[k * 8 + j]);
        DEMAND(got[i * 8 + j] == want);
    }
}

// What --fragments prints for fragments.py, which compares it with CUTLASS: operand, lane, value, row, column. A (M,K),
// B (N,K), C (M,N) of mma; which lane's row and which element of it ldmatrix (L) and its transposed form (T) deliver.
int sim_a_row(int l, int r), sim_a_column(int l, int r, int half);
int sim_b_row(int l, int r, int half), sim_b_column(int l);
int sim_d_row(int l, int i), sim_d_column(int l, int i);

__global__ void load_fragments(u32 *out) {
    SHARED(uint16_t, s, [32][8]);
    const int lane = (int)threadIdx.x;
    for (int i = 0; i < 8; i++) s[lane][i] = (uint16_t)(8 * lane + i);
    __syncwarp();
    u32 r[4];
    ldmatrix_x4(r, s[lane]);
    for (int i = 0; i < 4; i++) out[lane * 4 + i] = r[i];
    ldmatrix_x4_trans(r, s[lane]);
    for (int i = 0; i < 4; i++) out[128 + lane * 4 + i] = r[i];
}

static int print_fragments() {
    u32 got[256], *d = device_array(256, (u32 *)NULL);
    LAUNCH(load_fragments, 1, 32, 0, 0, d);
    fetch(got, d, 256);
    for (int l = 0; l < 32; l++)
        for (int v = 0; v < 8; v++) {
            printf("A %d %d %d %d\n", l, v, sim_a_row(l, v / 2), sim_a_column(l, v / 2, v % 2));
            for (int t = 0; t < 2; t++) {
                const int e = got[128 * t + 4 * l + v / 2] >> 16 * (v % 2) & 0xFFFF;
                printf("%c %d %d %d %d\n", "LT"[t], l, v, e / 8, e % 8);
            }
            if (v >= 4) continue;
            printf("B %d %d %d %d\n", l, v, sim_b_column(l), sim_b_row(l, v / 2, v % 2));
            printf("C %d %d %d %d\n", l, v, sim_d_row(l, v), sim_d_column(l, v));
        }
    fflush(stdout);
    _exit(0);
}

// ---------------------------------------------------------------------------------------------------------
// Limits

template <int BYTES> struct Big { char bytes[BYTES]; };
template <int BYTES> __global__ void big_argument(Big<BYTES>) { }
__global__ void nothing() { }
__global__ void much_static() { SHARED(char, s, [49153]); s[0] = 1; }
template <int BYTES> static void run_big_argument() { LAUNCH(big_argument<BYTES>, 1, 1, 0, 0, Big<BYTES>{}); }
template <unsigned X, unsigned Y, unsigned Z> static void run_block() { LAUNCH(nothing, 1, dim3(X, Y, Z), 0, 0); }
template <unsigned X, unsigned Y, unsigned Z> static void run_grid() { LAUNCH(nothing, dim3(X, Y, Z), 1, 0, 0); }
static void run_much_static() { LAUNCH(much_static, 1, 1, 0, 0); }
static void run_no_opt_in() { LAUNCH(nothing, 1, 1, 49153, 0); }
__global__ void both_kinds(char *x) { SHARED(char, s, [1024]); s[0] = *x; *x = s[0]; }
template <size_t BYTES> static void run_both_kinds() {
    LAUNCH(both_kinds, 1, 1, BYTES, 0, device_array(1, "x"));
}
// As much constant memory as there may be.
__constant__ int TABLE[16384] = {1, 2, 3};
template <int WRITE> __global__ void read_constant(int *x) {
    if (WRITE) TABLE[0] = 7;
    x[threadIdx.x] = TABLE[threadIdx.x];
}
template <int WRITE, size_t MORE> static void run_constant() {
    int x[4], *d = device_array(4, (int *)NULL);
    sim_constant(MORE);
    LAUNCH(read_constant<WRITE>, 1, 4, 0, 0, d);
    fetch(x, d, 4);
    DEMAND(x[0] == 1 && x[2] == 3 && x[3] == 0);
}
template <int CC> static void run_opt_in() {
    sim_device(CC);
    CUDA_CHECK(cudaFuncSetAttribute((const void *)nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    LAUNCH(nothing, 1, 1, 227 * 1024, 0);
}
static void run_full() {
    void *p;
    sim_memory(1000);
    CUDA_CHECK(cudaMalloc(&p, 1001));
}

#include "host_scenarios.h"

// ---------------------------------------------------------------------------------------------------------
// The table

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "--fragments")) return print_fragments();
    scenario("barrier", run_reverse<1>, NULL);
    scenario("no barrier", run_reverse<0>, "race");
    scenario("__syncwarp for a barrier", run_reverse<2>, "race");
    scenario("barrier in a branch", run_reverse<3>, "cuda_sim");
    scenario("two barriers", run_reverse<4>, "barrier");
    scenario("shuffles", run_warp_sum<0>, NULL);
    scenario("mask without the caller", run_warp_sum<1>, "mask");
    scenario("a lane has ended", run_warp_sum<2>, "ended");
    scenario("shuffle in two branches", run_warp_sum<3>, "warp");
    scenario("reads a lane out of the mask", run_warp_sum<4>, "does not name");
    scenario("__syncwarp", run_warp_reverse<1>, NULL);
    scenario("shuffle for __syncwarp", run_warp_reverse<0>, "race");
    scenario("endless loop", run_spin, "hang");
    scenario("memory", run_add_one<0>, NULL);
    scenario("one too far", run_add_one<1>, "out of bounds");
    scenario("host memory in a kernel", run_add_one<2>, "host memory");
    scenario("device memory on the host", run_add_one<3>, "device memory");
    scenario("copy too long", run_add_one<4>, "out of bounds");
    scenario("use after free", run_add_one<5>, "use after free");
    scenario("poison", run_poison, NULL);
    scenario("aligned", run_vectors<0, 0>, NULL);
    scenario("aligned helpers", run_vectors<0, 1>, NULL);
    scenario("misaligned float4", run_vectors<1, 0>, "misaligned");
    scenario("misaligned load_stream_128", run_vectors<1, 1>, "misaligned");
    scenario("misaligned store_128", run_vectors<1, 2>, "misaligned");
    scenario("dynamic shared memory", run_shared_bounds<0>, NULL);
    scenario("beyond dynamic shared memory", run_shared_bounds<1>, "out of bounds");
    scenario("atomics of blocks", run_blocks_race<0>, NULL);
    scenario("blocks write the same word", run_blocks_race<1>, "race");
    scenario("fence", run_last_block<1>, NULL);
    scenario("no fence", run_last_block<0>, "race");
    scenario("cp.async", run_staged<0>, NULL);
    scenario("wait for too few", run_staged<1>, "cp.async");
    scenario("no barrier behind the wait", run_staged<2>, "c");
    scenario("misaligned cp.async", run_staged<3>, "misaligned");
    scenario("never waited for", run_staged<4>, "did not wait");
    scenario("mma and ldmatrix", run_multiply<0>, NULL);
    scenario("swapped fragments", run_multiply<1>, "wrong result");
    scenario("misaligned ldmatrix", run_multiply<2>, "misaligned");
    scenario("arguments", run_big_argument<32764>, NULL);
    scenario("too many arguments", run_big_argument<32765>, "arguments");
    scenario("largest blocks", run_block<1024, 1, 1>, NULL);
    scenario("largest deep block", run_block<4, 4, 64>, NULL);
    scenario("block size", run_block<1025, 1, 1>, "block (1025,1,1)");
    scenario("block height", run_block<1, 1025, 1>, "block (1,1025,1)");
    scenario("block depth", run_block<1, 1, 65>, "block (1,1,65)");
    scenario("threads of a block", run_block<32, 33, 1>, "block (32,33,1)");
    scenario("empty block", run_block<32, 0, 1>, "block (32,0,1)");
    scenario("high grid", run_grid<1, 65535, 1>, NULL);
    scenario("grid width", run_grid<0x80000000u, 1, 1>, "grid (2147483648,1,1)");
    scenario("grid height", run_grid<1, 65536, 1>, "grid (1,65536,1)");
    scenario("grid depth", run_grid<1, 1, 65536>, "grid (1,1,65536)");
    scenario("empty grid", run_grid<0, 1, 1>, "grid (0,1,1)");
    scenario("constant memory", run_constant<0, 0>, NULL);
    scenario("constant memory is full", run_constant<0, 1>, "65537 bytes of __constant__ variables");
    scenario("a kernel writes constant memory", run_constant<1, 0>, "writes");
    scenario("static and dynamic shared memory", run_both_kinds<49152 - 1024>, NULL);
    scenario("together too much", run_both_kinds<49152 - 1008>, "1024 static and 48144 dynamic");
    scenario("static shared memory", run_much_static, "static");
    scenario("no opt-in", run_no_opt_in, "dynamic shared memory");
    scenario("opt-in on sm_90", run_opt_in<90>, NULL);
    scenario("opt-in on sm_80", run_opt_in<80>, "more dynamic shared memory");
    scenario("out of memory", run_full, "cudaErrorMemoryAllocation");
    scenario("streams", run_streams<0>, NULL);
    scenario("missing event", run_streams<1>, "race");
    scenario("missing synchronize", run_streams<2>, "");
    scenario("copies from two streams", run_streams<3>, "race");
    scenario("pinned memory written too early", run_streams<4>, "race");
    scenario("graph", run_graph<0>, NULL);
    scenario("branches of a graph race", run_graph<1>, "race");
    scenario("branch not joined", run_graph<2>, "joined");
    scenario("synchronize in a capture", run_graph<3>, "Capture");
    scenario("time between events", run_elapsed<0>, NULL);
    scenario("time of an event without timing", run_elapsed<1>, "takes no time");
    scenario("time before the event is over", run_elapsed<2>, "NotReady");
    scenario("time of an event never recorded", run_elapsed<3>, "not recorded");
    scenario("time of an event in a graph", run_elapsed<4>, "in a capture");
    scenario("programmatic dependent launch", run_chained<0>, NULL);
    scenario("read before pdl_wait", run_chained<1>, "race");
    scenario("no pdl_wait", run_chained<2>, "race");
    scenario("cublasLt", run_dense<0>, NULL);
    scenario("leading dimension too small", run_dense<1>, "leading dimension");
    scenario("matrix misaligned", run_dense<2>, "less aligned");
    scenario("no workspace", run_dense<3>, "workspace");
    scenario("aux epilogue", run_dense<4>, "epilogue");
    scenario("transpose forgotten", run_dense<5>, "fit");
    scenario("leading dimension too large", run_dense<6>, "out of bounds");
    return tally_close(&tally);
}
