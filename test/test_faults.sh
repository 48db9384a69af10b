#!/bin/sh
# test/test_faults.sh BLIP2: the program when memory, calls, streams, disk or the weight file itself fail under it.
#
# In order: helpers, every allocation failing in turn, interrupted and short calls, calls that fail, full disks and
# closed streams, a weight file cut short while in use, images that would be enormous. Needs glibc (test/faults.c).
# Whatever fails, a run must end soon, with a documented exit code, a line on stderr unless all went well, and with
# nothing on stdout but whole lines of the right answer (what failed is left out, the rest is done). SAN=1 leaves out
# what address sanitizers cannot do.

. test/count.sh
blip2=$1
opt=test/data/tiny_opt.bin t5=test/data/tiny_t5.bin images=test/data/images
good=$images/png-type2-8bit.png
faults=$(dirname "$blip2")/faults.so
pid=
trap '[ -n "$pid" ] && kill "$pid" 2>/dev/null; rm -rf "$tmp"' EXIT
LC_ALL=C
export LC_ALL


in=/dev/null
# with "VARIABLE=VALUE..." ARGUMENTS...: leaves $code, $tmp/out and $tmp/err; --quiet: only what went wrong is on stderr
with() {
    faulty=$1
    shift
    # shellcheck disable=SC2086  # several variables
    timeout -k 1 20 env LD_PRELOAD="$faults" $faulty "$blip2" --quiet "$@" <"$in" >"$tmp/out" 2>"$tmp/err"
    code=$?
}
# Is each line of $tmp/out, the newline included, one that should be there, in the right order, or a JSON error?
whole() {
    [ -z "$(tail -c 1 "$tmp/out")" ] && ! diff "$tmp/want" "$tmp/out" | grep '^>' | grep -qv '"error":'
}
# The last run went wrong in a way that is allowed, or well: $1 is what was tried.
sound() {
    lines=$(wc -l <"$tmp/err")
    if [ "$code" -eq 0 ]; then
        if cmp -s "$tmp/out" "$tmp/want"; then ok; else bad "$1: exit code 0 with a wrong answer: $(cat "$tmp/out")"; fi
    elif [ "$code" -ne 1 ] && [ "$code" -ne 3 ]; then bad "$1: exit code $code: $(head -n 3 "$tmp/err")"
    elif [ "$lines" -lt 1 ] || [ "$lines" -gt "${most_lines:-2}" ]; then
        bad "$1: $lines lines on stderr: $(head -n 5 "$tmp/err")"
    elif grep -qi 'cannot happen' "$tmp/err" || { grep -qi damaged "$tmp/err" && ! grep -qi memory "$tmp/err"; }; then
        bad "$1: blames something else: $(cat "$tmp/err")"
    elif [ -s "$tmp/out" ] && ! whole; then bad "$1: exit code $code, yet this answer: $(cat "$tmp/out")"
    else ok; fi
}

# ----------------------------------------------------------------------------------------------------------
# Memory. Once with a single allocation that fails, once with all from there on, in the program and in the child
# that decodes.

# every ARGUMENTS...
every() {
    with "FAULT_COUNT=$tmp/count" "$@"
    cp "$tmp/out" "$tmp/want"
    if [ "$code" -ne 0 ]; then bad "$*: exit code $code without a fault"; return; fi
    count=$(cat "$tmp/count")
    if [ "$count" -lt 10 ]; then bad "$*: only $count allocations counted"; return; fi
    # a sample of about 30 unless FAULTS=all
    step=1
    [ "$FAULTS" = all ] || step=$((count / 30 + 1))
    n=1
    while [ $n -le "$count" ]; do
        with "FAULT_ALLOC=$n" "$@"
        sound "allocation $n of $count fails: $*"
        n=$((n + step))
    done
    for n in 1 2 3 5 8 13 21 34 55 89 144 233; do
        [ $n -le "$count" ] || break
        with "FAULT_ALLOC=$n FAULT_FROM=1" "$@"
        sound "allocations from $n of $count on fail: $*"
    done
}
# every_child IMAGE: what the decoder asks for
every_child() {
    with "X=1" -t 1 -b 1 -n 2 -m $opt "$1"
    cp "$tmp/out" "$tmp/want"
    for n in 1 2 3 4 5 6 7 8; do
        with "FAULT_WHO=child FAULT_ALLOC=$n" -t 1 -b 1 -n 2 -m $opt "$1"
        sound "allocation $n fails in the decoder of $1"
    done
}

