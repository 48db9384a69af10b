#!/bin/sh
# test/test_install.sh BLIP2: `make install` into a folder of its own: everything is in its place, the program runs from
# another folder and finds its demo model, a program can be built against the library; `make uninstall` takes all away.
# Runs make with the variables of the make that runs this test, so that it installs the flavour under test.

case $1 in /*) blip2=$1 ;; *) blip2=$PWD/$1 ;; esac
. test/count.sh
unset MAKEFLAGS MFLAGS MAKELEVEL
# answers WHAT COMMAND...: it succeeds and writes something
answers() {
    what=$1
    shift
    if "$@" >"$tmp/out" 2>"$tmp/err" && [ -s "$tmp/out" ]; then ok; else bad "$what: $(cat "$tmp/out" "$tmp/err")"; fi
}
that() { what=$1; shift; if "$@" >"$tmp/out" 2>&1; then ok; else bad "$what: $(cat "$tmp/out")"; fi; }

prefix=$tmp/dest/opt/blip2
image=$PWD/test/data/tiny_0.png
example=$PWD/doc/example.c
mkdir "$tmp/elsewhere"
that "make install" make -s install DESTDIR="$tmp/dest" PREFIX=/opt/blip2
that "nothing outside of PREFIX" test "$(find "$tmp/dest" -type f | grep -cv "^$prefix/")" -eq 0

that "the program" cmp "$blip2" "$prefix/bin/blip2"
that "the manual page" cmp doc/blip2.1 "$prefix/share/man/man1/blip2.1"
for f in bash-completion/completions/blip2 zsh/site-functions/_blip2 fish/vendor_completions.d/blip2.fish; do
    that "$f" grep -q -e beams "$prefix/share/$f"
done
if [ ! -e demo/demo.bin ]; then
    mkdir -p "$prefix/share/blip2"
    cp test/data/tiny_opt.bin "$prefix/share/blip2/demo.bin"
fi
cd "$tmp/elsewhere" || exit 1
answers "runs from another folder, with the demo model" "$prefix/bin/blip2" "$image"
"$prefix/bin/blip2" --version >"$tmp/version" && "$blip2" --version | cmp -s - "$tmp/version" && ok || bad "--version"
if [ "$SAN" ] || ! command -v pkg-config >/dev/null; then skip "building against the installed library"
else
    PKG_CONFIG_PATH=$prefix/lib/pkgconfig
    export PKG_CONFIG_PATH
    flags=$(pkg-config --define-variable=prefix="$prefix" --cflags --libs libblip2)
    # shellcheck disable=SC2086  # flags are several words
    that "a program with the installed header" ${CC:-cc} "$example" $flags -o example
    answers "and the installed library" env LD_LIBRARY_PATH="$prefix/lib" ./example "$prefix/share/blip2/demo.bin" \
        "$image"
    static=$(pkg-config --define-variable=prefix="$prefix" --static --libs libblip2)
    # shellcheck disable=SC2086
    that "a program with the static library" ${CC:-cc} "$example" -I"$prefix/include" "$prefix/lib/libblip2.a" \
        $(echo "$static" | sed 's/-lblip2//') -o static
    answers "which needs nothing at run time" ./static "$prefix/share/blip2/demo.bin" "$image"
fi
cd "$OLDPWD" || exit 1
that "make uninstall" make -s uninstall DESTDIR="$tmp/dest" PREFIX=/opt/blip2
that "nothing is left: $(find "$tmp/dest" ! -type d)" test -z "$(find "$tmp/dest" ! -type d)"
that "nor the folder of its own" test ! -e "$prefix/share/blip2"
tally
