// image.c: reading image files within limits and decoding them in a child process (see image.h).
//
// In order: options, reading a file or standard input, the child that decodes, the parent that receives, the
// API. Not here: the formats (image_decode.c, image_png.c, image_gif.c, image_bmp.c, image_pnm.c), EXIF
// (image_exif.c), resizing (image_resize.c).
//
// Image decoders are where hostile files do their harm (the stb_image that distributions package, 2.27,
// writes out of bounds on some broken files), so each image is decoded in a forked child with limits on
// memory and time:
//
//     parent                                        child
//       bytes of the file -------- fork ------------> the same bytes, copy-on-write
//       poll + read, deadline <--- pipe ------------- Reply, then W*H*3 bytes of pixels
//       waitpid                                       _exit
//
// Whatever happens to the child - a crash, an endless loop, no memory - is one line of error text in the
// parent. The child only decodes: it runs no atexit handlers, writes no buffered output and starts no
// threads, so the parent may well have threads or tens of gigabytes of mapped weights.

#include "image.h"
#include "image_codec.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// Sanitizers reserve terabytes of address space for their shadow memory, so that no limit can be set on it,
// and report crashes by signal handlers of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

ImageOptions image_defaults(void) {
    return (ImageOptions){.max_bytes = 256u << 20, .max_pixels = 178956970, .max_seconds = 20};
}

void image_free(Image *im) {
    free(im->rgb);
    *im = (Image){0};
}

// ---------------------------------------------------------------------------------------------------------
// Reading

static int open_failed(const char *path, Err *e) {
    if (!strncmp(path, "http://", 7) || !strncmp(path, "https://", 8))
        return fail(e, "%s: this is an address, not a file: download it first, or pipe it in: "
                       "curl -sL ADDRESS | blip2 ... -", path);
    switch (errno) {
    case ENOENT: return fail(e, "%s: no such file: check the spelling and the folder", path);
    case EACCES: return fail(e, "%s: no permission to read this file: try chmod +r, or another user", path);
    case ENXIO: return fail(e, "%s: is a socket or a device, not an image file", path);
    default: return fail(e, "%s: cannot be opened: %s", path, strerror(errno));
    }
}

