// common.h: what every file shares: the error convention, checked arithmetic, byte order, JSON text.
//
// In order: Err and fail() for what depends on input, CHECK() for what cannot happen, products that detect
// overflow, little-endian reads from untrusted bytes, a clock, a growing text buffer with JSON escaping.
// Not here: anything about models, images or tokens.
#ifndef COMMON_H
#define COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

// ---------------------------------------------------------------------------------------------------------
// Errors. A function that can fail because of its input returns -1 (or NULL) and leaves one line of text here:
// what went wrong, in which file or tensor, what was expected, what was found, and a hint. The caller decides
// whether to print it, go on with the next image, or stop.

typedef struct { char text[1024]; } Err;

// Writes the message and returns -1, so that callers can say `return fail(e, "...")`. Text that does not fit is cut.
int fail(Err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// Puts "prefix: " before a message that is already there (which file, which tensor) and returns -1.
int fail_in(Err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// For what cannot happen whatever the input is: prints file:line and stops the program.
#define CHECK(cond) ((cond) ? (void)0 : check_failed(#cond, __FILE__, __LINE__))
void check_failed(const char *cond, const char *file, int line) __attribute__((noreturn));

// ---------------------------------------------------------------------------------------------------------
// Sizes that come from a file are multiplied and added only through these: false when the result overflows.

static inline bool mul_ok(uint64_t *out, uint64_t a, uint64_t b) { return !__builtin_mul_overflow(a, b, out); }
static inline bool add_ok(uint64_t *out, uint64_t a, uint64_t b) { return !__builtin_add_overflow(a, b, out); }

// Bytes of memory that can be had without swapping; UINT64_MAX where the system does not say.
uint64_t available_memory(void);

// Little-endian reads at any alignment.
uint16_t read_u16(const uint8_t *p);
uint32_t read_u32(const uint8_t *p);
uint64_t read_u64(const uint8_t *p);

// Of a clock that only goes forward.
double seconds_now(void);
int64_t now_ms(void);      // the same in milliseconds

// ---------------------------------------------------------------------------------------------------------
// Text that grows, for JSON output and decoded answers. Always NUL-terminated once something was put in. When memory
// runs out it stops growing, which text_check tells at the end (-1 with e).

typedef struct { char *data; size_t len, cap; bool failed; } Text;

void text_add(Text *t, const char *bytes, size_t n);                      // n raw bytes
void text_printf(Text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_json(Text *t, const char *utf8, size_t n);   // a quoted JSON string; invalid UTF-8 becomes U+FFFD,
                                                       // what a terminal would obey a \u escape
int text_check(const Text *t, Err *e);
void text_free(Text *t);

// Length of the valid UTF-8 sequence at p (1..4), or 0 when the bytes there are not one (n bytes are readable).
// Rejects overlong forms, surrogates and code points above U+10FFFF; *cp receives the code point when not NULL.
int utf8_next(const uint8_t *p, size_t n, uint32_t *cp);
// Writes code point cp as UTF-8 to out (room for 4) and returns its length.
int utf8_put(char *out, uint32_t cp);
// True for what a terminal obeys instead of showing it, or what turns the order of what it shows: C0 and C1 controls,
// DEL, bidirectional embeddings, overrides and isolates.
bool terminal_obeys(uint32_t cp);

#endif
