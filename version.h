// version.h: --version: what was built, with what, and what this machine makes of it.
#ifndef VERSION_H
#define VERSION_H

#include <stdio.h>

void version_print(FILE *f);

#endif
