#!/bin/sh
# test/test_cli.sh BLIP2: the command line against bad input: exit codes, one clear line on stderr, the rest still done.
#
# In order: helpers, what works, wrong usage, wrong weight files, wrong images, prompts, questions, choosing words,
# lists of images and the demo model, the tokenizer modes, JSON, where output cannot go, too little memory,
# interruption. What the answers say is tested elsewhere (test_tiny.c).
# SAN=1 leaves out what address sanitizers cannot do.

. test/count.sh
blip2=$1
opt=test/data/tiny_opt.bin t5=test/data/tiny_t5.bin
good=test/data/images/png-type2-8bit.png
LC_ALL=C
export LC_ALL

# that WHAT COMMAND...: the command succeeds
that() { what=$1; shift; if "$@" >/dev/null 2>&1; then ok; else bad "$what"; fi; }

# run ARGUMENTS...: leaves $code, $tmp/out and $tmp/err; standard input is $in. On the CPU by name, which goes without
# the line about it (test_device.sh).
# from FILE COMMAND...: the command with FILE as $in
in=/dev/null
from() { in=$1; shift; "$@"; in=/dev/null; }
run() { "$blip2" --device cpu "$@" <"$in" >"$tmp/out" 2>"$tmp/err"; code=$?; }

# said CODE LINES TEXT WHAT: the last run ended with CODE, wrote LINES lines to stderr, one with TEXT in it
said() {
    if [ "$code" -ne "$1" ]; then bad "$4: exit code $code, expected $1: $(cat "$tmp/err")"
    elif [ "$(wc -l <"$tmp/err")" -ne "$2" ]; then bad "$4: expected $2 line(s) on stderr, got: $(cat "$tmp/err")"
    elif ! grep -qF -e "$3" "$tmp/err"; then bad "$4: expected '$3', got: $(cat "$tmp/err")"
    else ok; fi
}
# refuse CODE TEXT ARGUMENTS...: one line on stderr, nothing on stdout
refuse() {
    want=$1 text=$2
    shift 2
    run "$@"
    said "$want" 1 "$text" "blip2 $*"
    [ -s "$tmp/out" ] && bad "blip2 $*: wrote to stdout: $(cat "$tmp/out")"
}
# accept LINES ARGUMENTS...: exit code 0, so many lines on stdout, nothing on stderr
accept() {
    lines=$1
    shift
    run "$@"
    if [ $code -ne 0 ] || [ "$(wc -l <"$tmp/out")" -ne "$lines" ] || [ -s "$tmp/err" ]; then
        bad "blip2 $*: exit code $code, expected $lines line(s), got: $(cat "$tmp/out" "$tmp/err")"
    else ok; fi
}

# ----------------------------------------------------------------------------------------------------------
# What works, so that a refusal below is not for another reason.

for model in $opt $t5; do
    accept 1 -m $model $good
    accept 2 -m $model $good $good
    accept 5 -m $model -b 5 -c 5 $good
    accept 3 -m $model --nucleus -c 3 -s 7 $good
    accept 2 -m $model -p "a photo of" -p "what is this?" --max-new=4 -- $good
    accept 1 -m $model --verify --quiet --scores -t 3 --ctx 100 -n 5 --min-tokens 2 --length-penalty -1.5 $good
done
accept 1 -m $opt --model $t5 -b 1 $good   # given twice, the last counts
from $good accept 1 -m $opt -
cp $good "$tmp/-b"
run -m $opt $good && cp "$tmp/out" "$tmp/plain"
run -m $opt -b 5 -n 30 $good
that "defaults given explicitly change nothing" cmp "$tmp/out" "$tmp/plain"
run -m $opt -- "$tmp/-b"
that "a copy under another name gives the same" cmp "$tmp/out" "$tmp/plain"
run -m $opt --nucleus -c 4 -s 3 $good && cp "$tmp/out" "$tmp/seed3"
run -m $opt --nucleus -c 4 -s 3 -t 1 $good
that "the same seed, the same samples" cmp "$tmp/out" "$tmp/seed3"
run -m $opt --nucleus -c 4 -s 4 $good
cmp -s "$tmp/out" "$tmp/seed3" && bad "another seed, the same samples"
run -m $opt --nucleus $good
said 0 1 "seed " "a random seed is printed"
run --help
that "--help on stdout" grep -q 'usage: blip2' "$tmp/out"
accept 6 --version
that "--version on stdout" grep -q '^blip2 [0-9]' "$tmp/out"

