#!/bin/sh
# test/run.sh BLIP2 COMPARE TEST...: runs the tests, TEST_JOBS of them at a time (one for each processor), and prints
# the tally of each on a line as it ends, then the sum of all tallies.
#
# A TEST is a program (PROGRAM:ARGUMENT: with that argument), a shell script (called with BLIP2, the program under test,
# and COMPARE, build/compare_dumps) or a Python script (run by $PYTHON, with BLIP2 and COMPARE in the environment). Its
# last tally line counts; one that ends without a tally, or with an exit code that contradicts it, has failed. What it
# writes to stderr is shown when it ends; with VERBOSE=1 so is its standard output. Tests share nothing but files that
# none of them writes. When nothing passed, that is a failure, but with ALL_SKIPPED=ok not if all were skipped.
# In order: one test (this script calls itself so), all of them.

# --one FOLDER TEST: leaves the three numbers of the tally in a file there.
if [ "$1" = --one ]; then
    t=$3 name=$(basename "$3") out=$(mktemp "$2/XXXXXX") || exit 1
    case $t in
    *.sh) sh "$t" "$BLIP2" "$COMPARE" ;;
    *.py) "${PYTHON:-python3}" "$t" ;;
    *:*) "${t%%:*}" "${t#*:}" ;;
    *) "$t" ;;
    esac >"$out" 2>"$out.err"
    status=$? show=$VERBOSE
    tally=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$out" | tail -n 1)
    # shellcheck disable=SC2046  # three words
    set -- $(echo "${tally:-0 passed, 1 failed, 0 skipped}" | tr -dc '0-9 ')
    if [ -z "$tally" ]; then
        echo "FAIL $name ended with exit code $status and without a tally" >>"$out.err"
        show=1
    elif [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then
        echo "FAIL $name ended with exit code $status" >>"$out.err"
        show=1
        set -- "$1" 1 "$3"
    fi
    [ "$show" != 1 ] || cat "$out"
    cat "$out.err" >&2
    printf '%-28s %s passed, %s failed, %s skipped\n' "$name" "$1" "$2" "$3"
    echo "$1 $2 $3" >"$out.tally"
    exit 0
fi

BLIP2=$1 COMPARE=$2
export BLIP2 COMPARE
shift 2
passed=0 failed=0 skipped=0
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
printf '%s\n' "$@" | xargs -P "${TEST_JOBS:-$(nproc 2>/dev/null || echo 2)}" -n 1 sh "$0" --one "$folder"
for f in "$folder"/*.tally; do
    [ -e "$f" ] && read -r p f s <"$f" && passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
ended=$(find "$folder" -name '*.tally' | wc -l)
if [ "$ended" -ne $# ]; then
    echo "FAIL $(($# - ended)) tests did not end" >&2
    failed=$((failed + $# - ended))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$ALL_SKIPPED" = ok ] && passed=$((passed + skipped))
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
