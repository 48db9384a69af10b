// test/cuda_sim/cuda_sim_host.cpp: the host API: devices, memory, streams, events, graphs, under their real prototypes.
//
// In order: errors, the queue of operations and who may run, streams and events, stream capture and graphs, launches,
// copies and fills, memory, devices.
//
// Nothing runs when it is asked for. Operations wait in a queue until the host waits for one of them; then any that
// may run is drawn, from any stream or branch of a graph, until that one is done. Now and then one runs earlier.
#include "sim_internal.h"
#include <algorithm>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct SimLaunch {
    const void *kernel;
    const char *name, *file;
    int line;
    bool pdl;
    dim3 grid, block;
    size_t smem_bytes, argument_bytes;
    cudaStream_t stream;
};
typedef std::shared_ptr<Op> OpPtr;
typedef std::lock_guard<std::recursive_mutex> Guard;
std::recursive_mutex sim_lock;

// ---------------------------------------------------------------------------------------------------------
// Errors: the code that the library returns, and a line that says why.

static cudaError_t last_error;

static cudaError_t refuse(cudaError_t code, const char *why) {
    fprintf(stderr, "cuda_sim: %s: %s\n", cudaGetErrorName(code), why);
    return last_error = code;
}

extern "C" cudaError_t cudaGetLastError() { cudaError_t e = last_error; last_error = cudaSuccess; return e; }
extern "C" cudaError_t cudaPeekAtLastError() { return last_error; }

#define ERRORS(X) X(cudaSuccess) X(cudaErrorInvalidValue) X(cudaErrorMemoryAllocation) X(cudaErrorInvalidConfiguration) \
    X(cudaErrorInvalidDevice) X(cudaErrorNoDevice) X(cudaErrorNotReady) X(cudaErrorInvalidResourceHandle) \
    X(cudaErrorStreamCaptureUnsupported) X(cudaErrorStreamCaptureUnjoined) X(cudaErrorStreamCaptureIsolation) \
    X(cudaErrorStreamCaptureImplicit) X(cudaErrorInvalidMemcpyDirection) X(cudaErrorInsufficientDriver) \
    X(cudaErrorNotSupported)

extern "C" const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
#define X(code) case code: return #code;
    ERRORS(X)
#undef X
    default: return "an error that cuda_sim does not know";
    }
}
extern "C" const char *cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }

// ---------------------------------------------------------------------------------------------------------
// The queue

Op *sim_op;
std::vector<OpOrder> sim_ops(1, OpOrder{0, 0});
Clock sim_host_clock;
static std::vector<uint32_t> lane_seq;
static std::vector<OpPtr> queue;

void clock_join(Clock *into, const Clock &c) {
    if (into->size() < c.size()) into->resize(c.size());
    for (size_t i = 0; i < c.size(); i++) (*into)[i] = std::max((*into)[i], c[i]);
}

static void clock_add(Clock *into, const Op &op) {
    clock_join(into, op.clock);
    OpOrder o = sim_ops[op.id];
    if (into->size() <= o.lane) into->resize(o.lane + 1);
    (*into)[o.lane] = std::max((*into)[o.lane], o.seq);
}

static uint32_t new_lane() {
    lane_seq.push_back(0);
    return (uint32_t)lane_seq.size() - 1;
}

static void submit(const OpPtr &op, uint32_t lane) {
    op->id = (uint32_t)sim_ops.size();
    sim_ops.push_back({lane, ++lane_seq[lane]});
    op->clock = sim_host_clock;
    queue.push_back(op);
}

static void run_op(Op *op) {
    op->early = op->clock;
    for (OpPtr &a : op->after) clock_add(&op->clock, *a);
    if (op->pdl) {
        const Op &k = *op->kernel_ahead;
        clock_join(&op->early, k.pdl && k.launched_early ? k.early : k.clock);
    } else {
        op->early = op->clock;
    }
    sim_op = op;
    if (op->kernel) sim_run_kernel(op);
    else if (op->work) op->work();
    if (op->kernel && op->pdl && !op->waited) {
        sim_fail("pdl", "kernel %s was launched early and no thread of it calls pdl_wait", op->kernel->name.c_str());
    }
    sim_op = NULL;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    op->time = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
    op->done = true;
    op->after.clear();
    op->kernel_ahead.reset();
    op->work = nullptr;
    op->kernel.reset();
}

