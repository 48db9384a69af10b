// dev/emulator/init.c: the first and only process of the emulated machine; runs the lines of /run and switches off.
//
// A line is a command, its words parted by tabs. Around what each writes, on the serial line, go "== N start" and
// "== N exit CODE" (128 + signal when it was killed); "== end" is the last line. Not here: what the output means
// (run.py).
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORDS = 64, LINE = 4096 };

static int run(char *line) {
    char *words[WORDS];
    int n = 0;
    for (char *p = strtok(line, "\t\n"); p && n < WORDS - 1; p = strtok(NULL, "\t\n")) words[n++] = p;
    words[n] = NULL;
    const pid_t child = fork();
    if (child == 0) {
        execv(words[0], words);
        perror(words[0]);
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return 126;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void) {
    char line[LINE];
    mount("none", "/proc", "proc", 0, NULL);
    mount("none", "/tmp", "tmpfs", 0, NULL);
    FILE *f = fopen("/run", "r");
    if (!f) perror("/run");
    for (int i = 0; f && fgets(line, sizeof line, f); i++) {
        printf("== %d start\n", i);
        fflush(stdout);
        const int code = run(line);
        printf("\n== %d exit %d\n", i, code);
    }
    printf("== end\n");
    fflush(stdout);
    sleep(1);           // for the serial line to drain
    // Bochs ends at this word on this port.
    if (!iopl(3))
        for (const char *p = "Shutdown"; *p; p++) outb((unsigned char)*p, 0x8900);
    for (;;) pause();
}
