// fetch.h: the bytes behind an http or https address, through the curl program.
#ifndef FETCH_H
#define FETCH_H

#include "common.h"

typedef struct {
    uint64_t max_bytes;     // of the answer's body
    int max_seconds;        // for everything, redirects included
    int connect_seconds;    // until the connection stands
    int max_redirects;
    const char *program;    // "curl"; looked for in PATH
} FetchLimits;

// 256 MiB as for image files, 60 and 15 seconds, 5 redirects.
FetchLimits fetch_limits(void);

// True for NAME://..., whatever the name: such a path is meant as an address, and fetch_url says which ones work. A
// file of such a name can be given as ./NAME://...
bool fetch_is_url(const char *path);

// url -> *n bytes in *data (malloc'd, caller frees; never NULL). Returns 0, or -1 with e naming the address, what went
// wrong and what may help. Only http and https are followed, also after a redirect. Spaces and bytes beyond ASCII
// behind the host are percent-encoded; control characters are an error. Touches no signal handler: Ctrl-C on a terminal
// ends curl, which is an error here.
int fetch_url(uint8_t **data, size_t *n, const char *url, Err *e);
int fetch_url_within(uint8_t **data, size_t *n, const char *url, const FetchLimits *lim, Err *e);

#endif
