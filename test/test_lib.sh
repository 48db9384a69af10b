#!/bin/sh
# test/test_lib.sh BLIP2 COMPARE: the library as others use it: which symbols it shows, that the program needs no more
# than those, and doc/example.c compiled and run with the static and the shared one. test_lib.c tests what it does.
blip2=$1 passed=0 failed=0 skipped=0
build=$(dirname "$blip2")
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
LC_ALL=C
export LC_ALL
check() { if [ "$1" = "$2" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL $3: '$1'" >&2; fi; }

# Every function of the header is there, and nothing else.
sed -n 's/^BLIP2_API.*[ *]\(blip2_[a-z_]*\)(.*/\1/p' libblip2.h | sort >"$tmp/header"
nm -D --defined-only "$build/libblip2.so" | awk '{ print $NF }' | grep -v '^__\?[al]san\|^__odr_asan\|^__ubsan' | sort >"$tmp/so"
nm -g --defined-only "$build/libblip2.a" | awk 'NF == 3 { print $3 }' | grep -v '^__\?[al]san\|^__odr_asan' | sort >"$tmp/a"
check "$(diff "$tmp/header" "$tmp/so")" "" "symbols of libblip2.so and functions of libblip2.h"
check "$(diff "$tmp/header" "$tmp/a")" "" "symbols of libblip2.a and functions of libblip2.h"
if [ "$(wc -l <"$tmp/header")" -gt 20 ]; then check 1 1 ""; else check 0 1 "functions found in libblip2.h"; fi
echo no_such_function >>"$tmp/header"
check "$(diff -q "$tmp/header" "$tmp/so" >/dev/null; echo $?)" 1 "control: a function that is not there"

# The library neither prints nor ends the process; abort() is CHECK's.
nm -D --undefined-only "$build/libblip2.so" | awk '{ print $NF }' | sed 's/@.*//' | sort >"$tmp/needs"
for f in exit printf puts putchar perror vprintf stdout __printf_chk; do
    check "$(grep -cx $f "$tmp/needs")" 0 "libblip2.so calls $f"
done

# That the program needs no more than the header has is shown by the link: all other names of libblip2.a are local.

if [ "$SAN" = 1 ]; then
    skipped=$((skipped + 1)); echo "SKIP the example with sanitizers: it would have to be compiled with them" >&2
else
    cc=$(sed -n '1s/ .*//p' "$build/flags")
    extra=$(sed -n 1p "$build/flags" | tr ' ' '\n' | grep -x -e '-l.*' -e '-L.*' | tr '\n' ' ')
    "$blip2" --quiet -m test/data/tiny_t5.bin test/data/tiny_0.png >"$tmp/want"
    "$cc" -std=c11 -Wall -Wextra -Werror -I. doc/example.c -o "$tmp/shared" -L"$build" -lblip2 -Wl,-rpath,"$build"
    check $? 0 "doc/example.c with libblip2.so"
    "$tmp/shared" test/data/tiny_t5.bin test/data/tiny_0.png >"$tmp/out"
    check "$?" 0 "the example's exit code"
    check "$(cat "$tmp/out")" "$(cat "$tmp/want")" "the example's answer"
    # shellcheck disable=SC2086  # several words
    "$cc" -std=c11 -Wall -Wextra -Werror -I. doc/example.c -o "$tmp/static" "$build/libblip2.a" $extra -lm
    check $? 0 "doc/example.c with libblip2.a"
    check "$("$tmp/static" test/data/tiny_t5.bin test/data/tiny_0.png)" "$(cat "$tmp/want")" "its answer"
    "$tmp/static" /nowhere 2>"$tmp/err"
    check "$?" 1 "a model that is not there"
    check "$(grep -c 'No such file' "$tmp/err")" 1 "what it says"
    "$tmp/static" test/data/tiny_t5.bin /nowhere.png test/data/tiny_0.png >"$tmp/out" 2>"$tmp/err"
    check "$? $(wc -l <"$tmp/out") $(wc -l <"$tmp/err")" "1 1 1" "an image that is not there"
    # An own function called fail, as inside the library: the two do not meet.
    printf 'int fail(void); int matmul(void); int fail(void) { return 1; } int matmul(void) { return 2; }\n' >"$tmp/own.c"
    # shellcheck disable=SC2086
    "$cc" -I. doc/example.c "$tmp/own.c" -o "$tmp/own" "$build/libblip2.a" $extra -lm
    check $? 0 "names of the library's inside used by others"
    check "$("$tmp/own" test/data/tiny_t5.bin test/data/tiny_0.png)" "$(cat "$tmp/want")" "the answer beside them"
    if [ -n "$(command -v c++)" ]; then
        cp doc/example.c "$tmp/example.cc"
        c++ -Wall -Wextra -Werror -I. "$tmp/example.cc" -o "$tmp/cxx" -L"$build" -lblip2 -Wl,-rpath,"$build"
        check $? 0 "the header in C++"
    else
        skipped=$((skipped + 1)); echo "SKIP the header in C++: no c++ here" >&2
    fi
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
