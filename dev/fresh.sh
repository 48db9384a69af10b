#!/bin/sh
# dev/fresh.sh [FOLDER [SUITE MIRROR KEYRING]]: tries README's two commands on a machine that has nothing, and says what
# they cost.
#
# In order: arguments and a mount namespace of its own, what the host's apt knows, the bare system, the tools for it,
# as root (make deps demo, make deps test), as an ordinary user without sudo (make deps demo must refuse and say what
# to type; what it says is then typed), the figures. The system is debootstrap's minbase with only what README asks for:
# git, make and, for fetching over https, ca-certificates. What is cloned is the commit that is checked out here, not
# what is uncommitted.
#
# Without SUITE it is Debian 12, and the host must be that too, whose apt names the mirror. Otherwise an Ubuntu, e.g.
# jammy, with the address of a mirror and the file with the keys that sign it (the package ubuntu-keyring has it).
# Needs root, debootstrap, git and 2 GB below FOLDER (default: a temporary folder). Works in a folder of its own in
# there, which is deleted at the end; mounts end with the namespace, however the script ends. It is no container: it is
# for our own code, and keeps nothing in that wants out.

[ "$(id -u)" -eq 0 ] || { echo "fresh: chroot and mount need root" >&2; exit 1; }
for tool in debootstrap git unshare chroot; do
    command -v $tool >/dev/null || { echo "fresh: no $tool here: apt-get install debootstrap git" >&2; exit 1; }
done
[ "$FRESH_INSIDE" ] || exec env FRESH_INSIDE=1 unshare --mount --propagation private sh "$0" "$@"

suite=${2:-bookworm} mirror=$3 keyring=$4
repository=$(cd "$(dirname "$0")/.." && pwd) || exit 1
parent=${1:-${TMPDIR:-/tmp}}
mkdir -p "$parent" || exit 1
work=$(mktemp -d "$(cd "$parent" && pwd)/fresh.XXXXXX") || exit 1

