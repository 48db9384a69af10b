// test/cuda_sim/host_scenarios.h: mistakes of host code, right programs beside them; for the table in test_sim.cpp.
//
// In order: streams and events, graphs, programmatic dependent launch; cublasLt. Included by test_sim.cpp.
#ifndef HOST_SCENARIOS_H
#define HOST_SCENARIOS_H

// ---------------------------------------------------------------------------------------------------------
// Streams, events, graphs, programmatic dependent launch

template <int WRONG> static void run_streams() {
    cudaStream_t a, b;
    cudaEvent_t done;
    CUDA_CHECK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    float *d = device_array(100, (float *)NULL), *h;
    CUDA_CHECK(cudaMallocHost(&h, 400));
    CUDA_CHECK(cudaMemsetAsync(d, 0, 400, a));
    CUDA_CHECK(cudaEventRecord(done, a));
    if (WRONG != 1) CUDA_CHECK(cudaStreamWaitEvent(b, done, 0));
    LAUNCH(add_one<0>, 2, 64, 0, b, d, 100);
    CUDA_CHECK(cudaMemcpyAsync(h, d, 400, cudaMemcpyDeviceToHost, b));
    if (WRONG != 2) CUDA_CHECK(cudaStreamSynchronize(b));
    DEMAND(h[99] == 1);
    CUDA_CHECK(cudaMemcpyAsync(d, h, 400, cudaMemcpyHostToDevice, b));
    if (WRONG == 3) CUDA_CHECK(cudaMemcpyAsync(d, h, 400, cudaMemcpyHostToDevice, a));
    if (WRONG == 4) for (int i = 0; i < 100; i++) h[i] = 0;     // may be what is copied
    CUDA_CHECK(cudaStreamSynchronize(b));
    DEMAND(sim_unfreed() == 2);
}

template <int WRONG> static void run_graph() {
    cudaStream_t a, b;
    cudaEvent_t fork, join;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&fork));
    CUDA_CHECK(cudaEventCreate(&join));
    float *d = device_array(100, (float *)NULL), *e = device_array(100, (float *)NULL), got[100];
    CUDA_CHECK(cudaMemset(d, 0, 400));
    CUDA_CHECK(cudaMemset(e, 0, 400));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    CUDA_CHECK(cudaEventRecord(fork, a));
    CUDA_CHECK(cudaStreamWaitEvent(b, fork, 0));
    LAUNCH(add_one<0>, 2, 64, 0, a, d, 100);
    LAUNCH(add_one<0>, 2, 64, 0, b, WRONG == 1 ? d : e, 100);
    if (WRONG == 3) CUDA_CHECK(cudaStreamSynchronize(a));
    CUDA_CHECK(cudaEventRecord(join, b));
    if (WRONG != 2) CUDA_CHECK(cudaStreamWaitEvent(a, join, 0));
    LAUNCH(add_one<0>, 2, 64, 0, a, e, 100);
    CUDA_CHECK(cudaStreamEndCapture(a, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 3; i++) CUDA_CHECK(cudaGraphLaunch(exec, a));
    CUDA_CHECK(cudaStreamSynchronize(a));
    fetch(got, e, 100);
    for (int i = 0; i < 100; i++) DEMAND(got[i] == 6);
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CUDA_CHECK(cudaGraphDestroy(graph));
}