bool sim_progress() {
    if (sim_op) return false;
    size_t found = queue.size(), seen = 0;
    for (size_t i = 0; i < queue.size(); i++) {
        bool may = true;
        for (OpPtr &a : queue[i]->after) may &= a->done;
        if (may && sim_below((uint32_t)++seen) == 0) found = i;
    }
    if (found == queue.size()) return false;
    OpPtr op = queue[found];
    queue.erase(queue.begin() + (long)found);
    sim_open(true);
    run_op(op.get());
    sim_open(false);
    return true;
}

static void host_waits(const OpPtr &op) {
    if (!op) return;
    sim_open(true);
    while (!op->done) if (!sim_progress()) sim_fail("deadlock", "the host waits for what can never run");
    sim_open(false);
    clock_add(&sim_host_clock, *op);
}

bool sim_pending_reads(uintptr_t a, size_t n) {
    for (OpPtr &op : queue) if (op->reads_bytes && a < op->reads + op->reads_bytes && op->reads < a + n) return true;
    return false;
}

// ---------------------------------------------------------------------------------------------------------
// Streams and events

struct Node {
    std::shared_ptr<Kernel> kernel;
    std::function<void()> work;
    std::string name;
    bool pdl;
    int lane;
    std::vector<int> after;
    uintptr_t reads;
    size_t reads_bytes;
};
struct CUgraph_st { std::vector<Node> nodes; };
struct Capture { CUgraph_st graph; CUstream_st *origin; std::vector<CUstream_st *> streams; bool global; };

struct CUstream_st {
    uint32_t lane;
    bool blocking;
    OpPtr tail;
    std::vector<OpPtr> waits;
    std::shared_ptr<Capture> capture;
    std::vector<int> capture_tail;
};
struct CUevent_st { OpPtr op; std::shared_ptr<Capture> capture; std::vector<int> nodes; bool timed; };

static std::vector<CUstream_st *> streams;       // all that live; the first is the legacy default stream
static std::vector<CUevent_st *> events;
static int captures;                             // that forbid unsafe calls

static void init() {
    sim_memory_init();
    if (!streams.empty()) return;
    if (const char *s = getenv("SIM_SEED")) { extern void sim_seed(uint64_t); sim_seed(strtoull(s, NULL, 10)); }
    if (const char *s = getenv("SIM_CC")) sim_capability = atoi(s);
    streams.push_back(new CUstream_st{new_lane(), true, {}, {}, {}, {}});
}

static CUstream_st *stream_of(cudaStream_t s) {
    init();
    if (s == NULL || s == cudaStreamLegacy) return streams[0];
    if (std::find(streams.begin(), streams.end(), s) == streams.end()) sim_fail("handle", "unknown stream %p", (void *)s);
    return s;
}

static bool is_event(cudaEvent_t e) { return std::find(events.begin(), events.end(), e) != events.end(); }