# ----------------------------------------------------------------------------------------------------------
# Wrong usage: 2.

refuse 2 "which model?"
refuse 2 "which model?" $good
refuse 2 "which image?" -m $opt
refuse 2 "needs a value" -m
refuse 2 "needs a value" -m $opt $good --prompt
for option in --frobnicate -x -bb --beam --b -mm --no-such=3 ---; do
    refuse 2 "unknown option" -m $opt $option $good
done
for n in 0 -1 65 3x x3 "" " " 1e3 0x2 1.5 99999999999999999999 nan; do refuse 2 "-b takes" -m $opt -b "$n" $good; done
for n in 0 -5 70000 many; do refuse 2 "-n takes" -m $opt -n "$n" $good; done
for n in 0 257 -3; do refuse 2 "-c takes" -m $opt -c "$n" $good; done
for n in 0 1025 2.0; do refuse 2 "--threads takes" -m $opt --threads "$n" $good; done
for n in -1 1.5 9223372036854775808 0x10 ""; do refuse 2 "-s takes" -m $opt -s "$n" $good; done
for x in 0 -0.1 1.1 nan NAN inf x "" 1,5 1e-9; do
    refuse 2 "--top-p takes" -m $opt --nucleus --top-p "$x" $good
done
for x in 0 -1 nan 1e9; do refuse 2 "--temp takes" -m $opt --nucleus --temp "$x" $good; done
for x in nan inf 1e5 --json; do refuse 2 "--length-penalty takes" -m $opt --length-penalty "$x" $good; done
refuse 2 "--repeat-penalty takes" -m $opt --repeat-penalty 0 $good
refuse 2 "--quiet takes no value" -m $opt --quiet=yes $good
refuse 2 "-c 6" -m $opt -c 6 $good
refuse 2 "-c 2" -m $opt -b 1 -c 2 $good
refuse 2 "--nucleus" -m $opt --nucleus -b 3 $good
for o in "--top-p 0.5" "--temp 2" "--top-k 3"; do refuse 2 "add --nucleus" -m $opt $o $good; done
refuse 2 "one image" -m $opt --dump "$tmp/d" $good $good
refuse 2 "one image" -m $opt --dump "$tmp/d" -p a -p b $good
refuse 2 "--device" -m $opt --device tpu $good
refuse 2 "one at a time" -m $opt --tokenize --detokenize
refuse 2 "standard input" -m $opt --tokenize $good
refuse 2 "--tokenize" -m $opt -0 $good
refuse 2 "--min-tokens 9" -m $opt --min-tokens 9 -n 8 $good
refuse 2 "--ctx 9999" -m $opt --ctx 9999 $good
refuse 2 "no room" -m $opt --ctx 20 -n 20 $good

# ----------------------------------------------------------------------------------------------------------
# Wrong weight files: 3. What model.c refuses in detail is in test_model.c.