// The time between two graphs' events.
template <int WRONG> static void run_elapsed() {
    cudaStream_t s;
    cudaEvent_t begin, end;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float *d = device_array(100, (float *)NULL), ms = -1;
    CUDA_CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&begin, WRONG == 1 ? cudaEventDisableTiming : cudaEventDefault));
    CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CUDA_CHECK(cudaMemsetAsync(d, 0, 400, s));
    if (WRONG == 4) CUDA_CHECK(cudaEventRecord(begin, s));
    LAUNCH(add_one<0>, 2, 64, 0, s, d, 100);
    CUDA_CHECK(cudaStreamEndCapture(s, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    if (WRONG < 3) CUDA_CHECK(cudaEventRecord(begin, s));
    CUDA_CHECK(cudaGraphLaunch(exec, s));
    CUDA_CHECK(cudaEventRecord(end, s));
    if (WRONG != 2) CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    DEMAND(ms >= 0);
    CUDA_CHECK(cudaStreamSynchronize(s));
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CUDA_CHECK(cudaGraphDestroy(graph));
}

template <int WRONG> __global__ void chained(float *y, const float *x, const float *w) {
    float early = w[threadIdx.x];
    pdl_launch();
    if (WRONG == 1) early += x[threadIdx.x];
    if (WRONG != 2) pdl_wait();
    y[threadIdx.x] = x[threadIdx.x] + early - (WRONG == 1 ? x[threadIdx.x] : 0);
}
template <int WRONG> static void run_chained() {
    float one[32], got[32];
    for (int i = 0; i < 32; i++) one[i] = 1;
    float *x = device_array(32, one), *w = device_array(32, one), *y = device_array(32, one);
    cudaStream_t s;
    CUDA_CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    LAUNCH(chained<0>, 1, 32, 0, s, y, x, w);
    LAUNCH_PDL(chained<WRONG>, 1, 32, 0, s, x, y, w);
    LAUNCH_PDL(chained<0>, 1, 32, 0, s, y, x, w);
    CUDA_CHECK(cudaStreamSynchronize(s));
    fetch(got, y, 32);
    DEMAND(got[31] == 4);
}

// ---------------------------------------------------------------------------------------------------------
// cublasLt: y (T,OC) = x (T,C) w (OC,C)^T + bias, row-major, so in the library's terms y' (OC,T) = w' ^T x'

template <int WRONG> static void run_dense() {
    enum { T = 5, C = 24, OC = 16 };
    float x[T * C], w[OC * C], bias[OC], y[T * OC];
    for (int i = 0; i < T * C; i++) x[i] = (float)(i % 7 - 3);
    for (int i = 0; i < OC * C; i++) w[i] = (float)(i % 5 - 2);
    for (int i = 0; i < OC; i++) bias[i] = (float)i;
    float *dx = device_array(T * C + 4, (float *)NULL), *dw = device_array(OC * C, w), *dy = device_array(T * OC, y);
    float *db = device_array(OC, bias);
    int shift = WRONG == 2;
    CUDA_CHECK(cudaMemcpy(dx + shift, x, sizeof x, cudaMemcpyHostToDevice));
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t lw, lx, ly;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t best;
    CUBLAS_CHECK(cublasLtCreate(&handle));
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    cublasOperation_t trans = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = WRONG == 4 ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_BIAS;
    if (WRONG != 5) {
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &trans, sizeof trans));
    }
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &db, sizeof db));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&lw, CUDA_R_32F, C, OC, WRONG == 1 ? C - 1 : WRONG == 6 ? C + 1 : C));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&lx, CUDA_R_32F, C, T, C));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&ly, CUDA_R_32F, OC, T, OC));
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&pref));
    uint64_t workspace = WRONG == 3 ? 8192 : 0;
    uint32_t align = 16;
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, 8));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, 4));
    int found = 0;
    float one = 1, zero = 0;
    do CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(handle, desc, lw, lx, ly, ly, pref, 1, &best, &found));
    while (WRONG == 3 && !best.workspaceSize);
    CUBLAS_CHECK(cublasLtMatmul(handle, desc, &one, dw, lw, dx + shift, lx, &zero, dy, ly, dy, ly, &best.algo, NULL, 0,
                                0));
    fetch(y, dy, T * OC);
    for (int t = 0; t < T; t++) for (int o = 0; o < OC; o++) {
        float want = bias[o];
        for (int c = 0; c < C; c++) want += x[t * C + c] * w[o * C + c];
        DEMAND(y[t * OC + o] == want);
    }
}

#endif