// What the stream does next: now a node of the graph that is being captured, or an operation of the queue.
static cudaError_t enqueue(CUstream_st *s, const Node &n) {
    if (s->capture) {
        Node copy = n;
        std::vector<CUstream_st *> &all = s->capture->streams;
        copy.lane = (int)(std::find(all.begin(), all.end(), s) - all.begin());
        copy.after = s->capture_tail;
        if (n.pdl && !(copy.after.size() == 1 && s->capture->graph.nodes[copy.after[0]].kernel)) copy.pdl = false;
        s->capture_tail.assign(1, (int)s->capture->graph.nodes.size());
        s->capture->graph.nodes.push_back(copy);
        return cudaSuccess;
    }
    if (s == streams[0]) {
        for (CUstream_st *o : streams) if (o->capture && o->blocking) {
            return refuse(cudaErrorStreamCaptureImplicit, "the default stream is used while a blocking stream is captured");
        }
    }
    OpPtr op = std::make_shared<Op>();
    op->kernel = n.kernel;
    op->work = n.work;
    op->name = n.name;
    op->reads = n.reads;
    op->reads_bytes = n.reads_bytes;
    if (n.pdl && s->tail && s->tail->name == "kernel" && s->waits.empty()) {
        op->pdl = true;
        op->kernel_ahead = s->tail;
    }
    op->after = s->waits;
    s->waits.clear();
    if (s->tail) op->after.push_back(s->tail);
    for (CUstream_st *o : streams) {
        bool implicit = o != s && o->tail && ((s == streams[0] && o->blocking) || (o == streams[0] && s->blocking));
        if (implicit) op->after.push_back(o->tail);
    }
    if (op->pdl && op->after.size() > 1) op->pdl = false;
    submit(op, s->lane);
    s->tail = op;
    if (sim_below(8) == 0) sim_progress();
    return cudaSuccess;
}

cudaError_t sim_enqueue_work(cudaStream_t stream, const char *name, std::function<void()> work) {
    return enqueue(stream_of(stream), Node{nullptr, work, name, false, 0, {}, 0, 0});
}

extern "C" cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) {
    Guard guard(sim_lock);
    init();
    streams.push_back(new CUstream_st{new_lane(), flags != cudaStreamNonBlocking, {}, {}, {}, {}});
    *out = streams.back();
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
    return cudaStreamCreateWithPriority(out, flags, 0);
}
extern "C" cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithPriority(out, 0, 0); }
extern "C" cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (s == streams[0]) return refuse(cudaErrorInvalidResourceHandle, "the default stream cannot be destroyed");
    if (s->capture) return refuse(cudaErrorStreamCaptureUnsupported, "the stream is being captured");
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;                                    // what it was given is still done
    return cudaSuccess;
}