size=$(wc -c <$opt)
# flip FILE AT: one bit of that byte
flip() {
    byte=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    if [ $((byte % 2)) -eq 0 ]; then byte=$((byte + 1)); else byte=$((byte - 1)); fi
    # shellcheck disable=SC2059  # the format is the byte
    printf "\\$(printf %03o "$byte")" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
refuse 3 "No such file" -m "$tmp/absent" $good
refuse 3 "folder" -m "$tmp" $good
refuse 3 "regular file" -m /dev/null $good
: >"$tmp/m" && refuse 3 "empty" -m "$tmp/m" $good
for n in 7 100 5000 $((size / 2)) $((size - 1)); do
    head -c "$n" $opt >"$tmp/m"
    refuse 3 "truncated" -m "$tmp/m" $good
done
{ cat $opt; echo; } >"$tmp/m" && refuse 3 "too long" -m "$tmp/m" $good
for at in 0 8 20 30 70 600 3000; do
    cp $opt "$tmp/m" && flip "$tmp/m" $at
    refuse 3 "$tmp/m: " -m "$tmp/m" $good
done
cp $opt "$tmp/m" && flip "$tmp/m" $((size - 100))
refuse 3 "damaged" -m "$tmp/m" --verify $good
that "the damaged tensor is named" grep -qE 'tensor [a-z]+\.[a-z0-9.]+' "$tmp/err"
refuse 3 "damaged" -m "$tmp/m" --verify
sed 's/\r$//' $opt >"$tmp/m" && refuse 3 "text mode" -m "$tmp/m" $good
printf '\100\0\0\0\0\0\0\0{"vision_model.embeddings":{"dtype":"F32"}}' >"$tmp/m"
refuse 3 "safetensors" -m "$tmp/m" $good
refuse 3 "image" -m $good $good
refuse 3 "not a weight file" -m "$0" $good
cp $opt "$tmp/m" && run -m "$tmp/m" --verify
said 0 1 "are intact" "--verify alone"

# ----------------------------------------------------------------------------------------------------------
# Wrong images: 1, and the others are still done.

mkdir "$tmp/i"
echo "This is no image." >"$tmp/i/text.jpg"
: >"$tmp/i/empty.png"
head -c 100 $good >"$tmp/i/cut.png"
head -c 200 test/data/images/jpeg-q1.jpg >"$tmp/i/cut.jpg"
printf '\211PNG\r\n\032\n\0\0\0\rIHDR\0\1\206\240\0\1\206\240\10\2\0\0\0\0\0\0\0' >"$tmp/i/huge.png"
printf 'P6\n100000 100000\n255\n' >"$tmp/i/huge.ppm"
printf 'P6\n99999999999999999999 1\n255\nxxx' >"$tmp/i/absurd.ppm"
mkdir "$tmp/i/folder"
for f in text.jpg empty.png cut.png huge.png huge.ppm absurd.ppm folder absent.png; do
    refuse 1 "$tmp/i/$f: " -m $opt -b 1 "$tmp/i/$f"
    run -m $opt -b 1 $good "$tmp/i/$f" $good
    said 1 1 "$tmp/i/$f: " "$f between two images"
    if [ "$(wc -l <"$tmp/out")" -eq 2 ]; then ok; else bad "$f: the images beside it were not done"; fi
done
run -m $opt -b 1 "$tmp/i/cut.jpg"   # damage that leaves something to look at may be a warning
[ -s "$tmp/err" ] && ok || bad "a truncated JPEG goes unnoticed"
printf 'P5\n1 1\n255\nx' >"$tmp/i/one.pgm"
accept 1 -m $opt "$tmp/i/one.pgm"
refuse 1 "empty" -m $opt -
from $0 refuse 1 "image" -m $opt -

# ----------------------------------------------------------------------------------------------------------
# Prompts.

long=$(printf 'a cat and %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)
for model in $opt $t5; do
    refuse 1 "tokens" -m $model --ctx 40 -p "$long" $good
    refuse 1 "UTF-8" -m $model -p "$(printf 'caf\351')" $good
    refuse 1 "UTF-8" -m $model -p "$(printf 'a\355\240\200')" $good
    refuse 1 "placeholder" -m $model -p "see <image> here" $good
    accept 1 -m $model -p "" $good
    accept 1 -m $model -p "$(printf 'caf\303\251 \360\237\230\200\n\tx')" $good
    run -m $model -p "$long$long$long" -p "a photo of" --ctx 40 $good
    said 1 1 "tokens" "a long prompt before a short one"
done

# ----------------------------------------------------------------------------------------------------------
# Questions: each sees those before, --context as well.

texts() { sed -n 's/.*"outputs":\[{"text":"\([^"]*\)".*/\1/p' "$tmp/out"; }
asked() { sed -n 's/.*"prompt":"\([^"]*\)".*/\1/p' "$tmp/out"; }
for model in $opt $t5; do
    accept 2 -m $model -n 4 -q "what is it?" -q "where?" --json $good
    that "the question is in the JSON" grep -q '"question":"where?","prompt":"Question: what is it? Answer: ' "$tmp/out"
    asked >"$tmp/asked"
    that "the first prompt" test "$(sed -n 1p "$tmp/asked")" = "Question: what is it? Answer:"
    first=$(texts | sed -n 1p)
    case $first in *\\*) ;; *) that "the second prompt" test "$(sed -n 2p "$tmp/asked")" = \
        "Question: what is it? Answer: ${first%.}. Question: where? Answer:" ;; esac
    printf 'who?\ta man\nwhat?\ta hat.\n' >"$tmp/turns"
    accept 1 -m $model --context "$tmp/turns" -q "which?" --json $good
    that "turns from a file" test "$(asked)" = \
        "Question: who? Answer: a man. Question: what? Answer: a hat. Question: which? Answer:"
    cp "$tmp/out" "$tmp/first"
    accept 2 -m $model --context "$tmp/turns" -q "which?" --json $good $good
    that "each image starts anew" cmp "$(sed -n 2p "$tmp/out" >"$tmp/second"; echo "$tmp/second")" "$tmp/first"
    accept 1 -m $model -p "Question: which? Answer:" -n 10 \
        --length-penalty $([ $model = $opt ] && echo 0 || echo -1) $good
    cp "$tmp/out" "$tmp/other"
    accept 1 -m $model --vqa -q "which?" $good
    that "--vqa" cmp "$tmp/out" "$tmp/other"
    i=0; while [ $i -lt 60 ]; do printf 'who is it %s?\tnobody\n' $i; i=$((i + 1)); done >"$tmp/turns"
    run -m $model --context "$tmp/turns" -q "which?" -n 5 --ctx 80 --json $good
    said 0 1 "the oldest turns were dropped" "a context that is too long"
    that "the latest turns are kept" sh -c "grep -q 'who is it 59? Answer: nobody. Question: which' '$tmp/out'"
    run -m $model --context "$tmp/turns" -q "which?" -n 5 --ctx 80 --quiet $good
    that "--quiet says nothing of it" test ! -s "$tmp/err"
