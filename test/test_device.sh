#!/bin/sh
# test/test_device.sh BLIP2: machines whose GPU is missing or will not do: exit code 3 and one line that says why with
# --device cuda; the CPU and one line with the same reason with auto, which --quiet leaves out, -v has in its own line
# and --info in its answer.
#
# In order: a build without the CUDA backend, one whose backend is broken or of another version, then a backend that
# runs in the simulator beside a copy of the program (make builds it where the CUDA headers are), whose driver and
# card misbehave on demand (test/cuda_double.c).
# SAN=1 leaves out the latter: one process has one sanitizer runtime.

. test/count.sh
blip2=$1
opt=test/data/tiny_opt.bin good=test/data/images/png-type2-8bit.png
backend=$(dirname "$blip2")/cuda_sim/blip2_cuda.so
LC_ALL=C
export LC_ALL

# run ARGUMENTS...: leaves $code, $tmp/out and $tmp/err
run() { "$tmp/bin/blip2" -m $opt -t 1 -b 1 -n 2 "$@" $good >"$tmp/out" 2>"$tmp/err"; code=$?; }
# says CODE LINES TEXT WHAT: the last run ended with CODE and wrote so many lines to stderr, one with TEXT in it
says() {
    if [ "$code" -ne "$1" ]; then bad "$4: exit code $code, expected $1: $(cat "$tmp/err")"
    elif [ "$(wc -l <"$tmp/err")" -ne "$2" ]; then bad "$4: expected $2 line(s) on stderr, got: $(cat "$tmp/err")"
    elif [ "$2" -gt 0 ] && ! grep -qE -e "$3" "$tmp/err"; then bad "$4: expected '$3', got: $(cat "$tmp/err")"
    elif [ "$1" -eq 0 ] && ! cmp -s "$tmp/out" "$tmp/cpu"; then
        bad "$4: another answer than the CPU's: $(cat "$tmp/out")"
    else ok; fi
}
# asked TEXT WHAT [DEVICE]: --device cuda is refused with that text
asked() { run --device "${3:-cuda}"; says 3 1 "$1" "$2"; }
# info PATTERN WHAT ARGUMENTS...: a line of --info
info() {
    pattern=$1 what=$2
    shift 2
    "$tmp/bin/blip2" -m $opt --info "$@" >"$tmp/out" 2>"$tmp/err" && [ ! -s "$tmp/err" ] &&
        grep -qE "$pattern" "$tmp/out" && ok || bad "$what, --info: expected $pattern: $(cat "$tmp/out" "$tmp/err")"
}
# spoken TEXT WHAT: auto takes the CPU and says so in one line, once, whatever the number of images
spoken() {
    run --device auto
    says 0 1 "^blip2: using the CPU: .*$1.*--device cpu or --quiet" "$2, auto"
    run --device auto --quiet
    says 0 0 "" "$2, --quiet"
    run --device auto -v
    grep -qE "^device: cpu \(.*$1" "$tmp/err" && ! grep -q "using the CPU" "$tmp/err" && ok ||
        bad "$2, auto -v: $(cat "$tmp/err")"
}

mkdir "$tmp/bin"
cp "$blip2" "$tmp/bin/blip2"
run --device cpu
says 0 0 "" "the CPU" 2>/dev/null     # sets $tmp/out, which all answers are compared with
passed=0 failed=0
[ "$code" -eq 0 ] && cp "$tmp/out" "$tmp/cpu" && ok || bad "--device cpu: $(cat "$tmp/err")"

asked "no CUDA backend; hint: install" "a build without CUDA"
asked "device 'cuda:1': .*no CUDA backend" "a build without CUDA" cuda:1
spoken "no CUDA backend" "a build without CUDA"
run --device auto $good
[ "$(wc -l <"$tmp/out")" -eq 2 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && ok || bad "two images: $(cat "$tmp/err")"
info "^memory, GPU  *about [0-9]" "a build without CUDA"
info "^device  *cpu: this build has no CUDA backend$" "a build without CUDA"
info "^device  *cpu$" "the CPU by name" --device cpu
info "^device  *none: device 'cuda:1': .*no CUDA backend; hint" "a build without CUDA, cuda:1" --device cuda:1
info '"device":"cpu","why_device":"this build has no CUDA backend"}$' "JSON" --json
info '"device":"cpu","why_device":""}$' "JSON, the CPU by name" --json --device cpu

echo "no library" >"$tmp/bin/blip2_cuda.so"
# auto loads a backend only where there is a driver; from here on there is something of that name
case $(ldconfig -p 2>/dev/null) in
*libcuda.so.1*) skip "a driver is installed here" ;;
*) spoken "no NVIDIA driver on this machine" "a backend but no driver" ;;
esac
mkdir "$tmp/driver"
echo 'int cuda_driver;' >"$tmp/o.c"
${CC:-cc} -shared -fPIC -o "$tmp/driver/libcuda.so.1" "$tmp/o.c" || bad "no compiler for a library called libcuda"
LD_LIBRARY_PATH=$tmp/driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
asked "cannot load the CUDA backend" "a broken backend"
spoken "cannot load the CUDA backend" "a broken backend"
printf 'const int backend_cuda = 1, backend_cuda_find = 2;\nconst unsigned long backend_cuda_layout = 5;\n' >"$tmp/o.c"
if ${CC:-cc} -shared -fPIC -o "$tmp/bin/blip2_cuda.so" "$tmp/o.c" 2>/dev/null; then
    asked "belongs to another version" "a backend of another version"
    spoken "belongs to another version" "a backend of another version"
