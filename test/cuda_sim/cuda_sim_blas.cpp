// test/cuda_sim/cuda_sim_blas.cpp: a stand-in for cublasLt, under the library's own header and prototypes.
//
// In order: the library's opaque descriptors and what is kept in them, attributes, what is supported, the multiply.
//
// Column-major as the library is: D (m,n) = alpha op(A) (m,k) op(B) (k,n) + beta C, then the epilogue; a bias has m
// elements, one for each row of D. Accumulates in f32. Refuses what the library refuses (or documents that it does):
// sizes that do not fit, leading dimensions below the rows, types that are not combined, pointers that are less aligned
// than the heuristic was told, a workspace that is too small, aux epilogues. The heuristic's algorithm remembers for
// which problem it was chosen; using it for another is refused too. Unknown attributes are errors.
#include "sim_host.h"
#include "sim_shared.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>

struct Layout { uint32_t magic; int type, order; uint64_t rows, cols; int64_t ld; int batches; int64_t stride; };
struct Desc { uint32_t magic; int compute, scale, pointer_mode, transa, transb, epilogue, bias_type; const void *bias;
              int64_t bias_stride; };
struct Preference { uint32_t magic; uint64_t workspace; uint32_t align[4]; };
struct Algo { uint32_t magic, problem; uint64_t workspace; uint32_t align[4]; };
enum : uint32_t { IS_LAYOUT = 0x4C41594F, IS_DESC = 0x44455343, IS_PREFERENCE = 0x50524546, IS_ALGO = 0x414C474F };
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t) &&
              sizeof(Desc) <= sizeof(cublasLtMatmulDescOpaque_t) &&
              sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t) &&
              sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t), "descriptors must fit into the library's");
struct cublasLtContext { uint32_t magic; };

static cublasStatus_t refuse(cublasStatus_t status, const char *why) {
    fprintf(stderr, "cuda_sim: cublasLt: %s\n", why);
    return status;
}
static cublasStatus_t invalid(const char *why) { return refuse(CUBLAS_STATUS_INVALID_VALUE, why); }

// The library's opaque descriptor as what is kept in it; NULL, after a message, when it is something else.
template <class T> static const char *name_of();
template <> const char *name_of<Layout>() { return "not a matrix layout"; }
template <> const char *name_of<Desc>() { return "not a matmul descriptor"; }
template <> const char *name_of<Preference>() { return "not a matmul preference"; }
template <class T, class Opaque> static T *known(Opaque *opaque) {
    const uint32_t magic = std::is_same<T, Layout>::value ? IS_LAYOUT
                         : std::is_same<T, Desc>::value ? IS_DESC : IS_PREFERENCE;
    T *x = (T *)opaque;
    if (x && x->magic == magic) return x;
    invalid(name_of<T>());
    return NULL;
}

extern "C" {

const char *cublasLtGetStatusName(cublasStatus_t s) {
    return s == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : s == CUBLAS_STATUS_INVALID_VALUE ?
           "CUBLAS_STATUS_INVALID_VALUE" : s == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" :
           "a cuBLAS error";
}
const char *cublasLtGetStatusString(cublasStatus_t s) { return cublasLtGetStatusName(s); }
size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) {
    *h = new cublasLtContext{1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { delete h; return CUBLAS_STATUS_SUCCESS; }

// ---------------------------------------------------------------------------------------------------------
// Descriptors

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t l, size_t, cudaDataType type, uint64_t rows,
                                                 uint64_t cols, int64_t ld) {
    Layout x = {IS_LAYOUT, type, CUBLASLT_ORDER_COL, rows, cols, ld, 1, 0};
    memcpy((void *)l, &x, sizeof x);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld) {
    *l = new cublasLtMatrixLayoutOpaque_t;
    return cublasLtMatrixLayoutInit_internal(*l, sizeof **l, type, rows, cols, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { delete l; return CUBLAS_STATUS_SUCCESS; }

#define SET(attribute, field) case attribute: \
    if (bytes != sizeof field) return invalid(#attribute ": size of the value"); \
    memcpy(&field, value, bytes); return CUBLAS_STATUS_SUCCESS;

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t what,
                                                const void *value, size_t bytes) {
    Layout *l = known<Layout>(layout);
    if (!l) return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    SET(CUBLASLT_MATRIX_LAYOUT_TYPE, l->type)
    SET(CUBLASLT_MATRIX_LAYOUT_ORDER, l->order)
    SET(CUBLASLT_MATRIX_LAYOUT_ROWS, l->rows)
    SET(CUBLASLT_MATRIX_LAYOUT_COLS, l->cols)
    SET(CUBLASLT_MATRIX_LAYOUT_LD, l->ld)
    SET(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, l->batches)
    SET(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, l->stride)
    default: return invalid("a layout attribute that is not simulated");
    }
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t d, size_t, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    Desc x = {IS_DESC, compute, scale, CUBLASLT_POINTER_MODE_HOST, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT,
              -1, NULL, 0};
    memcpy((void *)d, &x, sizeof x);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale) {
    *d = new cublasLtMatmulDescOpaque_t;
    return cublasLtMatmulDescInit_internal(*d, sizeof **d, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { delete d; return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes) {
    Desc *d = known<Desc>(desc);
    if (!d) return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    SET(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, d->compute)
    SET(CUBLASLT_MATMUL_DESC_SCALE_TYPE, d->scale)
    SET(CUBLASLT_MATMUL_DESC_POINTER_MODE, d->pointer_mode)
    SET(CUBLASLT_MATMUL_DESC_TRANSA, d->transa)
    SET(CUBLASLT_MATMUL_DESC_TRANSB, d->transb)
    SET(CUBLASLT_MATMUL_DESC_EPILOGUE, d->epilogue)
    SET(CUBLASLT_MATMUL_DESC_BIAS_POINTER, d->bias)
    SET(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, d->bias_type)
    SET(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, d->bias_stride)
    default: return invalid("a matmul attribute that is not simulated");
    }
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t p, size_t) {
    Preference x = {IS_PREFERENCE, 0, {256, 256, 256, 256}};
    memcpy((void *)p, &x, sizeof x);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = new cublasLtMatmulPreferenceOpaque_t;
    return cublasLtMatmulPreferenceInit_internal(*p, sizeof **p);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { delete p; return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t what, const void *value,
                                                    size_t bytes) {
    Preference *p = known<Preference>(pref);
    if (!p) return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    SET(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, p->workspace)
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p->align[0])
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p->align[1])
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p->align[2])
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p->align[3])
    default: return invalid("a preference that is not simulated");
    }
}

}   // extern "C"