done
refuse 2 "-p" -m $opt -q a -p b $good
refuse 1 "cannot open" -m $opt -q a --context "$tmp/absent" $good
echo "no tab" >"$tmp/turns" && refuse 1 "line 1: expected a question" -m $opt -q a --context "$tmp/turns" $good
printf 'see <image>\tyes\n' >"$tmp/turns" && refuse 1 "turn 1: " -m $opt -q a --context "$tmp/turns" $good

# ----------------------------------------------------------------------------------------------------------
# How words are chosen, and words as they come.

for model in $opt $t5; do
    accept 1 -m $model -b 1 $good && cp "$tmp/out" "$tmp/other"
    accept 1 -m $model --stream $good
    that "--stream says the same" cmp "$tmp/out" "$tmp/other"
    accept 1 -m $model -b 1 --scores $good && cp "$tmp/out" "$tmp/other"
    accept 1 -m $model --stream --scores $good
    that "--stream --scores" cmp "$tmp/out" "$tmp/other"
    accept 2 -m $model --stream $good $good
    that "names of several images" grep -q "^$good	" "$tmp/out"
    accept 1 -m $model -b 1 --no-repeat-ngram 1 --json $good
    tokens=$(sed 's/.*"tokens":\[\([0-9,]*\)\].*/\1/' "$tmp/out" | tr , '\n')
    that "--no-repeat-ngram 1: no token twice" test -z "$(echo "$tokens" | sort | uniq -d)"
