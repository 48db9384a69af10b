// test/cuda_sim/cuda_sim_streams.cpp: the order of things: queue, streams, events, graphs, under their real prototypes.
//
// In order: errors, the queue of operations and who may run, streams, events, stream capture and graphs.
//
// Nothing runs when it is asked for. Operations wait in a queue until the host waits for one of them; then any that
// may run is drawn, from any stream or branch of a graph, until that one is done. Now and then one runs earlier.
// Not here: what is put into the queue (cuda_sim_host.cpp, cuda_sim_blas.cpp).
#include "sim_host.h"
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

std::recursive_mutex sim_lock;

// ---------------------------------------------------------------------------------------------------------
// Errors: the code that the library returns, and a line that says why.

static cudaError_t last_error;

cudaError_t sim_error(cudaError_t code) { return last_error = code; }
cudaError_t sim_refuse(cudaError_t code, const char *why) {
    fprintf(stderr, "cuda_sim: %s: %s\n", cudaGetErrorName(code), why);
    return sim_error(code);
}

extern "C" cudaError_t cudaGetLastError() { cudaError_t e = last_error; last_error = cudaSuccess; return e; }
extern "C" cudaError_t cudaPeekAtLastError() { return last_error; }

#define ERRORS(X) \
    X(cudaSuccess) X(cudaErrorInvalidValue) X(cudaErrorMemoryAllocation) X(cudaErrorInvalidConfiguration) \
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

void sim_init() {
    sim_memory_init();
    if (!streams.empty()) return;
    if (const char *s = getenv("SIM_SEED")) { extern void sim_seed(uint64_t); sim_seed(strtoull(s, NULL, 10)); }
    if (const char *s = getenv("SIM_CC")) sim_capability = atoi(s);
    streams.push_back(new CUstream_st{new_lane(), true, {}, {}, {}, {}});
}

static CUstream_st *stream_of(cudaStream_t s) {
    sim_init();
    if (s == NULL || s == cudaStreamLegacy) return streams[0];
    if (std::find(streams.begin(), streams.end(), s) == streams.end()) {
        sim_fail("handle", "unknown stream %p", (void *)s);
    }
    return s;
}

static bool is_event(cudaEvent_t e) { return std::find(events.begin(), events.end(), e) != events.end(); }

static OpPtr make_op(const Node &n) {
    OpPtr op = std::make_shared<Op>();
    op->kernel = n.kernel;
    op->work = n.work;
    op->name = n.name;
    op->reads = n.reads;
    op->reads_bytes = n.reads_bytes;
    return op;
}

// What the stream does next: now a node of the graph that is being captured, or an operation of the queue.
cudaError_t sim_enqueue_node(cudaStream_t stream, const Node &n) {
    CUstream_st *s = stream_of(stream);
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
            return sim_refuse(cudaErrorStreamCaptureImplicit,
                              "the default stream is used while a blocking stream is captured");
        }
    }
    OpPtr op = make_op(n);
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
    return sim_enqueue_node(stream, Node{nullptr, work, name, false, 0, {}, 0, 0});
}

extern "C" cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) {
    Guard guard(sim_lock);
    sim_init();
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
    if (s == streams[0]) return sim_refuse(cudaErrorInvalidResourceHandle, "the default stream cannot be destroyed");
    if (s->capture) return sim_refuse(cudaErrorStreamCaptureUnsupported, "the stream is being captured");
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;                                    // what it was given is still done
    return cudaSuccess;
}

bool sim_is_captured(cudaStream_t stream) { return stream_of(stream)->capture != NULL; }
void sim_wait_for(cudaStream_t stream) { host_waits(stream_of(stream)->tail); }