// ---------------------------------------------------------------------------------------------------------
// What is supported

static size_t bytes_of(int type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF || type == CUDA_R_16F ? 2 : 0; }

struct Problem { Desc d; Layout a, b, c, out; uint64_t m, n, k; };

static cublasStatus_t read_problem(Problem *p, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                   cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    const Desc *what = known<Desc>(desc);
    const Layout *given[4] = {known<Layout>(a), known<Layout>(b), known<Layout>(c), known<Layout>(d)};
    if (!what || !given[0] || !given[1] || !given[2] || !given[3]) return CUBLAS_STATUS_INVALID_VALUE;
    *p = {*what, *given[0], *given[1], *given[2], *given[3], 0, 0, 0};
    for (const Layout *l : given) {
        if (!l->rows || !l->cols) return invalid("a matrix without elements");
        if (l->order != CUBLASLT_ORDER_COL) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "only column-major layouts");
        if (l->ld < (int64_t)l->rows) return invalid("a leading dimension below the number of rows");
        if (l->batches != p->out.batches) return invalid("batch counts differ");
        if (l->batches > 1 && l->stride == 0 && l == given[3]) return invalid("batches of D at the same place");
    }
    bool ta = p->d.transa == CUBLAS_OP_T, tb = p->d.transb == CUBLAS_OP_T;
    if ((!ta && p->d.transa != CUBLAS_OP_N) || (!tb && p->d.transb != CUBLAS_OP_N)) {
        return invalid("an unknown transpose");
    }
    p->m = ta ? p->a.cols : p->a.rows;
    p->k = ta ? p->a.rows : p->a.cols;
    p->n = tb ? p->b.rows : p->b.cols;
    if ((tb ? p->b.cols : p->b.rows) != p->k) return invalid("A and B do not fit");
    if (p->out.rows != p->m || p->out.cols != p->n) return invalid("D does not fit A and B");
    if (p->c.rows != p->m || p->c.cols != p->n || p->c.type != p->out.type) return invalid("C is not like D");
    bool f32 = p->d.compute == CUBLAS_COMPUTE_32F || p->d.compute == CUBLAS_COMPUTE_32F_PEDANTIC;
    if (!f32 || p->d.scale != CUDA_R_32F) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "only f32 accumulation and scale");
    if (p->a.type != p->b.type || !bytes_of(p->a.type) || !bytes_of(p->out.type) ||
        (p->out.type != p->a.type && p->out.type != CUDA_R_32F)) {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a combination of types that the library has not");
    }
    int e = p->d.epilogue & ~CUBLASLT_EPILOGUE_BIAS;
    bool simulated = p->d.epilogue == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_DEFAULT ||
                     e == CUBLASLT_EPILOGUE_RELU || e == CUBLASLT_EPILOGUE_GELU;
    if (!simulated || p->d.epilogue == (CUBLASLT_EPILOGUE_DEFAULT | CUBLASLT_EPILOGUE_BIAS)) {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "an epilogue that is not simulated");
    }
    if (p->d.bias_type < 0) p->d.bias_type = p->out.type;
    if (p->d.bias_type != p->out.type && !(p->a.type == CUDA_R_32F && p->d.bias_type == CUDA_R_32F)) {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a bias of another type than D");
    }
    return CUBLAS_STATUS_SUCCESS;
}

