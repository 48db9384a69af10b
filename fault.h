// fault.h: a weight file that shrinks while it is in use ends the program with a message instead of a bus error.
#ifndef FAULT_H
#define FAULT_H

// From now on a SIGBUS of this process prints one line that names the weight file at path and exits with the given
// code. For programs only: signal handlers are the process's, so the library installs none. Call it once.
void fault_install(const char *path, int exit_code);

#endif
