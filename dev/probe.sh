#!/bin/sh
# dev/probe.sh COMPILER [FLAGS...]: what this compiler finds on this machine, as variables for make.
#
# Each question is a small program that is compiled and linked; all are asked at the same time. The Makefile includes
# the answers, dev/deps.sh looks in them for what is missing. An empty variable means: not there.

cc=$1
shift
flags=$*
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

pkg() { pkg-config "$@" 2>/dev/null || true; }

# ask NAME FLAGS: does the program on standard input compile and link?
ask() {
    cat >"$dir/$1.c"
    # shellcheck disable=SC2086  # flags are several words
    $cc $flags "$dir/$1.c" -o "$dir/$1" $2 >/dev/null 2>&1 && touch "$dir/$1.yes"
}

edit=$(pkg --libs libedit)
edit_flags=$(pkg --cflags libedit)
zlib=$(pkg --libs zlib)
jpeg=$(pkg --libs libjpeg)
jpeg_flags=$(pkg --cflags libjpeg)
webp=$(pkg --libs libwebpdemux libwebp)
webp_flags=$(pkg --cflags libwebpdemux libwebp)
stb_flags=$(pkg --cflags stb)
zlib=${zlib:--lz} jpeg=${jpeg:--ljpeg} webp=${webp:--lwebpdemux -lwebp} edit=${edit:--ledit}

ask compiler "" <<'C' &
int main(void) { return 0; }
C
ask gcc "" <<'C' &
#if !defined(__GNUC__) || defined(__clang__)
#error not gcc
#endif
int main(void) { return 0; }
C
ask zlib "$zlib" <<'C' &
#include <zlib.h>
int main(void) { return crc32_z(0, 0, 0) != 0; }
C
ask jpeg "$jpeg_flags $jpeg" <<'C' &
#include <stdio.h>
#include <jpeglib.h>
int main(void) { struct jpeg_error_mgr e; return jpeg_std_error(&e) == 0; }
C
ask turbo "$jpeg_flags $jpeg" <<'C' &
#include <stdio.h>
#include <jpeglib.h>
int main(void) { return LIBJPEG_TURBO_VERSION_NUMBER == 0; }
C
ask webp "$webp_flags $webp" <<'C' &
#include <webp/decode.h>
#include <webp/demux.h>
int main(void) { WebPAnimDecoderOptions o; return !WebPAnimDecoderOptionsInit(&o) + WebPGetDecoderVersion() == 0; }
C
ask edit "$edit_flags $edit" <<'C' &
#include <histedit.h>
int main(void) { return el_init("", 0, 0, 0) == 0; }
C
ask stb "$stb_flags" <<'C' &
#if __has_include(<stb/stb_image.h>)
#include <stb/stb_image.h>
#else
#include <stb_image.h>
#endif
int main(void) { return 0; }
C
wait

found() { [ -e "$dir/$1.yes" ]; }
version=
found compiler && version=$($cc --version 2>/dev/null | head -n 1 | tr -dc 'A-Za-z0-9 ._+~()-')
echo "FOUND_COMPILER = $version"
echo "FOUND_GCC = $(found gcc && echo yes)"
echo "FOUND_ZLIB = $(found zlib && echo yes)"
echo "FOUND_JPEG = $(if found turbo; then echo libjpeg-turbo; elif found jpeg; then echo libjpeg; fi)"
echo "FOUND_WEBP = $(found webp && echo yes)"
echo "FOUND_EDIT = $(found edit && echo yes)"
echo "FOUND_STB = $(found stb && echo yes)"
echo "ZLIB_LIBS = $zlib"
echo "JPEG_FLAGS = $jpeg_flags"
echo "JPEG_LIBS = $jpeg"
echo "WEBP_FLAGS = $webp_flags"
echo "WEBP_LIBS = $webp"
echo "EDIT_FLAGS = $edit_flags"
echo "EDIT_LIBS = $edit"
echo "STB_FLAGS = $(echo "$stb_flags" | tr ' ' '\n' | grep -e '^-I' | tr '\n' ' ')"