static bool same(const Layout &x, const Layout &y) {
    return x.type == y.type && x.rows == y.rows && x.cols == y.cols && x.ld == y.ld && x.batches == y.batches &&
           x.stride == y.stride;
}

// Identifies a problem; the bias pointer may change, everything else may not.
static uint32_t fingerprint(const Problem &p) {
    uint64_t h = 1469598103934665603u;
    auto mix = [&h](uint64_t x) { h = (h ^ x) * 1099511628211u; h ^= h >> 29; };
    const Layout *all[4] = {&p.a, &p.b, &p.c, &p.out};
    for (const Layout *l : all) mix(l->type), mix(l->rows), mix(l->cols), mix(l->ld), mix(l->batches), mix(l->stride);
    mix(p.d.compute), mix(p.d.transa), mix(p.d.transb), mix(p.d.epilogue), mix(p.d.bias_type);
    return (uint32_t)(h ^ h >> 32);
}

extern "C" cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
        cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
        cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t pref, int requested,
        cublasLtMatmulHeuristicResult_t *results, int *found) {
    Problem p;
    *found = 0;
    if (!handle || handle->magic != 1) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    if (cublasStatus_t s = read_problem(&p, desc, a, b, c, d)) return s;
    const Preference *want = known<Preference>(pref);
    if (!want || requested < 1) return invalid("no preference, or nothing requested");
    // The tensor cores' kernels need rows that begin on 16 bytes; for others the library has slow ones or none.
    Algo algo = {IS_ALGO, fingerprint(p), want->workspace < 4096 ? 0 : 4096 * (uint64_t)sim_below(2), {0, 0, 0, 0}};
    memcpy(algo.align, want->align, sizeof algo.align);
    memset((void *)&results[0], 0, sizeof results[0]);
    memcpy((void *)&results[0].algo, &algo, sizeof algo);
    results[0].workspaceSize = algo.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------
// The multiply

static float get(const void *base, int type, size_t i) {
    if (type == CUDA_R_32F) return ((const float *)base)[i];
    const uint16_t x = ((const uint16_t *)base)[i];
    return type == CUDA_R_16F ? f16_to_f32(x) : bf16_to_f32(x);
}

static void put(void *base, int type, size_t i, float x) {
    if (type == CUDA_R_32F) { ((float *)base)[i] = x; return; }
    if (type != CUDA_R_16BF) sim_fail("cublasLt", "f16 results are not simulated");
    ((uint16_t *)base)[i] = f32_to_bf16(x);
}

static void touch_matrix(const Layout &l, const void *base, int batch, int flags) {
    size_t e = bytes_of(l.type);
    for (uint64_t j = 0; j < l.cols; j++) {
        sim_access((uintptr_t)base + ((size_t)batch * (size_t)l.stride + j * (size_t)l.ld) * e, l.rows * e, flags);
    }
}

static void multiply(const Problem &p, float alpha, float beta, const void *a, const void *b, const void *c, void *d) {
    for (int batch = 0; batch < p.out.batches; batch++) {
        touch_matrix(p.a, a, batch, 0);
        touch_matrix(p.b, b, batch, 0);
        if (beta != 0) touch_matrix(p.c, c, batch, 0);
        // rows of op(A) and columns of op(B) side by side, in f32
        std::vector<float> x(p.m * p.k), y(p.n * p.k), sums(p.m * p.n);
        size_t oa = (size_t)batch * (size_t)p.a.stride, ob = (size_t)batch * (size_t)p.b.stride;
        size_t oc = (size_t)batch * (size_t)p.c.stride, od = (size_t)batch * (size_t)p.out.stride;
        for (uint64_t i = 0; i < p.m; i++) for (uint64_t k = 0; k < p.k; k++) {
            const size_t ld = (size_t)p.a.ld, at = p.d.transa == CUBLAS_OP_T ? i * ld + k : k * ld + i;
            x[i * p.k + k] = get(a, p.a.type, oa + at);
        }
        for (uint64_t j = 0; j < p.n; j++) for (uint64_t k = 0; k < p.k; k++) {
            const size_t ld = (size_t)p.b.ld, at = p.d.transb == CUBLAS_OP_T ? k * ld + j : j * ld + k;
            y[j * p.k + k] = get(b, p.b.type, ob + at);
        }
        for (uint64_t j = 0; j < p.n; j++) for (uint64_t i = 0; i < p.m; i++) {
            const float *u = &x[i * p.k], *v = &y[j * p.k];
            float part[8] = {0};
            uint64_t k = 0;
            for (; k + 8 <= p.k; k += 8) for (int s = 0; s < 8; s++) part[s] += u[k + s] * v[k + s];
            for (; k < p.k; k++) part[0] += u[k] * v[k];
            float sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
            sum *= alpha;
            if (beta != 0) sum += beta * get(c, p.c.type, oc + j * (size_t)p.c.ld + i);
            sums[j * p.m + i] = sum;
        }
        const char *bias = (const char *)p.d.bias + (size_t)batch * (size_t)p.d.bias_stride * bytes_of(p.d.bias_type);
        if (p.d.epilogue & CUBLASLT_EPILOGUE_BIAS) sim_access((uintptr_t)bias, p.m * bytes_of(p.d.bias_type), 0);
        touch_matrix(p.out, d, batch, A_WRITE);
        for (uint64_t j = 0; j < p.n; j++) for (uint64_t i = 0; i < p.m; i++) {
            float s = sums[j * p.m + i];
            if (p.d.epilogue & CUBLASLT_EPILOGUE_BIAS) s += get(bias, p.d.bias_type, i);
            if (p.d.epilogue & CUBLASLT_EPILOGUE_RELU) s = s > 0 ? s : 0;
            // the tanh form, which is what the library is known for
            if (p.d.epilogue & CUBLASLT_EPILOGUE_GELU) {
                s = 0.5f * s * (1 + tanhf(0.7978845608f * (s + 0.044715f * s * s * s)));
            }
            put(d, p.out.type, od + j * (size_t)p.out.ld + i, s);
        }
    }
}

extern "C" cublasStatus_t cublasLtMatmul(
        cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *A, cublasLtMatrixLayout_t a,
        const void *B, cublasLtMatrixLayout_t b, const void *beta, const void *C, cublasLtMatrixLayout_t c, void *D,
        cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
        cudaStream_t stream) {
    Guard guard(sim_lock);
    Problem p;
    if (!handle || handle->magic != 1) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    if (cublasStatus_t s = read_problem(&p, desc, a, b, c, d)) return s;
    const void *at[4] = {A, B, C, D};
    float al, be;
    if (p.d.pointer_mode != CUBLASLT_POINTER_MODE_HOST) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "device alpha");
    if (!alpha || !beta) return invalid("alpha or beta is NULL");
    memcpy(&al, alpha, 4);
    memcpy(&be, beta, 4);
    for (int i = 0; i < 4; i++) {
        if (i == 2 && be == 0 && !C) continue;
        if (!sim_on_device(at[i])) return invalid("a matrix that is not in device memory");
    }
    if (C == D && !same(p.c, p.out)) return invalid("C and D are the same memory in different layouts");
    if (p.d.epilogue & CUBLASLT_EPILOGUE_BIAS) {
        if (!sim_on_device(p.d.bias)) return invalid("a bias epilogue without a bias in device memory");
        if ((uintptr_t)p.d.bias % bytes_of(p.d.bias_type)) return invalid("a misaligned bias");
    }
    uint64_t need = 0;
    if (algo) {
        Algo x;
        memcpy(&x, algo, sizeof x);
        if (x.magic != IS_ALGO) return invalid("not an algorithm of the heuristic");
        if (x.problem != fingerprint(p)) return invalid("the algorithm was chosen for another problem");
        for (int i = 0; i < 4; i++) {
            const bool aligned = !at[i] || (uintptr_t)at[i] % x.align[i] == 0;
            if (!aligned) return invalid("a matrix is less aligned than the heuristic was told");
        }
        need = x.workspace;
    }
    const Layout *all[4] = {&p.a, &p.b, &p.c, &p.out};
    for (int i = 0; i < 4; i++) {
        if (at[i] && (uintptr_t)at[i] % bytes_of(all[i]->type)) return invalid("a misaligned matrix");
    }
    if (workspace_bytes < need) return invalid("the workspace is smaller than the algorithm needs");
    if (workspace_bytes && (!sim_on_device(workspace) || (uintptr_t)workspace % 16)) {
        return invalid("a workspace that is not in device memory, or misaligned");
    }
    cudaError_t e = sim_enqueue_work(stream, "cublasLtMatmul", [=] {
        if (need) {     // what was there is gone, and whoever else uses it at the same time is caught
            sim_access((uintptr_t)workspace, need, A_WRITE);
            memset(workspace, 0xFF, need);
        }
        multiply(p, al, be, A, B, C, D);
    });
    return e ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