else skip "no compiler for a backend of another version"; fi
rm "$tmp/bin/blip2_cuda.so"

if [ "$SAN" ] || [ ! -e "$backend" ]; then
    skip "no simulated backend: sanitizers, or no CUDA headers here"
    tally
    exit
fi
mkdir -p "$tmp/lib/blip2"
cp "$backend" "$tmp/lib/blip2/blip2_cuda.so"      # where make install puts it

# Nothing is wrong: the control of all that follows. The simulator computes in f32 what the CPU does.
run --device cuda -v
says_device() { grep -qE "^device: $1" "$tmp/err" && ok || bad "$2: expected device $1: $(cat "$tmp/err")"; }
[ "$code" -eq 0 ] && cmp -s "$tmp/out" "$tmp/cpu" && ok ||
    bad "a good card: exit code $code, $(cat "$tmp/out" "$tmp/err")"
says_device cuda "a good card"
# all but the file's head goes to the card
upload=$(sed -nE 's/^time: upload [0-9.]+ s, ([0-9.]+) GB of weights, [0-9]+\.[0-9]+ GB\/s$/\1/p' "$tmp/err")
awk -v gb="$upload" -v file="$(wc -c <$opt)" 'BEGIN { exit !(gb > 0.8e-9 * file && gb <= 1e-9 * file + 5e-4) }' &&
    ok || bad "no upload of the whole file: $(cat "$tmp/err")"
run --device cpu -v
grep -q "upload" "$tmp/err" && bad "an upload to the CPU: $(cat "$tmp/err")" || ok
run --device auto -v
says_device cuda "a good card, auto"
run --device auto
says 0 0 "" "a good card, auto: nothing to say"
info "^device  *cuda$" "a good card"
need=$("$tmp/bin/blip2" -m $opt -b 1 -n 2 --info --json | sed 's/.*"gpu":\([0-9]*\).*/\1/')
[ "$need" -gt 1000000 ] && ok || bad "--info gives no GPU memory: $need"

export CUDA_DOUBLE SIM_CC SIM_DEVICES CUDA_DOUBLE_MB CUDA_DOUBLE_FREE_KB
CUDA_DOUBLE=no-driver
asked "device 'cuda': no NVIDIA driver on this machine" "no driver"
spoken "no NVIDIA driver on this machine" "no driver"
CUDA_DOUBLE=old-driver
asked "driver is too old: it knows CUDA 11\.4, this program needs [0-9]+\.[0-9]; hint: update it" "an old driver"
spoken "driver is too old" "an old driver"
CUDA_DOUBLE=no-device
asked "no NVIDIA GPU here" "no GPU"
spoken "no NVIDIA GPU here" "no GPU"
CUDA_DOUBLE=exclusive
asked "GPU 0 cannot be used: .*another process" "a GPU that another process has alone"
spoken "GPU 0 cannot be used" "a GPU that another process has alone"
CUDA_DOUBLE=full-context
asked "GPU 0 cannot be used: .*all of its memory" "a GPU without room for a context"
spoken "GPU 0 cannot be used" "a GPU without room for a context"
CUDA_DOUBLE=malloc-fails
asked "not enough memory on GPU 0: .* are free" "memory that goes while it is taken"
spoken "not enough memory on GPU 0" "memory that goes while it is taken"
CUDA_DOUBLE=

SIM_CC=75
asked "GPU 0 has compute capability 7\.5, but 8\.0 \(Ampere\) is the least" "an old GPU"
spoken "compute capability 7\.5" "an old GPU"
SIM_CC=80
asked "there is no GPU 1: this machine has 1, numbered from 0" "an unknown number" cuda:1
SIM_DEVICES=2
asked "there is no GPU 2: this machine has 2" "an unknown number of two" cuda:2
asked "there is no GPU 123456789: this machine has 2" "a large number" cuda:123456789
SIM_DEVICES=1

# Too small: 1 MB in all; or large enough, but another process holds it; or room for smaller weights.
CUDA_DOUBLE_MB=1
asked "not enough memory on GPU 0: .*weights and .*; hint: take a larger GPU" "a small GPU"
spoken "not enough memory on GPU 0" "a small GPU"
CUDA_DOUBLE_MB=64 CUDA_DOUBLE_FREE_KB=$(((need - 1024) / 1024))
asked "not enough memory on GPU 0: .*\(other processes hold the rest\); hint: lower" "a GPU that others fill"
spoken "other processes hold the rest" "a GPU that others fill"
CUDA_DOUBLE_FREE_KB=$(((need + 1023) / 1024))
run --device cuda
says 0 0 "" "exactly enough memory"

tally
