#!/bin/sh
# dev/gpu.sh [MODEL]: everything that needs a card, in one go on a machine that was lent for it.
#
# In order: what the machine is, build, make test-cuda with REQUIRE_GPU=1, compute-sanitizer (memcheck, racecheck), the
# demo model's expected outputs on the card, the ladder (dev/cuda), the benchmark (dev/bench_gpu.py MODEL, by default
# opt-2.7b). Each step has a limit in seconds, writes $OUT/STEP.log and a line into $OUT/summary.txt; a step that fails
# or runs out of time does not keep the others from running. STEPS="build test" runs only those, so that a machine
# with ten minutes a command takes three calls:
#     STEPS="about build test demo" dev/gpu.sh
#     STEPS="build memcheck racecheck ladder" dev/gpu.sh
#     STEPS="build bench" dev/gpu.sh
# Needs the CUDA toolkit, a C compiler, zlib and stb; the benchmark also torch and transformers ($PYTHON).
# Exit code 1 if any step failed.

cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-build/gpu}
STEPS=${STEPS:-about build test demo memcheck racecheck ladder bench}
PYTHON=${PYTHON:-python3}
model=${1:-opt-2.7b}
mkdir -p "$OUT" || exit 1
failed=0

# step NAME LIMIT COMMAND...
step() {
    name=$1 limit=$2
    shift 2
    case " $STEPS " in *" $name "*) ;; *) return ;; esac
    start=$(date +%s)
    timeout -k 10 "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    [ $code -eq 124 ] && why=" (out of time, $limit s)" || why=
    printf '%-10s exit code %s%s after %s s: %s\n' "$name" $code "$why" $(($(date +%s) - start)) \
        "$(tail -n 1 "$OUT/$name.log")" | tee -a "$OUT/summary.txt"
}

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
jobs=$(nproc 2>/dev/null || echo 4)
step about 30 sh -c 'nvidia-smi; nvcc --version; git log -1 --oneline; uname -a'
step build 300 make "-j$jobs" CUDA=1 blip2 blip2_cuda.so build/test_cuda
step test 300 env REQUIRE_GPU=1 make test-cuda
step demo 120 sh -c './blip2 --device cuda -v demo/dogs.png && sh test/test_demo.sh ./blip2'
step memcheck 300 "$sanitizer" --tool memcheck --error-exitcode 1 --leak-check full build/test_cuda
step racecheck 300 "$sanitizer" --tool racecheck --error-exitcode 1 build/test_cuda
step ladder 300 make ladder
step bench 570 "$PYTHON" dev/bench_gpu.py "$model" --out "$OUT/bench.json"
exit $failed
