#!/bin/sh
# dev/deps.sh COMPILER: installs what dev/probe.sh does not find, through the system's package manager.
#
# In order: what is missing, the packages that have it, installing them, looking again. Asks nothing: works as root or
# through sudo, otherwise says what to type and stops. Debian and Ubuntu are tested; Fedora and Homebrew are not.

cc=${1:-cc}
here=$(dirname "$0")

# Words of: compiler zlib stb jpeg webp edit python curl
missing() {
    found=$(sh "$here/probe.sh" "$cc")
    echo "$found" | sed -n 's/^FOUND_\([A-Z]*\) = *$/\1/p' | grep -v GCC | tr 'A-Z\n' 'a-z '
    # for the exporter and for make parity; a venv without pip is of no use
    python3 -c 'import venv, ensurepip' 2>/dev/null || echo python
    # for addresses instead of files, at run time
    command -v curl >/dev/null || echo curl
}

need=$(missing)
if [ -z "$need" ]; then
    echo "deps: nothing is missing"
    exit 0
fi
echo "deps: missing:" $need

case $cc in *clang*) clang=yes ;; *) clang= ;; esac
packages=
add() { packages="$packages $*"; }
if command -v apt-get >/dev/null; then
    for n in $need; do
        case $n in
        compiler) add ${clang:+clang} ${clang:-gcc} libc6-dev ;;
        zlib) add zlib1g-dev ;;
        stb) add libstb-dev ;;
        jpeg) add libjpeg-dev ;;
        webp) add libwebp-dev ;;
        edit) add libedit-dev ;;
        python) add python3 python3-venv ;;
        curl) add curl ca-certificates ;;
        esac
    done
    packages=$(echo $packages | sed 's/\<yes\>//')
    update="apt-get update -q"
    install="env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends"
elif command -v dnf >/dev/null; then
    echo "deps: the way through dnf is untested; please report what happens"
    for n in $need; do
        case $n in
        compiler) if [ $clang ]; then add clang; else add gcc; fi ;;
        zlib) add zlib-devel ;;
        stb) add stb_image-devel ;;
        jpeg) add libjpeg-turbo-devel ;;
        webp) add libwebp-devel ;;
        edit) add libedit-devel ;;
        python) add python3 ;;
        curl) add curl ;;
        esac
    done
    update=true
    install="dnf install -y"
elif command -v brew >/dev/null; then
    echo "deps: the way through Homebrew is untested; please report what happens"
    for n in $need; do
        case $n in
        compiler) add gcc ;;
        zlib) add zlib ;;
        stb) echo "deps: Homebrew has no stb_image.h: put it into a folder and add CPPFLAGS=-Ifolder to make" ;;
        jpeg) add jpeg-turbo ;;
        webp) add webp ;;
        edit) add libedit ;;
        python) add python ;;
        curl) add curl ;;
        esac
    done
    update=true
    install="brew install"
else
    echo "deps: neither apt-get, dnf nor brew is here; please install the development files of:" $need >&2
    exit 1
fi

sudo=
case $install in
brew*) ;;   # refuses to run as root
*)
    if [ "$(id -u)" -ne 0 ]; then
        # on a terminal sudo may ask for a password, elsewhere it must not wait for one
        if [ -t 0 ]; then sudo="sudo"; else sudo="sudo -n"; fi
        if ! command -v sudo >/dev/null || ! $sudo true 2>/dev/null; then
            echo "deps: only root may install packages; please run as root:" >&2
            if [ "$update" = true ]; then first=; else first="$update && "; fi
            echo "    $(echo "$first$install" | sed 's/env [A-Z_]*=[a-z]* //; s/ -[qy]//g')" $packages >&2
            exit 1
        fi
    fi
    ;;
esac
echo "deps: installing" $packages
$sudo $update >/dev/null || echo "deps: the package lists could not be renewed; going on with the old ones" >&2
$sudo $install $packages || { echo "deps: the installation failed" >&2; exit 1; }

need=$(missing)
if [ -z "$need" ]; then
    echo "deps: all there now"
    exit 0
fi
echo "deps: still missing:" $need >&2
case " $(echo $need) " in *" compiler "* | *" zlib "* | *" stb "*) exit 1 ;; esac
echo "deps: it works without, with less (see the list that make prints)"
