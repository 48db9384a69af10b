// readahead.h: the weight file is read and mapped ahead of its use by a thread of its own.
//
// madvise(MADV_WILLNEED) of a whole file reads no further than one window of the system's read-ahead, some MB; and a
// page that is in the page cache still costs a fault when a product first touches it, in the thread that wants to
// multiply. This thread goes through the file from its start, in the order in which a pass uses it, and asks the system
// to read and map it in pieces (MADV_POPULATE_READ, Linux 5.14): from the disk while the image is encoded, and from the
// page cache for a fraction of what the faults would cost (doc/tried.md).
// Not here: which file, and whether memory is enough for it to stay (libblip2.c).
#ifndef READAHEAD_H
#define READAHEAD_H

#include <stdbool.h>
#include <stddef.h>

typedef struct ReadAhead ReadAhead;

// bytes of a mapped file from map on. NULL: too small to be worth a thread, or there is none; everything works without.
ReadAhead *read_ahead_start(const void *map, size_t bytes);
bool read_ahead_done(const ReadAhead *r);    // it has come to its end, or the system refused
void read_ahead_stop(ReadAhead *r);          // to be called before the file is unmapped; NULL is fine

#endif
