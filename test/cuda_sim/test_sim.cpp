// test/cuda_sim/test_sim.cpp: the simulator itself: every kind of mistake that it promises to find is made once and
// must be found, and the right program beside it must pass and give the right numbers.
//
// In order: running a scenario in a process of its own, races and barriers, warps, memory, cp.async, tensor cores,
// limits, streams and events, graphs, programmatic dependent launch, the table of all scenarios.
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

int main() {
    scenario("barrier", run_reverse<1>, NULL);
    scenario("no barrier", run_reverse<0>, "race");
    scenario("__syncwarp for a barrier", run_reverse<2>, "race");
    scenario("barrier in a branch", run_reverse<3>, "cuda_sim");
    scenario("two barriers", run_reverse<4>, "barrier");
    return tally_close(&tally);
}
