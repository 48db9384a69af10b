#!/bin/sh
# test/test_mistakes.sh BLIP2: what people type wrong: one line that says what to do, the right exit code, no answer.
#
# In order: helpers, the command line, questions, models, images. The rest of what can be wrong is in test_cli.sh.

blip2=$1 passed=0 failed=0 skipped=0
opt=test/data/tiny_opt.bin photo=test/data/images/png-type2-8bit.png
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
LC_ALL=C
export LC_ALL

# mistake CODE TEXT ARGUMENTS...: exactly one line on stderr, with TEXT in it
mistake() {
    want=$1 text=$2
    shift 2
    "$blip2" --quiet "$@" </dev/null >"$tmp/out" 2>"$tmp/err"
    code=$?
    if [ $code -ne "$want" ]; then why="exit code $code, expected $want"
    elif [ "$(wc -l <"$tmp/err")" -ne 1 ]; then why="not one line"
    elif [ -s "$tmp/out" ]; then why="an answer all the same"
    elif ! grep -qF -e "$text" "$tmp/err"; then why="expected '$text'"
    else
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    echo "FAIL blip2 $*: $why: $(cat "$tmp/err" "$tmp/out")" >&2
}

# ----------------------------------------------------------------------------------------------------------

mistake 2 "did you mean --captions?" -m $opt --capitons 3 $photo
mistake 2 "did you mean --max-new?" -m $opt --max_tokens 10 $photo
mistake 2 "takes a whole number from 1 to" -m $opt -n abc $photo
mistake 2 "hint: raise -b, or sample" -m $opt -c 3 -b 2 $photo
mistake 2 "which image? hint: blip2 -m" -m $opt

mistake 2 "in quotes: -q 'what ...'" -m $opt -q what is in this picture $photo
mistake 2 "in quotes: -q 'what ...'" -m $opt $photo -q what is it?
mistake 2 "in quotes: -p 'a ...'" -m $opt -p a photo of $photo
mistake 2 "in quotes behind -q" -m $opt what is it? $photo
mistake 2 "was taken for the question" -m $opt -q $photo

mkdir "$tmp/opt-2.7b"
echo '{}' >"$tmp/opt-2.7b/config.json"
: >"$tmp/empty.bin"
printf '\020\0\0\0\0\0\0\0{"__metadata__":' >"$tmp/model.safetensors"
printf 'GGUF\3\0\0\0' >"$tmp/model.gguf"
mistake 3 "is a folder; hint: export/export.py" -m "$tmp/opt-2.7b" $photo
mistake 3 "hint: -m takes the weight file, images come without an option" -m $photo $opt
mistake 3 "hint: check the spelling" -m blip2-opt-2.7b $photo
mistake 3 "empty" -m "$tmp/empty.bin" $photo
mistake 3 "safetensors file; hint: export/export.py" -m "$tmp/model.safetensors" $photo
mistake 3 "GGUF file of llama.cpp; hint: export/export.py" -m "$tmp/model.gguf" $photo

printf '\0\0\0\030ftypmp42\0\0\0\0mp42isom' >"$tmp/clip.mp4"
cp "$tmp/clip.mp4" "$tmp/clip.jpg"
printf '<!DOCTYPE html><html><body>not found</body></html>\n' >"$tmp/photo.jpg"
printf '\0\0\0\030ftypheic\0\0\0\0mif1heic' >"$tmp/photo.heic"
printf '\0\0\0\034ftypavif\0\0\0\0avifmif1' >"$tmp/photo.avif"
printf '%%PDF-1.7\n' >"$tmp/paper.pdf"
: >"$tmp/empty.jpg"
mistake 1 "a video; hint: take a picture out of it" -m $opt "$tmp/clip.mp4"
mistake 1 "a video; hint: take a picture out of it" -m $opt "$tmp/clip.jpg"
mistake 1 "hint: the download brought no picture" -m $opt "$tmp/photo.jpg"
mistake 1 "an HEIC image, as iPhones take them; hint: e.g. heif-convert" -m $opt "$tmp/photo.heic"
mistake 1 "an AVIF image; hint: convert it" -m $opt "$tmp/photo.avif"
mistake 1 "hint: make pictures of its pages" -m $opt "$tmp/paper.pdf"
mistake 1 "a weight file; hint: that goes behind -m" -m $opt $opt
mistake 1 "empty" -m $opt "$tmp/empty.jpg"
mistake 1 "no such file: check the spelling" -m $opt "$tmp/absent.jpg"
mistake 1 "is a directory: name the image files inside it" -m $opt "$tmp"

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
