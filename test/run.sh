#!/bin/sh
# test/run.sh BLIP2 COMPARE TEST...: runs each test and prints its tally on a line, then the sum of all tallies.
#
# A TEST is a program, a shell script (called with BLIP2, the program under test, and COMPARE, build/compare_dumps) or a
# Python script (run by $PYTHON, with BLIP2 and COMPARE in the environment). Its last tally line counts; one that ends
# without a tally, or with an exit code that contradicts it, has failed. With VERBOSE=1 standard output is shown too.

BLIP2=$1 COMPARE=$2
export BLIP2 COMPARE
shift 2
passed=0 failed=0 skipped=0
out=$(mktemp) || exit 1
trap 'rm -f "$out" "$out.status"' EXIT

run() {
    case $1 in
    *.sh) sh "$1" "$BLIP2" "$COMPARE" ;;
    *.py) "${PYTHON:-python3}" "$1" ;;
    *) "$1" ;;
    esac
}

for t; do
    name=$(basename "$t")
    if [ "$VERBOSE" = 1 ]; then
        { run "$t"; echo $? >"$out.status"; } | tee "$out"
        status=$(cat "$out.status")
    else
        run "$t" >"$out"
        status=$?
    fi
    tally=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$out" | tail -n 1)
    if [ -z "$tally" ]; then
        [ "$VERBOSE" = 1 ] || cat "$out"
        tally="0 passed, 1 failed, 0 skipped"
        echo "FAIL $name ended with exit code $status and without a tally" >&2
    fi
    # shellcheck disable=SC2046  # three words
    set -- $(echo "$tally" | tr -dc '0-9 ')
    if [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then
        [ "$VERBOSE" = 1 ] || cat "$out"
        echo "FAIL $name ended with exit code $status" >&2
        set -- "$1" 1 "$3"
    fi
    printf '%-28s %s passed, %s failed, %s skipped\n' "$name" "$1" "$2" "$3"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
