# test/count.sh: what many test scripts open with, sourced from the root of the repository: . test/count.sh
#
# A folder $tmp that goes at the end; ok, bad and skip, which count; tally, the script's last line, with its exit code.
# shellcheck shell=sh

passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAIL $*" >&2; }
skip() { skipped=$((skipped + 1)); echo "SKIP $*" >&2; }
tally() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
