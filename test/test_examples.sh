#!/bin/sh
# test/test_examples.sh BLIP2: runs every example of --help, the manual page and README.md and compares what it writes
# to standard output with test/data/examples.golden. UPDATE=1 writes that file anew; look at the difference before you
# commit it.
#
# The examples run in a folder of their own, where the names they use stand for something small: blip2-*.bin and MODEL
# for a tiny model, *.jpg for sample images, curl for a stand-in that needs no network. Digits behind the third decimal
# are cut, since processors differ there.

case $1 in /*) blip2=$1 ;; *) blip2=$PWD/$1 ;; esac
root=$PWD golden=$PWD/test/data/examples.golden
passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
work=$tmp/work
LC_ALL=C
export LC_ALL

# ----------------------------------------------------------------------------------------------------------
# The commands, one a line, each once.

"$blip2" --help | sed -n '/^examples:/,$ s/^  //p' >"$tmp/help"
"$blip2" --man | sed -n "/^\.SH EXAMPLES/,\$ { /^\.RS/,/^\.RE/ { /^\./!p; }; }" |
    sed "s/\\\\(aq/'/g; s/\\\\(ti/~/g; s/\\\\(ha/^/g; s/\\\\-/-/g; s/\\\\e/\\\\/g; s/^\\\\&//" >"$tmp/man"
# in blocks of code: lines that call blip2, without the comments behind them; what calls something else goes to file 3
sed -e ':a' -e '/\\$/ { N; s/\\\n *//; ba' -e '}' README.md | awk -v other="$tmp/other" '
    /^```/ { code = !code; next }
    !code || /^ / { next }
    /^(make|git|python3|\.venv)/ { print >other; next }
    /(^|\| )(\.\/)?blip2 / { sub(/  +#.*/, ""); print }' >"$tmp/readme"
cat "$tmp/help" "$tmp/man" "$tmp/readme" | awk '!seen[$0]++' >"$tmp/commands"
for f in help man readme; do
    if [ "$(wc -l <"$tmp/$f")" -ge 3 ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL found too few examples in $f" >&2; fi
done
if [ -s "$tmp/other" ]; then
    skipped=$((skipped + 1))
    echo "SKIP $(wc -l <"$tmp/other") commands of README.md that build or export, which parity_export*.py does" >&2
fi

# ----------------------------------------------------------------------------------------------------------
# What they find.

mkdir -p "$work/photos/sea"
cp "$blip2" "$work/blip2"
ln -s "$root/demo" "$work/demo"
ln -s "$root/test" "$work/test"
for name in blip2-opt-2.7b.bin MODEL; do ln -s "$root/test/data/tiny_opt.bin" "$work/$name"; done
images=$root/demo
cp "$images/dogs.png" "$work/photo.jpg"
cp "$images/cat.png" "$work/street.jpg"
cp "$images/cactus.png" "$work/photos/one.jpg"
cp "$images/penguin.png" "$work/photos/sea/two.jpg"
printf 'is there a dog in the picture?\tyes\nhow many are there?\ttwo.\n' >"$work/turns.txt"
printf 'how many dogs are there?\nand how many cars?\n' >"$work/questions.txt"
printf 'photo.jpg\nstreet.jpg\n' >"$work/list.txt"
mkdir "$tmp/bin"
printf '#!/bin/sh\ncat photo.jpg\n' >"$tmp/bin/curl"
chmod +x "$tmp/bin/curl"

# ----------------------------------------------------------------------------------------------------------
# Running and comparing.

: >"$tmp/transcript"
while IFS= read -r command; do
    case $command in
    *"| jq "*) command -v jq >/dev/null || { skipped=$((skipped + 1)); echo "SKIP no jq: $command" >&2; continue; } ;;
    esac
    (cd "$work" && PATH="$tmp/bin:$work:$PATH" sh -c "$command") </dev/null >"$tmp/out" 2>"$tmp/err"
    code=$?
    {
        echo "\$ $command"
        sed -E 's/([0-9]\.[0-9]{3})[0-9]+/\1/g; s/^\$/\\$/' "$tmp/out"
        [ $code -eq 0 ] || echo "exit code $code"
    } >"$tmp/got"
    cat "$tmp/got" >>"$tmp/transcript"
    [ "$UPDATE" ] && continue
    # the block of this command: from its line to the next one that begins with "$ "
    COMMAND="$ $command" awk '$0 == ENVIRON["COMMAND"] { on = 1; print; next } /^\$ / { on = 0 } on' \
        "$golden" >"$tmp/want"
    if [ $code -eq 0 ] && [ -s "$tmp/want" ] && cmp -s "$tmp/got" "$tmp/want"; then passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $command (exit code $code)" >&2
        diff "$tmp/want" "$tmp/got" >&2
        cat "$tmp/err" >&2
    fi
done <"$tmp/commands"
if [ "$UPDATE" ]; then
    cp "$tmp/transcript" "$golden"
    echo "wrote $golden" >&2
    passed=$((passed + 1))
fi
# control: an example that nobody wrote down is not found
COMMAND="$ blip2 no-such.jpg" awk '$0 == ENVIRON["COMMAND"] { found = 1 } END { exit found }' "$golden" &&
    passed=$((passed + 1)) || failed=$((failed + 1))
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