done
run -m $opt --nucleus -c 3 -s 1 --top-k 1 --distinct $good
said 0 1 "only 1 of 3 samples are distinct after 48 tries" "--distinct"
accept 5 -m $opt --nucleus -c 5 -s 1 --distinct $good
that "all differ" test "$(sort -u "$tmp/out" | wc -l)" -eq 5
accept 1 -m $t5 --json $good
text=$(texts)
accept 1 -m $t5 --json --stop "${text#????}" $good
that "--stop cuts" sh -c "grep -q '\"finish\":\"stop\"' '$tmp/out' && ! grep -qF '${text#????}' '$tmp/out'"
refuse 2 "--stop" -m $opt --stop "" $good
refuse 2 "UTF-8" -m $opt --stop "$(printf 'x\377')" $good
refuse 2 "--stream" -m $opt --stream -b 3 $good
refuse 2 "--stream" -m $opt --stream --nucleus -c 2 $good
refuse 2 "--distinct" -m $opt --distinct $good

# ----------------------------------------------------------------------------------------------------------
# Lists of images, failures in JSON, devices, the demo model.

printf '%s\n\n%s\r\n%s\n' $good "$tmp/i/text.jpg" $good >"$tmp/list"
run -m $opt -b 1 "@$tmp/list"
said 1 1 "$tmp/i/text.jpg: " "a list"
that "the rest of a list is done" test "$(wc -l <"$tmp/out")" -eq 2
cp "$tmp/out" "$tmp/other"
run -m $opt -b 1 --images-from "$tmp/list"
that "--images-from FILE" cmp "$tmp/out" "$tmp/other"
from "$tmp/list" run -m $opt -b 1 --images-from -
that "--images-from -" cmp "$tmp/out" "$tmp/other"
echo $good >"$tmp/list1"
accept 2 -m $opt -b 1 $good "@$tmp/list1"
: >"$tmp/none" && accept 0 -m $opt "@$tmp/none"
refuse 1 "cannot open this list" -m $opt "@$tmp/absent"
run -m $opt -b 1 --json $good "$tmp/i/text.jpg" $good
said 1 1 "$tmp/i/text.jpg: " "a bad image with --json"
that "it is an object on stdout too" grep -q "^{\"image\":\"$tmp/i/text.jpg\",\"error\":\"not an image" "$tmp/out"
that "beside the others" test "$(wc -l <"$tmp/out")" -eq 3
accept 1 -m $opt --device cpu $good
refuse 2 "no inner loops of that name" -m $opt --cpu-isa i486 $good
mkdir "$tmp/bin" "$tmp/bin/demo" "$tmp/share" "$tmp/share/blip2"
cp "$blip2" "$tmp/bin/blip2"
blip2_was=$blip2 blip2=$tmp/bin/blip2
refuse 2 "which model?" $good
cp $opt "$tmp/bin/demo/demo.bin"
run $good
said 0 1 "demo model" "the demo model beside the program"
accept 1 --quiet $good
refuse 2 "which image?"
mv "$tmp/bin/demo/demo.bin" "$tmp/share/blip2"
run $good
said 0 1 "demo model" "the demo model where it is installed"
blip2=$blip2_was

# ----------------------------------------------------------------------------------------------------------
# --tokenize and --detokenize.

for model in $opt $t5; do
    printf 'a photo of\n\ncaf\303\251  two\twords\r\n no end' >"$tmp/text"
    from "$tmp/text" accept 4 -m $model --tokenize
    that "arrays of ids" sh -c "! grep -qvE '^\[[0-9]+(, [0-9]+)*\]$' '$tmp/out'"
    cp "$tmp/out" "$tmp/ids"
    from "$tmp/ids" accept 4 -m $model --detokenize
    that "JSON strings" sh -c "! grep -qvE '^\"([^\"\\\\]|\\\\.)*\"$' '$tmp/out'"
    that "a round trip" grep -qx '"a photo of *"' "$tmp/out"
    printf 'two\nlines\0and\0' >"$tmp/text"
    from "$tmp/text" accept 2 -m $model --tokenize -0
    printf 'good\nbad \377\ngood\n' >"$tmp/text"
    from "$tmp/text" run -m $model --tokenize
    said 1 1 "record 2" "a line that is not UTF-8"
    that "the other lines are done" test "$(wc -l <"$tmp/out")" -eq 2
    printf '[5]\n[6\n7]\n[8,]\n["9"]\n[1.5]\n[-1]\n[99999999]\n[99999999999999999999]\n{}\n\n' >"$tmp/text"
    printf '[ 10 , 11 ]\n[]\n' >>"$tmp/text"
    from "$tmp/text" run -m $model --detokenize
    said 1 10 "record 2" "lines that are no arrays of ids"
    that "the good lines are done" test "$(wc -l <"$tmp/out")" -eq 3
    accept 0 -m $model --tokenize