static cudaError_t not_captured(CUstream_st *s, const char *what) {
    if (s ? s->capture != NULL : captures > 0) {
        return refuse(cudaErrorStreamCaptureUnsupported, what);
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (cudaError_t e = not_captured(s, "cudaStreamSynchronize of a stream that is being captured")) return e;
    for (OpPtr &w : std::vector<OpPtr>(s->waits)) host_waits(w);
    host_waits(s->tail);
    if (s == streams[0]) for (CUstream_st *o : streams) if (o->blocking) host_waits(o->tail);
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceSynchronize() {
    Guard guard(sim_lock);
    init();
    if (cudaError_t e = not_captured(NULL, "cudaDeviceSynchronize during a capture")) return e;
    while (!queue.empty()) host_waits(queue[0]);
    for (uint32_t i = 0; i < lane_seq.size(); i++) {
        if (sim_host_clock.size() <= i) sim_host_clock.resize(i + 1);
        sim_host_clock[i] = lane_seq[i];
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (cudaError_t e = not_captured(s, "cudaStreamQuery of a stream that is being captured")) return e;
    if (s->tail && !s->tail->done) sim_progress();
    if (s->tail && !s->tail->done) return cudaErrorNotReady;
    host_waits(s->tail);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    Guard guard(sim_lock);
    init();
    events.push_back(new CUevent_st{{}, {}, {}, !(flags & cudaEventDisableTiming)});
    *out = events.back();
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t e) {
    Guard guard(sim_lock);
    if (!is_event(e)) return refuse(cudaErrorInvalidResourceHandle, "unknown event");
    events.erase(std::find(events.begin(), events.end(), e));
    delete e;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (!is_event(e)) return refuse(cudaErrorInvalidResourceHandle, "unknown event");
    e->capture = s->capture;
    e->nodes = s->capture_tail;
    if (s->capture) return cudaSuccess;
    cudaError_t err = sim_enqueue_work(stream, "event", nullptr);
    e->op = s->tail;
    return err;
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    Guard guard(sim_lock);
    if (!is_event(e)) return refuse(cudaErrorInvalidResourceHandle, "unknown event");
    if (e->capture) return refuse(cudaErrorStreamCaptureUnsupported, "the event was recorded in a capture");
    host_waits(e->op);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventQuery(cudaEvent_t e) {
    Guard guard(sim_lock);
    if (!is_event(e)) return refuse(cudaErrorInvalidResourceHandle, "unknown event");
    if (e->capture) return refuse(cudaErrorStreamCaptureUnsupported, "the event was recorded in a capture");
    if (e->op && !e->op->done) sim_progress();
    if (e->op && !e->op->done) return cudaErrorNotReady;
    host_waits(e->op);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    Guard guard(sim_lock);
    if (!is_event(start) || !is_event(end) || !start->op || !end->op || !start->timed || !end->timed) {
        return refuse(cudaErrorInvalidResourceHandle, "an event that was not recorded or takes no time");
    }
    if (!start->op->done || !end->op->done) return cudaErrorNotReady;
    *ms = (float)(end->op->time - start->op->time);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (!is_event(e)) return refuse(cudaErrorInvalidResourceHandle, "unknown event");
    if (e->capture) {
        if (s->capture && s->capture != e->capture) {
            return refuse(cudaErrorStreamCaptureIsolation, "the event belongs to another capture");
        }
        if (!e->capture->origin) return refuse(cudaErrorStreamCaptureIsolation, "the event's capture has ended");
        if (!s->capture) {
            s->capture = e->capture;
            s->capture->streams.push_back(s);
            s->capture_tail = e->nodes;
            return cudaSuccess;
        }
        for (int n : e->nodes) {
            std::vector<int> &tail = s->capture_tail;
            if (std::find(tail.begin(), tail.end(), n) == tail.end()) tail.push_back(n);
        }
        return cudaSuccess;
    }
    if (s->capture) return refuse(cudaErrorStreamCaptureIsolation, "a captured stream waits for an event outside");
    if (e->op) s->waits.push_back(e->op);        // an event that was never recorded holds nobody up
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------
// Capture and graphs. A captured stream becomes a lane of the graph that can be launched.

struct CUgraphExec_st { CUgraph_st graph; std::vector<uint32_t> lanes; OpPtr last; };

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (s == streams[0]) return refuse(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (s->capture) return refuse(cudaErrorStreamCaptureUnsupported, "the stream is being captured already");
    s->capture = std::make_shared<Capture>(Capture{{}, s, {s}, mode != cudaStreamCaptureModeRelaxed});
    s->capture_tail.clear();
    captures += s->capture->global;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    std::shared_ptr<Capture> c = s->capture;
    if (!c || c->origin != s) return refuse(cudaErrorInvalidValue, "the capture did not begin in this stream");
    std::vector<bool> joined(c->graph.nodes.size(), false);
    for (int n : s->capture_tail) joined[n] = true;
    for (size_t i = joined.size(); i-- > 0;) if (joined[i]) for (int a : c->graph.nodes[i].after) joined[a] = true;
    bool all = std::all_of(joined.begin(), joined.end(), [](bool j) { return j; });
    for (CUstream_st *o : c->streams) o->capture.reset(), o->capture_tail.clear();
    captures -= c->global;
    c->origin = NULL;
    *out = NULL;
    if (!all) return refuse(cudaErrorStreamCaptureUnjoined, "a stream that was pulled in was not joined again");
    *out = new CUgraph_st(c->graph);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    *status = stream_of(stream)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    Guard guard(sim_lock);
    CUgraphExec_st *e = new CUgraphExec_st{*graph, {}, {}};
    int lanes = 1;
    for (Node &n : graph->nodes) lanes = std::max(lanes, n.lane + 1);
    for (int i = 0; i < lanes; i++) e->lanes.push_back(new_lane());
    *out = e;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (s->capture) return refuse(cudaErrorStreamCaptureUnsupported, "child graphs are not simulated");
    if (e->last) s->waits.push_back(e->last);    // a graph runs after its own last launch
    cudaError_t err = sim_enqueue_work(stream, "graph begins", nullptr);
    if (err) return err;
    OpPtr begin = s->tail;
    std::vector<OpPtr> made;
    for (Node &n : e->graph.nodes) {
        OpPtr op = std::make_shared<Op>();
        op->kernel = n.kernel;
        op->work = n.work;
        op->name = n.name;
        op->reads = n.reads;
        op->reads_bytes = n.reads_bytes;
        for (int a : n.after) op->after.push_back(made[(size_t)a]);
        if (n.after.empty()) op->after.push_back(begin);
        op->pdl = n.pdl;
        if (n.pdl) op->kernel_ahead = made[(size_t)n.after[0]];
        submit(op, e->lanes[(size_t)n.lane]);
        made.push_back(op);
    }
    s->waits = made;
    err = sim_enqueue_work(stream, "graph ends", nullptr);
    e->last = s->tail;
    return err;
}

extern "C" cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; return cudaSuccess; }
extern "C" cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *, size_t *n) {
    *n = g->nodes.size();
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------
// Launches, held to the limits of the device

int sim_capability = 80;
static std::map<const void *, size_t> dynamic_limit;     // what cudaFuncSetAttribute allowed

void sim_device(int capability) { sim_capability = capability; }
size_t sim_smem_optin(int capability) { return capability >= 90 ? 227 * 1024 : 163 * 1024; }

extern "C" cudaError_t cudaFuncSetAttribute(const void *f, cudaFuncAttribute what, int value) {
    Guard guard(sim_lock);
    if (what == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return refuse(cudaErrorInvalidValue, "unknown attribute");
    if (value < 0 || (size_t)value > sim_smem_optin(sim_capability)) {
        return refuse(cudaErrorInvalidValue, "more dynamic shared memory than a block of this device can have");
    }
    dynamic_limit[f] = (size_t)value;
    return cudaSuccess;
}

extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t sim_enqueue(const SimLaunch *l, std::shared_ptr<const void> call, size_t call_bytes,
                        void (*run)(const void *)) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(l->stream);
    const dim3 &g = l->grid, &b = l->block;
    char why[300] = "";
    if (!g.x || !g.y || !g.z || g.x > 0x7FFFFFFFu || g.y > 65535 || g.z > 65535) {
        snprintf(why, sizeof why, "%s: grid (%u,%u,%u)", l->name, g.x, g.y, g.z);
    } else if (!b.x || !b.y || !b.z || b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > 1024) {
        snprintf(why, sizeof why, "%s: block (%u,%u,%u)", l->name, b.x, b.y, b.z);
    }
    if (*why) return refuse(cudaErrorInvalidConfiguration, why);
    size_t limit = dynamic_limit.count(l->kernel) ? dynamic_limit[l->kernel] : 48 * 1024;
    if (l->smem_bytes > limit) {
        snprintf(why, sizeof why, "%s: %zu bytes of dynamic shared memory, %zu are allowed", l->name, l->smem_bytes,
                 limit);
    } else if (l->argument_bytes > 4096) {
        snprintf(why, sizeof why, "%s: %zu bytes of arguments", l->name, l->argument_bytes);
    } else if ((uint64_t)g.x * g.y * g.z > 1u << 24) {
        sim_fail("limits", "%s: more blocks than the simulator can run", l->name);
    }
    if (*why) return refuse(cudaErrorInvalidValue, why);
    size_t both = l->smem_bytes > 48 * 1024 ? sim_smem_optin(sim_capability) : 48 * 1024;
    if (dynamic_limit.count(l->kernel)) both = sim_smem_optin(sim_capability);
    auto k = std::make_shared<Kernel>(Kernel{l->kernel, l->name, l->file, l->line, g, b, l->smem_bytes, both, call,
                                             call_bytes, run});
    return enqueue(s, Node{k, nullptr, "kernel", l->pdl, 0, {}, 0, 0});
}

extern "C" cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f, void *arg) {
    Guard guard(sim_lock);
    return sim_enqueue_work(stream, "host function", [f, arg] { f(arg); });
}

// ---------------------------------------------------------------------------------------------------------
// Copies and fills. What the host gives from ordinary memory is read at once, as the library does; from pinned memory
// it is read when the copy is made.

static bool on_device(const void *p) { return sim_region(p) == R_DEVICE; }

static bool kind_fits(void *dst, const void *src, cudaMemcpyKind kind) {
    switch (kind) {
    case cudaMemcpyHostToDevice: return on_device(dst) && !on_device(src);
    case cudaMemcpyDeviceToHost: return !on_device(dst) && on_device(src);
    case cudaMemcpyDeviceToDevice: return on_device(dst) && on_device(src);
    case cudaMemcpyHostToHost: return !on_device(dst) && !on_device(src);
    default: return kind == cudaMemcpyDefault;
    }
}

static cudaError_t copy(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                        cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
    CUstream_st *s = stream_of(stream);
    if (!kind_fits(dst, src, kind)) return refuse(cudaErrorInvalidMemcpyDirection, "the pointers are of another kind");
    if (!width || !rows) return cudaSuccess;
    if (dst_pitch < width || src_pitch < width) return refuse(cudaErrorInvalidValue, "a pitch below the width");
    for (int i = 0; i < 2; i++) {
        const void *p = i ? src : dst;
        size_t bytes = (i ? src_pitch : dst_pitch) * (rows - 1) + width;
        if (sim_region(p) != R_OTHER && !sim_inside(p, bytes, NULL)) {
            sim_fail("out of bounds", "copy of %zu bytes %s %s", bytes, i ? "from" : "to",
                     sim_describe((uintptr_t)p).c_str());
        }
    }
    bool pageable_in = sim_region(src) == R_OTHER, pageable_out = sim_region(dst) == R_OTHER;
    if (s->capture && (pageable_in || pageable_out || wait)) {
        return refuse(cudaErrorStreamCaptureUnsupported, "a copy of ordinary host memory in a capture");
    }
    if (wait && captures) return refuse(cudaErrorStreamCaptureUnsupported, "cudaMemcpy during a capture");
    std::shared_ptr<std::vector<uint8_t>> staged;
    if (pageable_in) {
        staged = std::make_shared<std::vector<uint8_t>>(rows * width);
        for (size_t r = 0; r < rows; r++) {
            memcpy(staged->data() + r * width, (const uint8_t *)src + r * src_pitch, width);
        }
    }
    auto work = [=] {
        for (size_t r = 0; r < rows; r++) {
            uint8_t *d = (uint8_t *)dst + r * dst_pitch;
            const uint8_t *from = staged ? staged->data() + r * width : (const uint8_t *)src + r * src_pitch;
            sim_pc = 0;
            sim_access((uintptr_t)from, width, 0);
            sim_access((uintptr_t)d, width, A_WRITE);
            memmove(d, from, width);
        }
    };
    bool late = sim_region(src) == R_PINNED;
    cudaError_t e = enqueue(s, Node{nullptr, work, "copy", false, 0, {}, late ? (uintptr_t)src : 0,
                                    late ? src_pitch * (rows - 1) + width : 0});
    if (!e && (wait || pageable_out)) host_waits(s->tail);
    return e;
}

extern "C" cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t s) {
    Guard guard(sim_lock);
    return copy(dst, n, src, n, n, 1, kind, s, false);
}
extern "C" cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind kind) {
    Guard guard(sim_lock);
    return copy(dst, n, src, n, n, 1, kind, NULL, true);
}
extern "C" cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                                         size_t rows, cudaMemcpyKind kind, cudaStream_t s) {
    Guard guard(sim_lock);
    return copy(dst, dpitch, src, spitch, width, rows, kind, s, false);
}
extern "C" cudaError_t cudaMemcpy2D(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t rows,
                                    cudaMemcpyKind kind) {
    Guard guard(sim_lock);
    return copy(dst, dpitch, src, spitch, width, rows, kind, NULL, true);
}

