// test/cuda_sim/sim_host.h: what the two halves of the host API know of each other.
//
// In order: errors, what a stream is given to do, streams. Not for code under test.
#ifndef SIM_HOST_H
#define SIM_HOST_H

#include "sim_internal.h"

typedef std::shared_ptr<Op> OpPtr;
typedef std::lock_guard<std::recursive_mutex> Guard;

// Keeps the code for cudaGetLastError; refuse also prints a line that says why.
cudaError_t sim_error(cudaError_t code);
cudaError_t sim_refuse(cudaError_t code, const char *why);

// One thing to do: an operation of the queue, or a node of a graph.
struct Node {
    std::shared_ptr<Kernel> kernel;
    std::function<void()> work;
    std::string name;
    bool pdl;
    int lane;                                   // of the graph
    std::vector<int> after;                     // nodes
    uintptr_t reads;                            // of a late copy, its source
    size_t reads_bytes;
};

void sim_init();
// Behind all that the stream was given before; into the graph when it is being captured.
cudaError_t sim_enqueue_node(cudaStream_t stream, const Node &n);
// Until all that the stream was given is done.
void sim_wait_for(cudaStream_t stream);
bool sim_is_captured(cudaStream_t stream);
// An error when the stream (NULL: any that forbids unsafe calls) is being captured.
cudaError_t sim_not_captured(cudaStream_t stream, const char *what);

#endif
