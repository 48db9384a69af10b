#!/bin/sh
# dev/gpu.sh [--dry-run] [MODEL]: everything that needs a card, in one go on a machine that was lent for it.
#
# In order: what the machine is, build, what nvcc made of it (make cuda-report), make test-cuda with REQUIRE_GPU=1, the
# demo model's expected outputs on the card, the ladder (dev/cuda): built, every version checked and timed, PyTorch
# beside it, the tables written into doc/kernels.md; compute-sanitizer (memcheck, racecheck), the benchmark
# (dev/bench_gpu.py MODEL, by default opt-2.7b): bf16 beside transformers, then int8 and int4, then 364 pixels; at last
# every stage of two models of full size beside transformers (dev/fullsize.py).
# Lines that begin with "target:" say what was wanted, what was measured, met or missed.
# Each step has a limit in seconds; one that fails or runs out of time does not keep the others from running. What
# comes back is in $OUT: log.txt (all output), summary.txt (a line a step, the targets), ladder.json, kernels.md,
# bench.json, bench_int.json, bench_364.json.
# STEPS="build test" runs only those, and BUDGET=580 ends it all after so many seconds, for a machine with ten minutes a
# command, which takes some calls (COMMIT: where the tree came without .git; what bench wrote serves bench_int):
#     BUDGET=580 COMMIT=... STEPS="about build report test demo ladder_build ladder peers table" dev/gpu.sh
#     BUDGET=580 STEPS="build memcheck racecheck" dev/gpu.sh
#     BUDGET=580 STEPS="build bench" dev/gpu.sh
#     BUDGET=580 STEPS="build bench_int bench_364" dev/gpu.sh
#     BUDGET=580 STEPS="build full_opt full_t5" dev/gpu.sh
# With a quarter of an hour in all: first whether it is right, then how fast it is (the benchmark leaves out, and names,
# what does not fit):
#     BUDGET=330 STEPS="about build test demo memcheck" dev/gpu.sh
#     BUDGET=420 STEPS="build bench" dev/gpu.sh
# --dry-run shows the steps and asks make whether it knows what it would make; nothing is built or run.
# Needs the CUDA toolkit, a C compiler, zlib and stb; peers also torch, bench and full also transformers, full also
# Pillow ($PYTHON).
# Exit code 1 if any step failed or was not reached.

cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-build/gpu}
PYTHON=${PYTHON:-python3}
ALL="about build report test demo ladder_build ladder peers table memcheck racecheck bench bench_int bench_364"
ALL="$ALL full_opt full_t5"
STEPS=${STEPS:-$ALL}
BUDGET=${BUDGET:-0}
dry=
if [ "$1" = --dry-run ]; then dry=1; shift; fi
model=${1:-opt-2.7b}
for name in $STEPS; do
    case " $ALL " in *" $name "*) ;; *) echo "no step '$name'; there are: $ALL" >&2; exit 2 ;; esac
done
case $BUDGET in '' | *[!0-9]*) echo "BUDGET='$BUDGET' is no number of seconds" >&2; exit 2 ;; esac
mkdir -p "$OUT" || exit 1
export OUT PYTHON
failed=0
began=$(date +%s)

# seconds MOST RESERVE: MOST, or what BUDGET leaves but for RESERVE where that is less.
seconds() {
    left=$((BUDGET - $(date +%s) + began - $2))
    if [ "$BUDGET" -gt 0 ] && [ "$left" -lt "$1" ]; then echo "$left"; else echo "$1"; fi
}