extern "C" cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (!n) return cudaSuccess;
    if (sim_region(p) == R_OTHER) return refuse(cudaErrorInvalidValue, "cudaMemset of ordinary host memory");
    if (!sim_inside(p, n, NULL)) sim_fail("out of bounds", "fill of %zu bytes at %s", n, sim_describe((uintptr_t)p).c_str());
    return enqueue(s, Node{nullptr, [=] {
        sim_access((uintptr_t)p, n, A_WRITE);
        memset(p, value, n);
    }, "fill", false, 0, {}, 0, 0});
}
extern "C" cudaError_t cudaMemset(void *p, int value, size_t n) { return cudaMemsetAsync(p, value, n, NULL); }

// ---------------------------------------------------------------------------------------------------------
// Memory

static cudaError_t allocate(Region where, void **out, size_t bytes) {
    Guard guard(sim_lock);
    init();
    if (cudaError_t e = not_captured(NULL, "an allocation during a capture")) return e;
    *out = NULL;
    if (!bytes) return cudaSuccess;
    *out = sim_allocate(where, bytes);
    return *out ? cudaSuccess : last_error = cudaErrorMemoryAllocation;
}

static cudaError_t release(Region where, void *p) {
    Guard guard(sim_lock);
    if (!p) return cudaSuccess;
    if (cudaError_t e = cudaDeviceSynchronize()) return e;
    return sim_release(where, p) ? cudaSuccess : refuse(cudaErrorInvalidValue, "freed twice, or not a start");
}

