#!/bin/sh
# test/test_demo.sh BLIP2: runs the commands of demo/examples.txt with the demo model and compares what they write to
# standard output with the lines below each. SHOW=1 prints them too (make demo); UPDATE=1 writes the file anew.
#
# Then: the model is found from any folder and says that it is a demo, and another picture is not described in the
# same way (else this would pass whatever the program sees).

case $1 in /*) blip2=$1 ;; *) blip2=$PWD/$1 ;; esac
root=$PWD passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

check() {   # NAME EXPECTED GOT
    if [ "$2" = "$3" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL $1: expected '$2', got '$3'" >&2; fi
}

# The program may lie in a build folder, so the model is put beside a link to it, where ./blip2 would have it.
ln -s "$root/demo" "$tmp/demo"
cp "$blip2" "$tmp/blip2"
cd "$tmp" || exit 1
# the last digits of scores differ between processors
run() { sh -c "$1" 2>"$tmp/err" | sed 's/\("score":-*[0-9.]\{5\}\)[0-9]*/\1/'; }

awk -v out="$tmp/case." '/^\$ / { n++; print substr($0, 3) > (out n ".sh"); printf "" > (out n ".want"); next }
                         { print > (out n ".want") }' demo/examples.txt
webp=$("$tmp/blip2" --version | sed -n '/^images:.* webp/p')
n=1
while [ -f "case.$n.sh" ]; do
    command=$(cat "case.$n.sh")
    case $command in
    *.webp*) [ "$webp" ] || {
        echo "SKIP built without WebP: $command" >&2
        skipped=$((skipped + 1)) n=$((n + 1))
        continue; } ;;
    esac
    run "$command" >got
    { printf '$ %s\n' "$command"; cat got; } >>new
    [ -z "$SHOW" ] || { printf '$ %s\n' "$command"; cat got; echo; }
    if cmp -s got "case.$n.want"; then passed=$((passed + 1))
    elif [ -z "$UPDATE" ]; then
        failed=$((failed + 1))
        echo "FAIL $command" >&2
        diff "case.$n.want" got >&2
    fi
    n=$((n + 1))
done
if [ -n "$UPDATE" ]; then cp new "$root/demo/examples.txt"; fi
# what is skipped must really be impossible: without WebP that picture is refused
if [ "$webp" ]; then want=0; else want=1; fi
"$tmp/blip2" --quiet demo/elephant.webp >/dev/null 2>&1
check "WebP as --version has it" $want $?
[ "$n" -gt 10 ] || { failed=$((failed + 1)); echo "FAIL found only $((n - 1)) commands in demo/examples.txt" >&2; }

check "from another folder" "a cat on an orange background" "$(cd / && "$tmp/blip2" --quiet "$tmp/demo/cat.png")"
check "it says that it is a demo" 1 \
    "$("$tmp/blip2" demo/cat.png 2>&1 >/dev/null | grep -c 'demo model, which knows only')"
check "and is quiet when asked" "" "$("$tmp/blip2" --quiet demo/cat.png 2>&1 >/dev/null)"
other=$("$tmp/blip2" --quiet demo/penguin.png)
check "another picture has no cat" 0 "$(printf '%s' "$other" | grep -c ' cat ')"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