cudaError_t sim_not_captured(cudaStream_t stream, const char *what) {
    const bool captured = stream ? sim_is_captured(stream) : captures > 0;
    return captured ? sim_refuse(cudaErrorStreamCaptureUnsupported, what) : cudaSuccess;
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (cudaError_t e = sim_not_captured(s, "cudaStreamSynchronize of a stream that is being captured")) return e;
    for (OpPtr &w : std::vector<OpPtr>(s->waits)) host_waits(w);
    host_waits(s->tail);
    if (s == streams[0]) for (CUstream_st *o : streams) if (o->blocking) host_waits(o->tail);
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceSynchronize() {
    Guard guard(sim_lock);
    sim_init();
    if (cudaError_t e = sim_not_captured(NULL, "cudaDeviceSynchronize during a capture")) return e;
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
    if (cudaError_t e = sim_not_captured(s, "cudaStreamQuery of a stream that is being captured")) return e;
    if (s->tail && !s->tail->done) sim_progress();
    if (s->tail && !s->tail->done) return cudaErrorNotReady;
    host_waits(s->tail);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    Guard guard(sim_lock);
    sim_init();
    events.push_back(new CUevent_st{{}, {}, {}, !(flags & cudaEventDisableTiming)});
    *out = events.back();
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t e) {
    Guard guard(sim_lock);
    if (!is_event(e)) return sim_refuse(cudaErrorInvalidResourceHandle, "unknown event");
    events.erase(std::find(events.begin(), events.end(), e));
    delete e;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (!is_event(e)) return sim_refuse(cudaErrorInvalidResourceHandle, "unknown event");
    e->capture = s->capture;
    e->nodes = s->capture_tail;
    if (s->capture) return cudaSuccess;
    cudaError_t err = sim_enqueue_work(stream, "event", nullptr);
    e->op = s->tail;
    return err;
}

// The host may look at the event.
static cudaError_t usable(cudaEvent_t e) {
    if (!is_event(e)) return sim_refuse(cudaErrorInvalidResourceHandle, "unknown event");
    if (e->capture) return sim_refuse(cudaErrorStreamCaptureUnsupported, "the event was recorded in a capture");
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    Guard guard(sim_lock);
    if (cudaError_t err = usable(e)) return err;
    host_waits(e->op);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventQuery(cudaEvent_t e) {
    Guard guard(sim_lock);
    if (cudaError_t err = usable(e)) return err;
    if (e->op && !e->op->done) sim_progress();
    if (e->op && !e->op->done) return cudaErrorNotReady;
    host_waits(e->op);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    Guard guard(sim_lock);
    for (cudaEvent_t e : {start, end}) {
        if (cudaError_t err = usable(e)) return err;
        if (!e->op || !e->timed) {
            return sim_refuse(cudaErrorInvalidResourceHandle, "an event that was not recorded or takes no time");
        }
    }
    if (!start->op->done || !end->op->done) {
        return sim_refuse(cudaErrorNotReady, "the time between events that are not over");
    }
    *ms = (float)(end->op->time - start->op->time);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (!is_event(e)) return sim_refuse(cudaErrorInvalidResourceHandle, "unknown event");
    if (e->capture) {
        if (s->capture && s->capture != e->capture) {
            return sim_refuse(cudaErrorStreamCaptureIsolation, "the event belongs to another capture");
        }
        if (!e->capture->origin) return sim_refuse(cudaErrorStreamCaptureIsolation, "the event's capture has ended");
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
    if (s->capture) return sim_refuse(cudaErrorStreamCaptureIsolation, "a captured stream waits for an event outside");
    if (e->op) s->waits.push_back(e->op);        // an event that was never recorded holds nobody up
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------
// Capture and graphs. A captured stream becomes a lane of the graph that can be launched.

struct CUgraphExec_st { CUgraph_st graph; std::vector<uint32_t> lanes; OpPtr last; };

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    if (s == streams[0]) return sim_refuse(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (s->capture) return sim_refuse(cudaErrorStreamCaptureUnsupported, "the stream is being captured already");
    s->capture = std::make_shared<Capture>(Capture{{}, s, {s}, mode != cudaStreamCaptureModeRelaxed});
    s->capture_tail.clear();
    captures += s->capture->global;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
    Guard guard(sim_lock);
    CUstream_st *s = stream_of(stream);
    std::shared_ptr<Capture> c = s->capture;
    if (!c || c->origin != s) return sim_refuse(cudaErrorInvalidValue, "the capture did not begin in this stream");
    std::vector<bool> joined(c->graph.nodes.size(), false);
    for (int n : s->capture_tail) joined[n] = true;
    for (size_t i = joined.size(); i-- > 0;) if (joined[i]) for (int a : c->graph.nodes[i].after) joined[a] = true;
    bool all = std::all_of(joined.begin(), joined.end(), [](bool j) { return j; });
    for (CUstream_st *o : c->streams) o->capture.reset(), o->capture_tail.clear();
    captures -= c->global;
    c->origin = NULL;
    *out = NULL;
    if (!all) return sim_refuse(cudaErrorStreamCaptureUnjoined, "a stream that was pulled in was not joined again");
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
    if (s->capture) return sim_refuse(cudaErrorStreamCaptureUnsupported, "child graphs are not simulated");
    if (e->last) s->waits.push_back(e->last);    // a graph runs after its own last launch
    cudaError_t err = sim_enqueue_work(stream, "graph begins", nullptr);
    if (err) return err;
    OpPtr begin = s->tail;
    std::vector<OpPtr> made;
    for (Node &n : e->graph.nodes) {
        OpPtr op = make_op(n);
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
