#!/bin/sh
# test/test_readme.sh BLIP2 COMPARE: what the README shows is what the program does: its options, the demo's answers.
blip2=$1 passed=0 failed=0
tmp=$(mktemp) || exit 1
trap 'rm -f "$tmp"' EXIT
has() {
    if grep -qxF -- "$1" README.md; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL README.md lacks: $1" >&2; fi
}

"$blip2" --help | sed -n '/^  *-[-a-z]*/p' | grep -v '^  blip2' >"$tmp"
while IFS= read -r line; do has "$line"; done <"$tmp"
for answer in "two dogs and a car on a green background" two green; do
    if grep -qxF -- "$answer" demo/examples.txt && grep -q "\`$answer\`" README.md; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL README.md or demo/examples.txt lacks the answer: $answer" >&2; fi
done
if grep -qxF "no such line in it" README.md; then failed=$((failed + 1)); else passed=$((passed + 1)); fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ] && [ $passed -gt 20 ]
