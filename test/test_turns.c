// test/test_turns.c: the prompt that earlier turns and a question make, which turns go when there is no room, and files
// of turns.

#include "../turns.h"
#include "check.h"

#include <stdlib.h>
#include <unistd.h>

// A token is a word; one that starts with ! cannot be read.
static int words(void *calls, const char *text, size_t n) {
    int count = 0;
    (*(int *)calls)++;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '!') return -1;
        count += text[i] != ' ' && (i == 0 || text[i - 1] == ' ');
    }
    return count;
}

static void test_prompt(Tally *t) {
    Turns turns = {0};
    Text prompt = {0};
    Err e;
    int calls = 0;
    EXPECT(t, turns_prompt(&prompt, &turns, "what?", 99, words, &calls, &e) == 0 &&
              !strcmp(prompt.data, "Question: what? Answer:"), "no turns: %s", prompt.data);
    EXPECT(t, !turns_add(&turns, "what?", "a cat", &e) && !turns_add(&turns, "where?", "here.", &e) &&
              !turns_add(&turns, "why", "", &e) && !turns_add(&turns, "so?", "yes?", &e), "add: %s", e.text);
    const char *want = "Question: what? Answer: a cat. Question: where? Answer: here. Question: why Answer: . "
                       "Question: so? Answer: yes?. Question: and? Answer:";
    EXPECT(t, turns_prompt(&prompt, &turns, "and?", 99, words, &calls, &e) == 0 && !strcmp(prompt.data, want),
           "%s", prompt.data);
    turns_cut(&turns, 3);
    EXPECT(t, turns.n == 3 && !turns_add(&turns, "so?", "no!", &e), "cut");
    EXPECT(t, turns_prompt(&prompt, &turns, "and?", 99, words, &calls, &e) == 4 &&
              !strcmp(prompt.data, "Question: and? Answer:"), "a turn that cannot be read: %s", prompt.data);
    turns_free(&turns);
    text_free(&prompt);
}

static void test_dropping(Tally *t) {
    Turns turns = {0};
    Text prompt = {0};
    Err e;
    int calls = 0;
    char text[16];
    for (int i = 0; i < 1000; i++) {
        snprintf(text, sizeof text, "q%d", i);
        if (turns_add(&turns, text, "a", &e)) abort();
    }
    // A turn has 4 words, the question 3.
    for (int most = 43; most >= 3; most -= 4) {
        Turns copy = turns;
        const int dropped = turns_prompt(&prompt, &copy, "new", most, words, &calls, &e), left = (most - 3) / 4;
        EXPECT(t, dropped == 1000 - left && copy.first == dropped, "room for %d: %d dropped", most, dropped);
        snprintf(text, sizeof text, "Question: %s%d ", left ? "q" : "new", 1000 - left);
        EXPECT(t, !memcmp(prompt.data, text, left ? strlen(text) : 13), "room for %d: %.40s", most, prompt.data);
    }
    EXPECT(t, calls < 11 * 11, "%d looks", calls);
    EXPECT(t, turns_prompt(&prompt, &turns, "new", 43, words, &calls, &e) == 990, "dropped");
    EXPECT(t, turns_prompt(&prompt, &turns, "new", 43, words, &calls, &e) == 0, "dropped once");
    EXPECT(t, turns_prompt(&prompt, &turns, "much longer new question", 43, words, &calls, &e) == 1, "one more");
    EXPECT(t, turns_prompt(&prompt, &turns, "new", 2, words, &calls, &e) == 9 && turns.first == 1000, "too long");
    turns_cut(&turns, 1000);
    EXPECT(t, turns.first == 0 && turns_prompt(&prompt, &turns, "new", 4003, words, &calls, &e) == 0, "taken back");
    turns_free(&turns);
    text_free(&prompt);
}

static int read_text(Turns *turns, const char *text, size_t n, Err *e) {
    char path[] = "/tmp/test_turns.XXXXXX";
    const int fd = mkstemp(path);
    if (fd < 0 || write(fd, text, n) != (ssize_t)n || close(fd)) abort();
    *turns = (Turns){0};
    const int bad = turns_read(turns, path, e);
    unlink(path);
    return bad;
}

static void test_file(Tally *t) {
    Turns turns;
    Err e = {""};
    const char good[] = "what?\ta cat\n\n\r\nwhere?\there\twith a tab\r\n\tno question\nno answer\t";
    EXPECT(t, !read_text(&turns, good, sizeof good - 1, &e) && turns.n == 4, "%s", e.text);
    EXPECT(t, turns.n == 4 && !strcmp(turns.turn[1].answer, "here\twith a tab") && !*turns.turn[2].question &&
              !*turns.turn[3].answer && !strcmp(turns.turn[0].answer, "a cat"), "what was read");
    turns_free(&turns);
    const struct { const char *text; size_t n; const char *want; } bad[] = {
        {"a\tb\nno tab\n", 11, "line 2: expected a question, a tab"},
        {"a\tb\377\n", 5, "line 1: the text is not UTF-8"}, {"a\tb\0c\n", 6, "NUL"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        EXPECT(t, read_text(&turns, bad[i].text, bad[i].n, &e) && strstr(e.text, bad[i].want), "%s", e.text);
        turns_free(&turns);
    }
    EXPECT(t, turns_read(&turns, "/nowhere/at/all", &e) && strstr(e.text, "cannot open"), "%s", e.text);
    EXPECT(t, turns_read(&turns, "/tmp", &e) && strstr(e.text, "cannot be read"), "%s", e.text);
    turns_free(&turns);
}

int main(void) {
    Tally t = {0};
    test_prompt(&t);
    test_dropping(&t);
    test_file(&t);
    return tally_close(&t);
}
