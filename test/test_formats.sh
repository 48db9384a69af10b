#!/bin/sh
# test/test_formats.sh BLIP2 COMPARE: a JPEG, a PNG with alpha and a WebP get a caption, five beams and three samples
# from both model families; answers differ between models, and a lossless copy of an image gets the same answer.
blip2=$1 passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
check() { if [ "$1" = "$2" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL $3: '$1'" >&2; fi; }
lines() { wc -l <"$tmp/out" | tr -d ' '; }

formats=$("$blip2" --version | grep "^images:")
for image in jpeg-sub2.jpg png-type6-8bit.png webp-RGB-lossless.webp; do
    image=test/data/images/$image
    case $image:$formats in
    *.jpg:*jpeg*|*.png:*|*.webp:*webp*) ;;
    *) skipped=$((skipped + 1)); echo "SKIP $image: this build does not read it" >&2; continue ;;
    esac
    for name in opt t5; do
        run() { "$blip2" -m test/data/tiny_$name.bin --quiet "$@" "$image" >"$tmp/out" 2>"$tmp/err"; }
        run; check $? 0 "$image, $name: $(cat "$tmp/err")"; check "$(lines)" 1 "$image, $name: caption"
        cp "$tmp/out" "$tmp/$name"
        run -b 5 -c 5; check $? 0 "$image, $name, -c 5"; check "$(lines)" 5 "$image, $name: five beams"
        check "$(head -n 1 "$tmp/out")" "$(cat "$tmp/$name")" "$image, $name: the first of five is the caption"
        run --nucleus -c 3 -s 1; check $? 0 "$image, $name, --nucleus"
        check "$(lines)" 3 "$image, $name: three samples"
    done
    if cmp -s "$tmp/opt" "$tmp/t5"; then same=same; else same=different; fi
    check $same different "$image: OPT and T5"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