// Only regular files are opened by name: reading a FIFO or a device may block for ever or never end.
static int check_regular(int fd, const char *path, const ImageOptions *opt, uint64_t *size, Err *e) {
    struct stat st;
    if (fstat(fd, &st) != 0) return fail(e, "%s: cannot be examined: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode)) return fail(e, "%s: is a directory: name the image files inside it", path);
    if (!S_ISREG(st.st_mode))
        return fail(e, "%s: is a %s, not an image file: give a regular file, or \"-\" and pipe the image in",
                    path, S_ISFIFO(st.st_mode) ? "FIFO (named pipe)" : "device");
    if ((uint64_t)st.st_size > opt->max_bytes)
        return fail(e, "%s: %lld bytes, more than the limit of %llu for an image file: make it smaller first",
                    path, (long long)st.st_size, (unsigned long long)opt->max_bytes);
    *size = (uint64_t)st.st_size;
    return 0;
}

// Everything up to end of file into *bytes (to be freed), never more than the limit, whatever fstat said.
static int read_all(uint8_t **bytes, size_t *n, int fd, uint64_t guess, const char *path,
                    const ImageOptions *opt, Err *e) {
    size_t cap = (size_t)guess + 1, len = 0;  // one byte more, to see the end of the file at once
    if (cap < 65536) cap = 65536;
    uint8_t *buf = malloc(cap);
    for (;;) {
        if (!buf) return fail(e, "%s: no memory for %zu bytes of file", path, cap);
        ssize_t got = read(fd, buf + len, cap - len);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            int why = errno;
            free(buf);
            return fail(e, "%s: cannot be read: %s", path, strerror(why));
        }
        if (got == 0) break;
        len += (size_t)got;
        if (len > opt->max_bytes) {
            free(buf);
            return fail(e, "%s: more than the limit of %llu bytes for an image file: make it smaller first",
                        path, (unsigned long long)opt->max_bytes);
        }
        if (len < cap) continue;
        cap *= 2;
        uint8_t *more = realloc(buf, cap);
        if (!more) free(buf);
        buf = more;
    }
    *bytes = buf;
    *n = len;
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// The child

typedef struct {   // what goes through the pipe first; the parent trusts no field of it
    int32_t ok;    // 1: W*H*3 bytes of pixels follow; 0: error says why not
    int32_t W, H;
    char warning[sizeof ((Image *)0)->warning];
    char error[sizeof ((Err *)0)->text];
} Reply;

static void lower_limit(int what, uint64_t soft, uint64_t hard) {
    struct rlimit r;
    if (getrlimit(what, &r) != 0) return;
    if (r.rlim_max == RLIM_INFINITY || r.rlim_max > hard) r.rlim_max = (rlim_t)hard;
    if (r.rlim_cur == RLIM_INFINITY || r.rlim_cur > soft) r.rlim_cur = (rlim_t)soft;
    if (r.rlim_cur > r.rlim_max) r.rlim_cur = r.rlim_max;
    setrlimit(what, &r);
}

// Bytes of address space in use, which the child has inherited together with the parent's mapped weights; 0
// when the system has no /proc. Only calls that are safe after fork in a process with threads.
static uint64_t address_space(void) {
    char text[64] = "";
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    uint64_t pages = 0;
    for (ssize_t i = 0; i < got && text[i] >= '0' && text[i] <= '9'; i++)
        pages = pages * 10 + (uint64_t)(text[i] - '0');
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void set_limits(const ImageOptions *opt) {
    uint64_t cpu = (uint64_t)opt->max_seconds;
    lower_limit(RLIMIT_CPU, cpu, cpu + 1);
    lower_limit(RLIMIT_CORE, 0, 0);
    // The hungriest way through a decoder takes under 24 bytes a pixel (a turned 16-bit RGBA PNG; a
    // progressive CMYK JPEG; an animated WebP), besides copies of the file and the allocator's own needs.
    uint64_t used = address_space(), pixels, sum;
    if (!SANITIZED && used && mul_ok(&pixels, opt->max_pixels, 24) && add_ok(&sum, used, pixels)
        && add_ok(&sum, sum, 2 * opt->max_bytes) && add_ok(&sum, sum, 64u << 20))
        lower_limit(RLIMIT_AS, sum, sum);
    // Handlers of the parent (cleaning up on Ctrl-C, say) are not the child's to run.
    const int ours[] = {SIGXCPU, SIGPIPE, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGINT, SIGTERM};
    for (size_t i = 0; !SANITIZED && i < sizeof ours / sizeof *ours; i++) signal(ours[i], SIG_DFL);
}

static bool write_all(int fd, const void *data, size_t n) {
    const uint8_t *p = data;
    while (n > 0) {
        ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        p += put;
        n -= (size_t)put;
    }
    return true;
}

static _Noreturn void child(int fd, const uint8_t *bytes, size_t n, const ImageOptions *opt) {
    set_limits(opt);
    Image im = {0};
    Err e = {0};
    int rc = image_decode_any(&im, bytes, n, opt->max_pixels, &e);
    if (rc == 0 && opt->obey_exif) rc = image_turn(&im, image_orientation(bytes, n), &e);
    Reply r = {.ok = rc == 0, .W = im.W, .H = im.H};
    memcpy(r.warning, im.warning, sizeof r.warning);
    memcpy(r.error, e.text, sizeof r.error);
    bool sent = write_all(fd, &r, sizeof r);
    if (sent && r.ok) sent = write_all(fd, im.rgb, (size_t)im.W * (size_t)im.H * 3);
    _exit(sent ? 0 : 1);
}

// ---------------------------------------------------------------------------------------------------------
// The parent

// Reads n bytes from the pipe, waiting no longer than the deadline. False when the child closed it or time is
// up.
static bool receive(void *to, size_t n, int fd, int64_t deadline) {
    uint8_t *p = to;
    while (n > 0) {
        int64_t left = deadline - now_ms();
        if (left <= 0) return false;
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        int ready = poll(&wait, 1, left > 1000 ? 1000 : (int)left);
        if (ready < 0 && errno != EINTR) return false;
        if (ready <= 0) continue;
        ssize_t got = read(fd, p, n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        p += got;
        n -= (size_t)got;
    }
    return true;
}

// Ends the child if it still runs and leaves no zombie. *status is -1 when the process ignores SIGCHLD, so
// that the system reaped the child itself; its number may then belong to somebody else and must not be
// signalled.
static void reap(pid_t pid, bool stop, int *status) {
    *status = -1;
    if (stop) {
        pid_t done = waitpid(pid, status, WNOHANG);
        if (done == pid || (done < 0 && errno == ECHILD)) return;
        kill(pid, SIGKILL);
    }
    while (waitpid(pid, status, 0) < 0 && errno == EINTR) {}
}

static int explain_end(int status, bool late, const ImageOptions *opt, Err *e) {
    int sig = status != -1 && WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (late || sig == SIGXCPU)
        return fail(e, "decoding took more than the limit of %d s: is the file damaged?", opt->max_seconds);
    if (sig == SIGKILL)
        return fail(e, "the decoder was killed: too little memory, or more than %d s", opt->max_seconds);
    if (sig == SIGPIPE) return fail(e, "the decoder's answer could not be received");
    if (sig) return fail(e, "the decoder crashed (signal %d): the file is damaged", sig);
    return fail(e, "the decoder stopped without an answer: the file is damaged, or memory is short");
}

// The reply and the pixels from the pipe; every number is checked again on this side.
static int take_reply(Image *out, int fd, int64_t deadline, const ImageOptions *opt, bool *answered, Err *e) {
    Reply r;
    *answered = receive(&r, sizeof r, fd, deadline);
    if (!*answered) return -1;
    r.warning[sizeof r.warning - 1] = r.error[sizeof r.error - 1] = 0;
    if (r.ok != 1) return fail(e, "%s", r.error);
    if (r.W < 1 || r.H < 1) return fail(e, "the decoder answered with %d x %d pixels", r.W, r.H);
    if (image_take(out, (uint64_t)r.W, (uint64_t)r.H, opt->max_pixels, e) != 0) return -1;
    memcpy(out->warning, r.warning, sizeof out->warning);
    *answered = receive(out->rgb, (size_t)r.W * (size_t)r.H * 3, fd, deadline);
    return *answered ? 0 : -1;
}

int image_decode(Image *out, const uint8_t *bytes, size_t n, const char *name, const ImageOptions *opt,
                 Err *e) {
    *out = (Image){0};
    if (n == 0) return fail(e, "%s: the file is empty (0 bytes)", name);
    if (n > opt->max_bytes)
        return fail(e, "%s: %zu bytes, more than the limit of %llu for an image file", name, n,
                    (unsigned long long)opt->max_bytes);
    CHECK(opt->max_seconds > 0);
    int ends[2];
    if (pipe(ends) != 0) return fail(e, "%s: no pipe to the decoder process: %s", name, strerror(errno));
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    pid_t pid = fork();
    if (pid < 0) {
        int why = errno;
        close(ends[0]);
        close(ends[1]);
        return fail(e, "%s: cannot start the decoder process: %s", name, strerror(why));
    }
    if (pid == 0) {
        close(ends[0]);
        child(ends[1], bytes, n, opt);
    }
    close(ends[1]);
    int64_t deadline = now_ms() + 3000 * (int64_t)opt->max_seconds;
    bool answered = false;
    int status, rc = take_reply(out, ends[0], deadline, opt, &answered, e);
    bool late = !answered && now_ms() >= deadline;
    close(ends[0]);
    // A child that has closed its end of the pipe without an answer is dying: wait for the reason, do not
    // make one.
    reap(pid, rc != 0 && (answered || late), &status);
    if (rc == 0) return 0;
    image_free(out);
    if (!answered) explain_end(status, late, opt, e);
    return fail_in(e, "%s", name);
}

int image_read(Image *out, const char *path, const ImageOptions *opt, Err *e) {
    *out = (Image){0};
    bool from_stdin = strcmp(path, "-") == 0;
    const char *name = from_stdin ? "standard input" : path;
    // O_NONBLOCK: opening a FIFO must not wait for somebody to write to it. It changes nothing for regular
    // files.
    int fd = from_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return open_failed(path, e);
    if (from_stdin && isatty(fd))
        return fail(e, "standard input is a terminal: pipe an image in, e.g. blip2 ... - < photo.jpg");
    uint64_t size = 0;
    uint8_t *bytes = NULL;
    size_t n = 0;
    int rc = from_stdin ? 0 : check_regular(fd, path, opt, &size, e);
    if (rc == 0) rc = read_all(&bytes, &n, fd, size, name, opt, e);
    if (!from_stdin) close(fd);
    if (rc == 0) rc = image_decode(out, bytes, n, name, opt, e);
    free(bytes);
    return rc;
}
