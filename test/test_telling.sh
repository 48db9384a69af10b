#!/bin/sh
# test/test_telling.sh BLIP2: what the program tells about itself and its work: --info, -v, --version, and the progress
# bar on a terminal (which `script` makes), which is nowhere else. What the bar looks like is in test_progress.c.

case $1 in /*) blip2=$1 ;; *) blip2=$PWD/$1 ;; esac
. test/count.sh
# has FILE PATTERN: some line matches the extended regular expression; lacks: none does
has() { if grep -qE -e "$2" "$1"; then ok; else bad "no '$2' in: $(cat -v "$1")"; fi; }
lacks() { if grep -qE -e "$2" "$1"; then bad "'$2' in: $(cat -v "$1")"; else ok; fi; }
a=test/data/tiny_0.png b=test/data/tiny_1.png

for model in opt t5; do
    file=test/data/tiny_$model.bin
    "$blip2" -m $file --info >"$tmp/out" 2>"$tmp/err" && [ ! -s "$tmp/err" ] && ok || bad "--info $model"
    for line in "^file  *$file, [0-9.]* [KM]B$" '^parameters  *[0-9]+ in [0-9]+ tensors: .* f32 \([0-9.]+ [KM]?B' \
        '^vision tower  *[0-9]+ blocks' '^Q-Former .* queries' '^language model .*decoder layers' '^tokenizer .* ids' \
        '^defaults  *-b 5 -n 30' '^prompt  *""$' '^preprocessing .* mean 0\.48' '^memory, CPU .* beside' \
        '^memory, GPU' '^device  *c'; do
        has "$tmp/out" "$line"
    done
    "$blip2" -m $file --info --json >"$tmp/json" 2>"$tmp/err" && [ "$(wc -l <"$tmp/json")" -eq 1 ] && ok || bad "--json"
    if command -v jq >/dev/null; then
        # the sizes add up: every tensor has a dtype, and the file holds them all
        jq -e --argjson size "$(wc -c <$file)" '.bytes == $size and ([.dtypes[].tensors] | add) == .tensors and
            ([.dtypes[].bytes] | add) == .memory.weights and .memory.weights < .bytes and .defaults.beams == 5 and
            (.memory.gpu == null or .memory.gpu > .memory.weights) and .hyperparameters.S == .preprocessing.side and
            .family == "'$model'"' "$tmp/json" >/dev/null && ok || bad "--info --json of $model: $(cat "$tmp/json")"
    else skip "no jq"; fi
done
# of a file whose tensors are damaged nothing is noticed, for they are not read; a damaged head is
cp test/data/tiny_opt.bin "$tmp/m" && printf 'xxxx' | dd of="$tmp/m" bs=1 seek=1000000 conv=notrunc 2>/dev/null
"$blip2" -m "$tmp/m" --info >"$tmp/out" 2>&1 && ok || bad "--info read the tensors: $(cat "$tmp/out")"
printf 'xxxx' | dd of="$tmp/m" bs=1 seek=700 conv=notrunc 2>/dev/null
"$blip2" -m "$tmp/m" --info >"$tmp/out" 2>&1
[ $? -eq 3 ] && ok || bad "--info of a damaged head"
small=$("$blip2" -m test/data/tiny_t5.bin --info --ctx 64 | grep '^memory, CPU')
large=$("$blip2" -m test/data/tiny_t5.bin --info --ctx 4000 -b 8 | grep '^memory, CPU')
[ "$small" != "$large" ] && ok || bad "--info does not mind --ctx: $small"

"$blip2" -v -m test/data/tiny_opt.bin $a $b >"$tmp/out" 2>"$tmp/err" && ok || bad "-v"
for stage in load image vit qformer prompt 'decode [0-9]+ steps'; do
    has "$tmp/err" "^time: $stage [0-9]+\.[0-9]+ s$"
done
has "$tmp/err" '^device: c'
has "$tmp/err" '^speed: [0-9.]+ tokens/s, decoding read [0-9.]+ GB/s of weights'
has "$tmp/err" '^memory: [0-9.]+ MB at most'
lacks "$tmp/err" 'images/s|s/image'
"$blip2" --device cpu -m test/data/tiny_opt.bin $a $b >"$tmp/out" 2>"$tmp/err"
[ -s "$tmp/err" ] && bad "without -v on stderr: $(cat "$tmp/err")" || ok

# in a chat as well: the picture is encoded once, and each answer decoded
printf 'what is it?\nwhere?\n' | "$blip2" -v -m test/data/tiny_opt.bin --chat $a >"$tmp/out" 2>"$tmp/err" && ok ||
    bad "-v --chat"
for n in image.1 vit.1 qformer.1 prompt.2 decode.2; do
    [ "$(grep -c "^time: ${n%.*} .*[0-9] s$" "$tmp/err")" -eq "${n#*.}" ] && ok ||
        bad "-v --chat, $n: $(cat "$tmp/err")"
done
has "$tmp/err" '^memory: '

"$blip2" --version >"$tmp/out"
for line in '^blip2 [0-9]' '^compiler: (gcc|clang) ' \
    '^features: .*libedit (yes|no), curl (yes|no)$' \
    '^images: png' '^cpu: [a-z]' '^cuda: '; do has "$tmp/out" "$line"; done
mkdir "$tmp/empty"
PATH=$tmp/empty "$blip2" --version >"$tmp/out"
has "$tmp/out" 'curl no$'

# on_terminal FILE TERM ARGUMENTS...: all that the program writes to a terminal; `shell` makes it redirect something
shell=
on_terminal() {
    out=$1 term=$2
    shift 2
    TERM=$term script -qefc "'$blip2' --device cpu -m test/data/tiny_opt.bin $* $shell" /dev/null </dev/null \
        >"$out" 2>&1
}
if script -qefc true /dev/null </dev/null >/dev/null 2>&1; then
    esc=$(printf '\033')
    on_terminal "$tmp/out" xterm $a $b $a
    has "$tmp/out" '\[\.+\] 0/3'
    has "$tmp/out" '\[#+\] 3/3  .*(images/s|s/image)  0:0[0-9] left'
    # what stands behind the last bar takes it away
    tail -c 5 "$tmp/out" | grep -q "$esc\[K" && ok || bad "the bar stays: $(cat -v "$tmp/out")"
    shell='>/dev/null'
    on_terminal "$tmp/out" xterm $a $b
    has "$tmp/out" '2/2'
    tail -c 5 "$tmp/out" | grep -q "$esc\[K" && ok || bad "the bar stays: $(cat -v "$tmp/out")"
    shell="2>$tmp/err"
    on_terminal "$tmp/out" xterm $a $b
    shell=
    lacks "$tmp/out" '2/2'
    [ -s "$tmp/err" ] && bad "a bar in a file: $(cat -v "$tmp/err")" || ok
    for options in "$a" "--quiet $a $b" "-v $a $b"; do
        on_terminal "$tmp/out" xterm "$options"
        lacks "$tmp/out" '1/1|2/2|images/s|s/image'
    done
    on_terminal "$tmp/out" dumb $a $b
    lacks "$tmp/out" '2/2'
    # a message stands in a line of its own, not behind the bar
    on_terminal "$tmp/out" xterm $a absent.png $a
    has "$tmp/out" "$esc\[K.?blip2: absent\.png: "
else skip "no script program that makes a terminal"; fi
tally