if [ -n "$SAN" ]; then skip "failing allocations: under sanitizers they cannot be replaced"
elif [ ! -e "$faults" ]; then skip "failing calls: no $faults"
else
    every -m $opt $good
    every -m $t5 -b 3 -c 2 --json --scores -t 2 $good $images/jpeg-sub2.jpg
    every -m $opt --nucleus -c 2 -s 1 -n 5 -p "a photo of" -p "two dogs" $good
    every -m $opt --verify $good
    every -m $t5 --dump "$tmp/dump" $good
    in=$tmp/text
    printf 'two dogs\na photo of a %s\n' "$(head -c 3000 README.md | tr -d '\n')" >$in
    for model in $opt $t5; do every -m $model --tokenize; done
    printf '[2, 10, 20, 30]\n[5]\n' >$in
    for model in $opt $t5; do every -m $model --detokenize; done
    echo "what is it?" >$in   # one: after a question that failed the next one has another context
    every -m $opt --chat $good
    printf 'what is it?\ta cat\nwhich colour?\tred.\n' >"$tmp/turns"
    every -m $t5 --context "$tmp/turns" -q "and where?" --stream $good
    printf '%s\n%s\n' $good $images/exif-6.jpg >$in
    every -m $opt --images-from - --json
    every -m $opt "@$in"
    every -m $opt --info
    every -m $t5 --info --json
    in=$good
    every -m $opt -
    in=/dev/null
    for image in $images/png-type3-4bit-adam7.png $images/gif-4bit-interlaced.gif $images/bmp-rle8.bmp \
            $images/pnm-p3-255.pnm $images/jpeg-cmyk-progressive.jpg $images/webp-RGB-animated.webp $images/exif-6.jpg
    do every_child "$image"; done

    # ------------------------------------------------------------------------------------------------------
    # Interruptions and short transfers change nothing.

    with "X=1" -m $t5 --json $good $images/exif-6.jpg
    cp "$tmp/out" "$tmp/want"
    for fault in FAULT_EINTR=2 FAULT_EINTR=3 FAULT_SHORT=7 "FAULT_SHORT=1000 FAULT_EINTR=2"; do
        with "$fault" -m $t5 --json $good $images/exif-6.jpg
        if [ $code -eq 0 ] && cmp -s "$tmp/out" "$tmp/want"; then ok
        else bad "$fault: exit code $code: $(cat "$tmp/err")"; fi
    done
    : >"$tmp/want"
    for call in fork pipe mmap poll; do
        with "FAULT_CALL=$call" -m $opt $good
        if [ $code -eq 0 ]; then bad "$call fails, and nobody notices"; else sound "$call fails"; fi
    done
fi

# ----------------------------------------------------------------------------------------------------------
# Where answers go. /dev/full takes nothing; a limit on file sizes stands for a disk that fills up.

"$blip2" --quiet -m $opt $good >/dev/full 2>"$tmp/err"
code=$?
if [ $code -eq 1 ] && grep -q 'standard output' "$tmp/err"; then ok; else bad "/dev/full: $code $(cat "$tmp/err")"; fi
"$blip2" --quiet -m $opt $good >&- 2>"$tmp/err"
code=$?
if [ $code -eq 1 ] && grep -q 'closed' "$tmp/err"; then ok; else bad "closed stdout: $code $(cat "$tmp/err")"; fi
"$blip2" --quiet -m $opt $good 2>&- >"$tmp/out" </dev/null
code=$?
if [ $code -eq 0 ] && [ -s "$tmp/out" ]; then ok; else bad "closed stderr: $code"; fi
(ulimit -f 8; exec "$blip2" --quiet -m $opt --dump "$tmp/small" $good) >/dev/null 2>"$tmp/err"
code=$?
if [ $code -eq 1 ] && grep -q 'small' "$tmp/err" && [ ! -e "$tmp/small" ]; then ok
else bad "--dump on a full disk: $code $(cat "$tmp/err"), left: $(ls "$tmp" | grep small)"; fi
if ls "$tmp" | grep -q 'small'; then bad "--dump on a full disk leaves $(ls "$tmp" | grep small)"; else ok; fi