extern "C" cudaError_t cudaMalloc(void **p, size_t bytes) { return allocate(R_DEVICE, p, bytes); }
extern "C" cudaError_t cudaFree(void *p) { return release(R_DEVICE, p); }
extern "C" cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return allocate(R_PINNED, p, bytes); }
extern "C" cudaError_t cudaMallocHost(void **p, size_t bytes) { return allocate(R_PINNED, p, bytes); }
extern "C" cudaError_t cudaFreeHost(void *p) { return release(R_PINNED, p); }
extern "C" cudaError_t cudaHostGetDevicePointer(void **out, void *p, unsigned) { *out = p; return cudaSuccess; }
extern "C" cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *all = sim_total();
    *available = *all - sim_used();
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------
// Devices: one, or as many as $SIM_DEVICES says

static int device_count() { const char *n = getenv("SIM_DEVICES"); return n ? atoi(n) : 1; }

extern "C" cudaError_t cudaGetDeviceCount(int *n) {
    *n = device_count();
    return *n > 0 ? cudaSuccess : last_error = cudaErrorNoDevice;
}
extern "C" cudaError_t cudaSetDevice(int d) {
    init();
    return d >= 0 && d < device_count() ? cudaSuccess : last_error = cudaErrorInvalidDevice;
}
extern "C" cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
extern "C" cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }
extern "C" cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
extern "C" cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
extern "C" cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int) {
    init();
    switch (what) {
    case cudaDevAttrComputeCapabilityMajor: *value = sim_capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = sim_capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)sim_smem_optin(sim_capability); break;
    case cudaDevAttrMultiProcessorCount: *value = 3; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 40 << 20; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
    default: return refuse(cudaErrorInvalidValue, "cudaDeviceGetAttribute: not simulated");
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
    if (cudaError_t e = cudaSetDevice(d)) return e;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cuda_sim sm_%d", sim_capability);
    p->totalGlobalMem = sim_total();
    p->major = sim_capability / 10;
    p->minor = sim_capability % 10;
    p->multiProcessorCount = 3;
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = sim_smem_optin(sim_capability);
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->l2CacheSize = 40 << 20;
    return cudaSuccess;
}