done

# ----------------------------------------------------------------------------------------------------------
# JSON: each line matches the whole grammar of our objects, and is UTF-8.

string='"([^"\\[:cntrl:]]|\\["\\nt]|\\u[0-9a-f]{4})*"'
number='-?[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?'
numbers="\\[($number(,$number)*)?\\]"
scores="(,\"logprobs\":$numbers(,\"end_logprob\":$number)?)"
output="\\{\"text\":$string,\"tokens\":\\[([0-9]+(,[0-9]+)*)?\\],\"score\":$number"
json() {   # json COUNT HAS_SCORES: every line of $tmp/out is an object with COUNT outputs
    one="$output$([ "$2" = yes ] && echo "$scores"),\"finish\":\"(stop|length)\"\\}"
    line="\\{\"image\":$string,\"prompt\":$string,\"outputs\":\\[$one(,$one){$(($1 - 1))}\\],\"seed\":[0-9]+\\}"
    if grep -qvE "^$line\$" "$tmp/out" || ! [ -s "$tmp/out" ]; then bad "not our JSON: $(cat "$tmp/out")"; else ok; fi
    if command -v iconv >/dev/null; then that "JSON is UTF-8" iconv -f UTF-8 -t UTF-16 "$tmp/out"
    else skip "no iconv to check UTF-8 with"; fi
}
odd=$tmp/$(printf 'a "quoted\\ name\t\n\001\303\251\377.png')
cp $good "$odd"
for model in $opt $t5; do
    accept 1 -m $model --json $good && json 1 no
    accept 2 -m $model --json -b 3 -c 3 $good "$odd" && json 3 no
    accept 2 -m $model --json --scores --nucleus -c 2 -s 9 $good "$odd" && json 2 yes
    that "the seed is in it" grep -q '"seed":9}$' "$tmp/out"
    accept 2 -m $model --json -p 'say "a\b"' -p "$(printf 'caf\303\251\n')x" $good && json 1 no
    that "every line has its prompt" grep -qF '"prompt":"say \"a\\b\""' "$tmp/out"
    accept 1 -m $model --json -n 1 -b 1 $good && json 1 no
done
echo '{"image":"x","prompt":"y","outputs":[],"seed":1}' >"$tmp/out"   # negative control
(json 1 no) >/dev/null 2>&1 && [ "$(json 1 no 2>&1 | grep -c FAIL)" -eq 0 ] && bad "the JSON check passes anything"
accept 2 -m $opt $good "$odd"   # plain text: odd names break neither line nor column

# ----------------------------------------------------------------------------------------------------------
# Where output cannot go.

"$blip2" --device cpu -m $opt $good >&- 2>"$tmp/err"; code=$?
said 1 1 "standard output" "stdout closed"
if [ -c /dev/full ]; then
    "$blip2" --device cpu -m $opt $good $good >/dev/full 2>"$tmp/err"; code=$?
    said 1 1 "standard output" "stdout full"
    echo text | "$blip2" --device cpu -m $opt --tokenize >/dev/full 2>"$tmp/err"; code=$?
    said 1 1 "standard output" "--tokenize, stdout full"
    "$blip2" --help >/dev/full 2>"$tmp/err"; code=$?
    said 1 1 "standard output" "--help, stdout full"
    run -m $opt --dump /dev/full $good
    said 1 1 "/dev/full: No space" "--dump, disk full"
    that "/dev/full is still a device" test -c /dev/full