# ----------------------------------------------------------------------------------------------------------
# The weight file is cut short while the program waits for its image; what is lost is read after that.

odd=$tmp/$(printf 'a\033[2J\342\200\256weights.bin')   # shown, not obeyed, by a terminal
for model in $opt $t5; do
    cp $model "$odd"
    rm -f "$tmp/fifo"
    mkfifo "$tmp/fifo"
    "$blip2" --quiet -m "$odd" - <"$tmp/fifo" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    exec 3>"$tmp/fifo"
    tries=0
    until grep -q weights.bin "/proc/$pid/maps" 2>/dev/null || [ $tries -ge 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    sleep 0.2   # the head has been checked
    : >"$odd"
    cat $good >&3
    exec 3>&-
    wait $pid
    code=$?
    pid=
    if [ $code -eq 3 ] && grep -q 'a^\[\[2J<U+202E>weights.bin: .*cut short' "$tmp/err" && [ ! -s "$tmp/out" ]; then ok
    else bad "a weight file cut short in use: exit code $code: $(cat "$tmp/err" "$tmp/out")"; fi
done

# ----------------------------------------------------------------------------------------------------------
# 60000 x 60000 pixels in a few bytes: refused by the header, with less memory at hand than the pixels would take.

# bomb NAME: the header of such an image
bomb() {
    case $1 in
    png) printf '\211PNG\r\n\032\n\0\0\0\015IHDR\0\0\352\140\0\0\352\140\010\002\0\0\0'
         printf '\017\260\342\025\0\0\0\010IDATx\234\003\0\0\0\0\001\110\006\211\322' ;;
    gif) printf 'GIF89a\140\352\140\352\0\0\0,\0\0\0\0\140\352\140\352\0\010\002\0\0;' ;;
    bmp) printf 'BM\0\0\0\0\0\0\0\0\066\0\0\0\050\0\0\0\140\352\0\0\140\352\0\0\001\0\030\0\0\0\0\0'
         head -c 100 /dev/zero ;;
    rle) printf 'BM\0\0\0\0\0\0\0\0\066\004\0\0\050\0\0\0\140\352\0\0\140\352\0\0\001\0\010\0\001\0\0\0'
         head -c 1100 /dev/zero ;;
    ppm) printf 'P6 60000 60000 255\nxxx' ;;
    jpg) printf '\377\330\377\300\0\021\010\352\140\352\140\003\001\042\0\002\021\001\003\021\001'
         printf '\377\332\0\014\003\001\0\002\021\003\021\0\077\0xxxx\377\331' ;;
    webp) printf 'RIFF\026\0\0\0WEBPVP8X\012\0\0\0\0\0\0\0\137\352\0\137\352\0' ;;
    esac
}
for kind in png gif bmp rle ppm jpg webp; do
    bomb $kind >"$tmp/bomb.$kind"
    if [ -n "$SAN" ]; then "$blip2" --quiet -m $opt "$tmp/bomb.$kind" >"$tmp/out" 2>"$tmp/err"
    else (ulimit -v 400000; exec "$blip2" --quiet -t 1 -m $opt "$tmp/bomb.$kind") >"$tmp/out" 2>"$tmp/err"; fi
    code=$?
    if [ $code -eq 1 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && grep -q 'more than the limit of' "$tmp/err"; then ok
    elif [ $kind = webp ] && grep -q 'this build cannot read' "$tmp/err"; then skip "WebP is not built in"
    else bad "60000 x 60000 pixels of $kind: exit code $code: $(cat "$tmp/err")"; fi
done

tally