# Never deletes through something that is still mounted.
clean() {
    trap - EXIT
    for tree in root user; do
        for place in dev/shm dev/pts proc; do umount -l "$work/$tree/$place" 2>/dev/null; done
    done
    rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM HUP
failed=0
say() { echo "fresh: $*"; }
stop() { [ ! -e "$work/log" ] || tail -n 40 "$work/log" >&2; echo "fresh: $*" >&2; exit 1; }
bad() { failed=1; echo "fresh: FAILED: $*" >&2; }

# ---------------------------------------------------------------------------------------------------------
# What the host's apt knows: where packages come from (lines "uri suite") and how to get there.

if [ "$mirror" ]; then
    components=main,universe
    for part in "" -updates -security; do echo "$mirror $suite$part"; done >"$work/sources"
else
    components=main
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" '$2 ~ "^" suite && $3 == "main" && !seen[$1, $2]++ { print $1, $2 }' >"$work/sources"
    mirror=$(awk -v suite="$suite" '$2 == suite { print $1; exit }' "$work/sources")
    [ "$mirror" ] || stop "apt here has no sources for $suite: this needs a Debian 12, or SUITE MIRROR KEYRING"
fi
apt-config dump | grep -iE '^Acquire::(https?|Check|Retries)[^ ]* "[^"]' >"$work/settings"
proxy=$(sed -n 's/^Acquire::http::Proxy "\(.*\)";/\1/Ip' "$work/settings")
[ -z "$proxy" ] || export http_proxy="$proxy"

# in_tree TREE COMMAND...: as root, with nothing of this machine's environment but the way out
bare="env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ${http_proxy:+http_proxy=$http_proxy}
      ${https_proxy:+https_proxy=$https_proxy} ${no_proxy:+no_proxy=$no_proxy}"
in_tree() { tree=$1; shift; chroot "$work/$tree" $bare HOME=/root "$@" </dev/null; }
# as_user COMMAND...: the same in the user's tree, as that user
as_user() { chroot --userspec=visitor:visitor "$work/user" $bare HOME=/home/visitor "$@" </dev/null; }
packages() { chroot "$work/$1" dpkg-query -W -f '${Package}\n' | sort; }
now() { date +%s; }
minutes() { awk -v s=$(($2 - $1)) 'BEGIN { printf "%.1f minutes", s / 60 }'; }
# what apt says, e.g. "Fetched 12.3 MB in 2s (6 MB/s)", all such lines joined
fetched() { sed -n 's/^Fetched \(.*[kM]\?B\) in .*/\1/p' "$1" | paste -s -d + | sed 's/+/ + /g; s/^$/nothing/'; }
# table LIST: name, version and bytes of each package in LIST, and their sum
table() {
    while read -r name; do
        in_tree root apt-cache show --no-all-versions "$name" |
            awk '/^Package:/ { p = $2 } /^Version:/ { v = $2 } /^Size:/ { s = $2 }
                 END { printf "%-28s %-36s %9d\n", p, v, s }'
    done <"$1" | awk '{ print; sum += $3 } END { printf "%-28s %-36s %9d\n", NR " packages", "", sum }'
}

# ---------------------------------------------------------------------------------------------------------
# The bare system, and one copy of it for root and one for the user.

say "debootstrap --variant=minbase $suite"
debootstrap --variant=minbase --components=$components ${keyring:+"--keyring=$keyring"} "$suite" "$work/root" \
    "$mirror" >"$work/log" 2>&1 || stop "debootstrap failed"
sed "s/^/deb /; s/\$/ $(echo $components | tr , ' ')/" "$work/sources" >"$work/root/etc/apt/sources.list"
cp "$work/settings" "$work/root/etc/apt/apt.conf.d/90host"
for f in resolv.conf hosts; do cp -L "/etc/$f" "$work/root/etc/$f"; done
packages root >"$work/packages.bare"
say "$(wc -l <"$work/packages.bare") packages in it"
for tool in cc gcc clang make git python3 curl; do
    in_tree root sh -c "command -v $tool" >/dev/null && stop "this system is not bare: it has $tool"
done

# debootstrap has made the device files; no part of this machine's /dev is mounted
furnish() {
    mount -t proc proc "$work/$1/proc" && mount -t devpts -o newinstance,ptmxmode=666 devpts "$work/$1/dev/pts" &&
        mount -t tmpfs tmpfs "$work/$1/dev/shm" || stop "mounting failed"
    rm -f "$work/$1/dev/ptmx" && ln -s pts/ptmx "$work/$1/dev/ptmx"
}

say "apt-get update, apt-get install git make ca-certificates"
in_tree root apt-get update -q >"$work/log" 2>&1 || stop "apt-get update failed"
in_tree root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    git make ca-certificates >>"$work/log" 2>&1 || stop "git and make could not be installed"
packages root >"$work/packages.tools"
comm -13 "$work/packages.bare" "$work/packages.tools" >"$work/added.tools"
tools_fetched=$(fetched "$work/log")
git clone -q --bare --single-branch "file://$repository" "$work/root/srv/blip2.git" || stop "cloning failed"
cp -a "$work/root" "$work/user" || stop "copying failed"
furnish root
furnish user

# ---------------------------------------------------------------------------------------------------------
# As root.

# step NAME COMMAND...: runs it in the clone, output shown and kept in log.NAME; sets code and took
step() {
    name=$1
    shift
    say "as root: $*"
    start=$(now)
    { in_tree root env -C /srv/checkout "$@" 2>&1; echo $? >"$work/code"; } | tee "$work/log.$name"
    code=$(cat "$work/code") took=$(minutes "$start" "$(now)")
    say "exit code $code after $took"
    [ "$code" -eq 0 ] || bad "$* ended with exit code $code"
}

in_tree root git clone -q /srv/blip2.git /srv/checkout || stop "git clone failed"
step demo make deps demo
demo_took=$took
packages root >"$work/packages.demo"
comm -13 "$work/packages.tools" "$work/packages.demo" >"$work/added.demo"
step test make deps test
test_took=$took
packages root >"$work/packages.test"
comm -13 "$work/packages.demo" "$work/packages.test" >"$work/added.test"
tally=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$work/log.test" | tail -n 1)
[ -z "$(in_tree root git -C /srv/checkout status --porcelain)" ] || bad "the clone is not clean afterwards"

# ---------------------------------------------------------------------------------------------------------
# As an ordinary user: refused with a command to type, which must be the right one. A system image often comes
# without package lists; so does this one.

say "as a user without sudo: make deps demo"
in_tree user useradd -m visitor || stop "useradd failed"
in_tree user chown -R visitor:visitor /srv/blip2.git
rm -rf "$work/user/var/lib/apt/lists" && mkdir "$work/user/var/lib/apt/lists"
as_user git clone -q /srv/blip2.git /home/visitor/blip2 || stop "git clone failed"
as_user env -C /home/visitor/blip2 make deps demo >"$work/log.refused" 2>&1
code=$?
cat "$work/log.refused"
say "exit code $code"
[ $code -ne 0 ] || bad "a user who cannot install anything gets exit code 0"
advice=$(sed -n 's/^    \(apt-get .*\)/\1/p' "$work/log.refused")
if [ "$advice" ]; then
    say "as root, what it says: $advice"
    # -y: there is nobody to ask
    in_tree user env DEBIAN_FRONTEND=noninteractive APT_CONFIG=/tmp/yes sh -c \
        'echo "APT::Get::Assume-Yes true;" >/tmp/yes; '"$advice" >"$work/log" 2>&1 || bad "$(tail -n 3 "$work/log")"
    say "as the user again: make deps demo"
    as_user env -C /home/visitor/blip2 make deps demo >"$work/log" 2>&1 ||
        bad "then it fails: $(tail -n 20 "$work/log")"
    tail -n 2 "$work/log"
else bad "it does not say what to type"; fi

# ---------------------------------------------------------------------------------------------------------
# The figures.

echo
echo "apt fetched for git and make, with package lists: $tools_fetched"
table "$work/added.tools"
echo
echo "make deps demo: $demo_took; apt fetched: $(fetched "$work/log.demo")"
table "$work/added.demo"
echo
echo "make deps test: $test_took; apt fetched: $(fetched "$work/log.test")"
[ ! -s "$work/added.test" ] || table "$work/added.test"
echo "$tally"
exit $failed