else
    skip "no /dev/full here"
fi
{ "$blip2" --device cpu -m $opt $good $good 2>"$tmp/err"; echo $? >"$tmp/code"; } | true
code=$(cat "$tmp/code")   # the reader may have been gone before the first line or not
[ "$code" -eq 0 ] || said 1 1 "standard output" "nobody reads"
"$blip2" --device cpu -m $opt $good 2>&- >"$tmp/out"; code=$?
that "stderr closed" cmp "$tmp/out" "$tmp/plain"
"$blip2" --device cpu -m $opt $good <&- >"$tmp/out" 2>"$tmp/err"; code=$?
that "stdin closed" cmp "$tmp/out" "$tmp/plain"
run -m $opt --dump "$tmp/no/such/folder" $good
said 1 1 "no/such/folder" "--dump into a folder that is not there"
run -m $opt --dump "$tmp" $good
said 1 1 "$tmp" "--dump over a folder"
# a file that may not grow: as a full disk, but nothing must be left behind
(trap '' XFSZ; ulimit -f 8; "$blip2" --device cpu -m $opt --dump "$tmp/full.d" $good >/dev/null 2>"$tmp/err"); code=$?
said 1 1 "full.d" "--dump, file size limit"
that "a dump that failed leaves nothing" sh -c "! ls '$tmp'/full.d*"
accept 1 -m $opt --dump "$tmp/whole.d" $good
that "a dump is written" test -s "$tmp/whole.d"
that "no temporary file stays" sh -c "! ls '$tmp'/whole.d.*"
ln -s whole.d "$tmp/link.d"
accept 1 -m $opt --dump "$tmp/link.d" $good
that "a link is still a link" test -L "$tmp/link.d"
if mkfifo "$tmp/pipe" 2>/dev/null; then
    cat "$tmp/pipe" >"$tmp/piped" &
    reader=$!
    accept 1 -m $opt --dump "$tmp/pipe" $good
    [ "$code" -eq 0 ] || kill $reader
    wait $reader
    that "a dump through a pipe is the same" cmp "$tmp/piped" "$tmp/whole.d"
fi

# ----------------------------------------------------------------------------------------------------------
# Too little memory: 3, with what would be needed.

refuse 3 "not enough memory" -m $t5 --ctx 1000000 -n 60000 -b 64 -c 64 $good
that "how much is needed is said" grep -qE 'need [0-9.]+ MB' "$tmp/err"
if [ "$SAN" = 1 ]; then
    skip "sanitizers need more address space than a limit leaves them"
else
    (ulimit -v 60000; run -m $t5 --ctx 4000 -n 2000 -b 20 -t 1 $good; exit "$code"); code=$?
    said 3 1 "memory" "ulimit -v"
    that "how much is needed is said" grep -qE 'need [0-9.]+ MB' "$tmp/err"
    (ulimit -v 2000; "$blip2" --device cpu -m $opt $good >"$tmp/out" 2>"$tmp/err"); code=$?
    [ $code -ne 0 ] && ok || bad "2 MB of address space are enough?"
fi

# ----------------------------------------------------------------------------------------------------------
# Interruption: 130, with the answers so far written.

set --
for i in 1 2 3 4 5 6 7 8 9 10; do set -- "$@" $good $good $good $good $good $good $good $good $good $good; done
set -- "$@" "$@" "$@" "$@" "$@" "$@" "$@" "$@" "$@" "$@"
"$blip2" --device cpu -m $opt --min-tokens 30 -t 1 "$@" "$@" "$@" "$@" "$@" >"$tmp/out" 2>"$tmp/err" &
pid=$!
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ -s "$tmp/out" ] && break
    sleep 1
done
kill -INT $pid
wait $pid
code=$?
if [ $code -eq 130 ] && [ -s "$tmp/out" ]; then ok; else bad "SIGINT: exit code $code, $(wc -l <"$tmp/out") lines"; fi

tally
