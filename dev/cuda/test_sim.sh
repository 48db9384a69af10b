#!/bin/sh
# dev/cuda/test_sim.sh PROGRAM...: each program of the ladder, built for the simulator, on odd small shapes; then how it
# takes mistakes in its command line, and its list. Ends with the sum of all tallies.

passed=0 failed=0 skipped=0
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT

# count PASSED FAILED SKIPPED
count() { passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3)); }

# expect CODE PROGRAM ARGUMENT...
expect() {
    want=$1
    shift
    "$@" >"$out" 2>&1
    code=$?
    if [ "$code" -eq "$want" ]; then passed=$((passed + 1)); return; fi
    failed=$((failed + 1))
    echo "FAIL $*: exit code $code, expected $want"
    cat "$out"
}

for p; do
    "$p" --small >"$out"
    code=$?
    tally=$(tail -n 1 "$out" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$')
    if [ -z "$tally" ] || [ "$code" -ne 0 ]; then
        cat "$out"
        echo "FAIL $p --small: exit code $code"
        [ -n "$tally" ] && [ "${tally#*, 0 failed}" = "$tally" ] || failed=$((failed + 1))
    fi
    printf '%-28s %s\n' "$(basename "$p")" "${tally:-no tally}"
    # shellcheck disable=SC2046  # three words
    count $(echo "${tally:-0 0 0}" | tr -dc '0-9 ')
    expect 2 "$p" 99
    expect 2 "$p" --smal
    expect 0 "$p" --help
    expect 0 "$p" --list
    python3 -c 'import json, sys; json.load(sys.stdin)' <"$out" || { echo "FAIL $p --list"; failed=$((failed + 1)); }
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
