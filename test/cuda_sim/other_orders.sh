#!/bin/sh
# test/cuda_sim/other_orders.sh: the launchers and two small models again, under other seeds (which draw the order of
# threads, warps, blocks and operations) and with the limits of sm_90. TEST_CUDA: the program under test. Then the table
# of launches in dev/cuda/report against those that were made here; control: a launch that is not as the table says.

passed=0 failed=0 skipped=0
out=$(mktemp) || exit 1
trap 'rm -f "$out" "$out.launches"' EXIT
for order in '2 80' '3 90'; do
    # shellcheck disable=SC2086  # two words
    set -- $order
    SIM_LAUNCHES=$out.launches SIM_SEED=$1 SIM_CC=$2 "${TEST_CUDA:-build/cuda_sim/test_cuda}" patches 'tokens (' norm \
        activate embed gather kv_store attention past 'fc2 by' 'pixels to' '(8,33)' '(70,160)' 'form 4' \
        'family 1, dtype 1: tokens' 'family 2, dtype 0: tokens' >"$out"
    status=$?
    tally=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$out" | tail -n 1)
    [ -n "$tally" ] || tally='0 passed, 1 failed, 0 skipped'
    [ "$status" -eq 0 ] || echo "FAIL seed $1, sm_$2: exit code $status" >&2
    # shellcheck disable=SC2046  # three words
    set -- $(echo "$tally" | tr -dc '0-9 ') "$status"
    [ "$4" -eq 0 ] || [ "$2" -gt 0 ] || set -- "$1" 1 "$3"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
python3 dev/cuda/report --launches "$out.launches" >"$out" && passed=$((passed + 1)) || failed=$((failed + 1))
awk '{ $2 = 2 * $2; print }' "$out.launches" >"$out"
if python3 dev/cuda/report --launches "$out" >/dev/null 2>&1; then
    failed=$((failed + 1))
    echo "FAIL twice as many threads a block go unnoticed" >&2
else passed=$((passed + 1)); fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
