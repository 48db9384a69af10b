#!/bin/sh
# dev/cuda/test_sim.sh PROGRAM...: each program of the ladder, built for the simulator, on odd small shapes; whether a
# wrong result ends with exit code 1; how it takes mistakes in its command line; its list. Then what times a version,
# once (sampling --rehearse), the tables (test_table.py) and dev/gpu.sh --dry-run. Ends with the sum of all tallies.

passed=0 failed=0 skipped=0
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
out=$folder/out list=$folder/list rehearsal=$folder/rehearsal

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
    expect 1 "$p" 1 --small --wrong 1
    grep -q 'WRONG' "$out" || { echo "FAIL $p --wrong: no WRONG in its table"; failed=$((failed + 1)); }
    expect 2 "$p" 99
    expect 2 "$p" --smal
    expect 0 "$p" --help
    expect 0 "$p" --list
    cat "$out" >>"$list"
done
for p; do
    case $p in
    */sampling) "$p" --rehearse --json >"$rehearsal" 2>"$out" || { cat "$out"; failed=$((failed + 1)); } ;;
    esac
done
gpu=$(dirname "$0")/../gpu.sh                 # the steps on a card: are they known to make?
expect 0 env OUT="$folder" sh "$gpu" --dry-run
expect 2 env OUT="$folder" STEPS="build nothing" sh "$gpu" --dry-run
for test in test_table.py test_bench.py; do
    python3 "$(dirname "$0")/$test" "$list" "$rehearsal" >"$out"
    tally=$(tail -n 1 "$out")
    [ "${tally#*, 0 failed}" = "$tally" ] && cat "$out"
    printf '%-28s %s\n' "$test" "$tally"
    # shellcheck disable=SC2046
    count $(echo "${tally:-0 1 0}" | tr -dc '0-9 ')
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
