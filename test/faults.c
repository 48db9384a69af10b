// test/faults.c: a library for LD_PRELOAD that lets system and C library calls fail on purpose (test_faults.sh).
//
//   FAULT_ALLOC=N    the N-th allocation returns NULL; FAULT_FROM=1: and so do all after it
//   FAULT_WHO=child  counts and fails in forked children only, otherwise in the first process only
//   FAULT_COUNT=FILE the number of allocations is written there at the end (0 is none to fail)
//   FAULT_SHORT=N    read and write move at most N bytes
//   FAULT_EINTR=N    every N-th read, pread, write, poll and waitpid is interrupted by a signal
//   FAULT_CALL=NAME  fork, pipe, mmap or poll fails, always
//
// Only glibc has the inner names of malloc that are used here.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

static bool ready, from_on, in_child;
static long fail_at, interrupt_every, most_bytes;
static pid_t first;
static const char *failing_call, *count_file;
static atomic_long allocations, calls[5];

static long number(const char *name) {
    const char *s = getenv(name);
    return s ? atol(s) : 0;
}

__attribute__((constructor)) static void setup(void) {
    fail_at = number("FAULT_ALLOC");
    from_on = number("FAULT_FROM");
    interrupt_every = number("FAULT_EINTR");
    most_bytes = number("FAULT_SHORT");
    failing_call = getenv("FAULT_CALL");
    count_file = getenv("FAULT_COUNT");
    const char *who = getenv("FAULT_WHO");
    in_child = who && !strcmp(who, "child");
    first = getpid();
    ready = true;
}

__attribute__((destructor)) static void finish(void) {
    if (!count_file || getpid() != first) return;
    char text[32];
    const int n = snprintf(text, sizeof text, "%ld\n", (long)allocations);
    const int fd = open(count_file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && write(fd, text, (size_t)n) != n) abort();
    if (fd >= 0) close(fd);
}

static bool allocation_fails(void) {
    if (!ready || in_child != (getpid() != first)) return false;
    const long n = ++allocations;
    if (!fail_at || (from_on ? n < fail_at : n != fail_at)) return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t n) { return allocation_fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return allocation_fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return allocation_fails() ? NULL : __libc_realloc(p, n); }
void *aligned_alloc(size_t align, size_t n) { return allocation_fails() ? NULL : __libc_memalign(align, n); }

// ---------------------------------------------------------------------------------------------------------

static bool call_fails(const char *name, int error) {
    if (!ready || !failing_call || strcmp(failing_call, name) != 0) return false;
    errno = error;
    return true;
}

// Counted for each call by itself: two that take turns must not be hit always or never.
static bool interrupted(int which) {
    if (!ready || !interrupt_every || ++calls[which] % interrupt_every) return false;
    errno = EINTR;
    return true;
}

static size_t shorter(size_t n) { return ready && most_bytes && n > (size_t)most_bytes ? (size_t)most_bytes : n; }

// dlsym gives an object pointer; C has no cast from it to a function
#define REAL(name) __typeof__(&name) real; *(void **)&real = dlsym(RTLD_NEXT, #name)

ssize_t read(int fd, void *to, size_t n) {
    REAL(read);
    return interrupted(0) ? -1 : real(fd, to, shorter(n));
}

ssize_t pread(int fd, void *to, size_t n, off_t at) {
    REAL(pread);
    return interrupted(1) ? -1 : real(fd, to, n, at);
}

ssize_t write(int fd, const void *from, size_t n) {
    REAL(write);
    return interrupted(2) ? -1 : real(fd, from, shorter(n));
}

int poll(struct pollfd *fds, nfds_t n, int timeout) {
    REAL(poll);
    return call_fails("poll", EFAULT) || interrupted(3) ? -1 : real(fds, n, timeout);
}

pid_t waitpid(pid_t pid, int *status, int options) {
    REAL(waitpid);
    return interrupted(4) ? -1 : real(pid, status, options);
}

pid_t fork(void) {
    REAL(fork);
    return call_fails("fork", EAGAIN) ? -1 : real();
}

int pipe(int ends[2]) {
    REAL(pipe);
    return call_fails("pipe", EMFILE) ? -1 : real(ends);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    REAL(mmap);
    return fd >= 0 && call_fails("mmap", ENOMEM) ? MAP_FAILED : real(at, n, prot, flags, fd, offset);
}
