#!/bin/sh
# test/cuda_demo.sh BLIP2: the commands of demo/examples.txt with --device cuda; blip2_cuda.so lies beside BLIP2.
# Answers must be those of the file. Those that print scores, whose digits bf16 sums change, are left to test_demo.sh.
#
# Then one command twice: the same bytes, scores included. Run by `make test-cuda`; without a GPU it is skipped, or with
# REQUIRE_GPU=1 a failure. Not here: launchers and stages (test_cuda.cu).

case $1 in /*) blip2=$1 ;; *) blip2=$PWD/$1 ;; esac
root=$PWD passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
ln -s "$root/demo" "$tmp/demo"
cp "$blip2" "$(dirname "$blip2")/blip2_cuda.so" "$tmp/" || exit 1
cd "$tmp" || exit 1

if ! ./blip2 --quiet --device cuda demo/cat.png >first 2>err; then
    cat err >&2
    if [ "$REQUIRE_GPU" = 1 ]; then echo "0 passed, 1 failed, 0 skipped"; exit 1; fi
    echo "SKIP no GPU that can be used" >&2
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi

awk -v out="$tmp/case." '/^\$ / { n++; print substr($0, 3) > (out n ".sh"); printf "" > (out n ".want"); next }
                         { print > (out n ".want") }' demo/examples.txt
n=1
while [ -f "case.$n.sh" ]; do
    if grep -q -e '--json' -e '--scores' "case.$n.sh"; then skipped=$((skipped + 1)) n=$((n + 1)); continue; fi
    sed 's,\./blip2,./blip2 --device cuda,' "case.$n.sh" >command
    sh command >got 2>err
    if cmp -s got "case.$n.want"; then passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $(cat command)" >&2
        diff "case.$n.want" got >&2
        head -n 3 err >&2
    fi
    n=$((n + 1))
done
[ "$n" -gt 10 ] || { failed=$((failed + 1)); echo "FAIL found only $((n - 1)) commands in demo/examples.txt" >&2; }

for i in 1 2; do ./blip2 --quiet --device cuda --json -b 5 -c 3 demo/dogs.png >"run.$i"; done
if [ -s run.1 ] && cmp -s run.1 run.2; then passed=$((passed + 1))
else failed=$((failed + 1)); echo "FAIL two runs differ:" >&2; diff run.1 run.2 >&2; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
