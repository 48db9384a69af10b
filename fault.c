// fault.c: SIGBUS becomes a message (see fault.h).
//
// Weights are read from the mapped file while answering. When another program makes the file shorter, or its disk or
// network share fails, the system has no bytes for a page and sends SIGBUS to the thread that asked. There is nothing
// to go on with: the handler prints what was prepared and ends the process. Not here: a file that is overwritten in
// place, which no signal tells; --verify compares checksums.

#include "fault.h"

#include "escape.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// The only mutable globals of the program: a handler gets no argument of ours. Written before it is installed.
static char message[1024];
static size_t message_bytes;
static int code;

static void on_sigbus(int number) {
    (void)number;
    // Only what is safe in a handler, wherever the thread was, also inside malloc or stdio.
    if (write(STDERR_FILENO, message, message_bytes) < 0) {}
    _exit(code);
}

void fault_install(const char *path, int exit_code) {
    // Visible whatever standard error is: a handler cannot ask. Without memory for that, the name stays away.
    Text name = {0};
    escape_add(&name, path, strlen(path));
    snprintf(message, sizeof message, "blip2: %.800s: the weight file was cut short while it was in use, or its disk "
             "failed; hint: put a whole file there and start again\n", name.failed ? "-m" : name.data);
    text_free(&name);
    message_bytes = strlen(message);
    code = exit_code;
    struct sigaction act = {.sa_handler = on_sigbus};
    sigemptyset(&act.sa_mask);
    sigaction(SIGBUS, &act, NULL);
}