# step NAME LIMIT COMMAND...; a command that rations its time itself keeps 45 s for what it has begun.
step() {
    name=$1 limit=$2
    shift 2
    case " $STEPS " in *" $name "*) ;; *) return ;; esac
    if [ "$dry" ]; then
        printf '%-12s at most %s s: %s\n' "$name" "$limit" "$*"
        case "$*" in make\ * | env\ *make\ *)
            [ "$1" = env ] && shift 2
            "$@" -n >/dev/null || failed=1 ;;
        esac
        return
    fi
    start=$(date +%s)
    limit=$(seconds "$limit" 15)                  # for ending it and what comes after
    if [ "$limit" -lt 5 ]; then
        failed=1
        printf '%-12s not reached: no time left\n' "$name" | tee -a "$OUT/summary.txt"
        return
    fi
    echo "=== $name: $*" >>"$OUT/log.txt"
    lines=$(wc -l <"$OUT/log.txt")
    timeout -k 10 "$limit" "$@" >>"$OUT/log.txt" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    [ $code -eq 124 ] && why=" (out of time, $limit s)" || why=
    printf '%-12s exit code %s%s after %s s: %s\n' "$name" $code "$why" $(($(date +%s) - start)) \
        "$(tail -n 1 "$OUT/log.txt")" | tee -a "$OUT/summary.txt"
    tail -n "+$((lines + 1))" "$OUT/log.txt" | grep '^target:' | tee -a "$OUT/summary.txt"
}

# For sh -c under a limit. A program whose results differ leaves no figures, and the others theirs.
# shellcheck disable=SC2016
ladder='rm -f "$OUT/ladder.json"; bad=0
for p in layernorm patch_embedding dense vit_attention matvec decode_attention sampling beam_step; do
    echo "$p"
    if timeout -k 5 100 build/ladder/$p --json >"$OUT/one.json"; then cat "$OUT/one.json" >>"$OUT/ladder.json"
    else bad=1; cat "$OUT/one.json"; fi
done
rm -f "$OUT/one.json"; exit $bad'
# shellcheck disable=SC2016
peers='"$PYTHON" dev/cuda/peers.py "$OUT/ladder.json" >"$OUT/one.json" && cat "$OUT/one.json" >>"$OUT/ladder.json"
code=$?; rm -f "$OUT/one.json"; exit $code'
# shellcheck disable=SC2016
table='"$PYTHON" dev/cuda/table.py "$OUT/ladder.json" && cp doc/kernels.md "$OUT/kernels.md"'

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
sanitized=$(sed -n 's/^SANITIZED := //p' Makefile)       # everything takes hours
jobs=$(nproc 2>/dev/null || echo 4)
step about 30 sh -c 'nvidia-smi; nvcc --version; git log -1 --oneline; uname -a'
step build 300 make "-j$jobs" CUDA=1 blip2 blip2_cuda.so build/test_cuda build/test_cuda_choose
step report 60 make cuda-report
step test 300 env REQUIRE_GPU=1 make test-cuda
step demo 120 sh -c './blip2 --device cuda -v demo/dogs.png && sh test/test_demo.sh ./blip2'
step ladder_build 300 make "-j$jobs" CUDA_ARCHS=-arch=native ladder
step ladder 300 sh -c "$ladder"
step peers 100 sh -c "$peers"
step table 20 sh -c "$table"
# shellcheck disable=SC2086  # several words
step memcheck 300 "$sanitizer" --tool memcheck --error-exitcode 1 --leak-check full build/test_cuda $sanitized
# shellcheck disable=SC2086
step racecheck 300 "$sanitizer" --tool racecheck --error-exitcode 1 build/test_cuda $sanitized
step bench 570 "$PYTHON" dev/bench_gpu.py "$model" --seconds "$(seconds 540 45)" --out "$OUT/bench.json"
step bench_int 400 "$PYTHON" dev/bench_gpu.py "$model" --dtypes int8,int4 --peers none --seconds "$(seconds 370 45)" \
    --out "$OUT/bench_int.json"
step bench_364 400 "$PYTHON" dev/bench_gpu.py "$model" --sizes 364 --peers eager --seconds "$(seconds 370 45)" \
    --out "$OUT/bench_364.json"
step full_opt 400 "$PYTHON" dev/fullsize.py --type pretrain_opt2.7b --device cuda:0
step full_t5 400 "$PYTHON" dev/fullsize.py --type pretrain_flant5xl --device cuda:0
exit $failed
