#!/bin/sh
# test/test_completion.sh BLIP2: what is printed from the table of options: the manual page is the one in doc/ and
# formats without complaint; bash and fish, given the completions, complete; zsh finds nothing wrong with its own.
# Shells and formatters that are not installed are counted skips.
. test/count.sh
blip2=$1
# have PROGRAM: is it there? if not, a counted skip
have() { command -v "$1" >/dev/null || { skip "no $1"; false; }; }

"$blip2" --man >"$tmp/blip2.1"
if cmp -s "$tmp/blip2.1" doc/blip2.1; then ok; else bad "doc/blip2.1 is out of date: make doc/blip2.1"; fi
if have mandoc; then
    mandoc -Tlint -Wwarning "$tmp/blip2.1" >"$tmp/lint" && [ ! -s "$tmp/lint" ] && ok ||
        bad "mandoc: $(cat "$tmp/lint")"
fi
if have groff; then
    groff -man -Tascii -ww "$tmp/blip2.1" >"$tmp/page" 2>"$tmp/lint"
    [ -s "$tmp/page" ] && [ ! -s "$tmp/lint" ] && ok || bad "groff: $(cat "$tmp/lint")"
fi

# every option of --help is in the page and in each completion
"$blip2" --help | sed -n 's/^  *\(-.,\)* *--\([-a-z0-9]*\).*/\2/p' >"$tmp/names"
[ "$(wc -l <"$tmp/names")" -gt 40 ] && ok || bad "--help lists too few options"
for shell in bash zsh fish; do "$blip2" --completion $shell >"$tmp/$shell"; done
sed 's/\\-/-/g' "$tmp/blip2.1" >"$tmp/man"
for name in $(cat "$tmp/names"); do
    for f in man bash zsh; do grep -q -e "--$name\>" "$tmp/$f" && ok || bad "$f lacks --$name"; done
    grep -q -e " -l $name " "$tmp/fish" && ok || bad "fish lacks --$name"
done
"$blip2" --completion csh >"$tmp/out" 2>&1
[ $? -eq 2 ] && ok || bad "--completion csh is not refused"

# Files to complete: one with a space in its name.
mkdir "$tmp/files" && : >"$tmp/files/photo one.jpg" && : >"$tmp/files/photo2.jpg"
# completes SHELL EXPECTED WORDS...: the last word is completed; candidates in order, separated by commas
completes() {
    shell=$1 want=$2
    shift 2
    if [ $shell = bash ]; then
        got=$(bash --norc -c 'source "$1"; shift; COMP_WORDS=(blip2 "$@"); COMP_CWORD=$#; _blip2
                              printf "%s\n" "${COMPREPLY[@]}"' - "$tmp/bash" "$@" 2>&1)
    else
        got=$(XDG_CONFIG_HOME="$tmp" XDG_DATA_HOME="$tmp" HOME="$tmp" fish --no-config -c 'source $argv[1]
              complete -C $argv[2]' "$tmp/fish" "blip2 $*" 2>&1 | cut -f 1)
    fi
    got=$(echo "$got" | sort | tr '\n' ',' | sed 's/,$//')
    [ "$got" = "$want" ] && ok || bad "$shell completes '$*' to '$got', expected '$want'"
}
for shell in bash fish; do
    have $shell || continue
    completes $shell --beams --bea
    completes $shell --top-k,--top-p -m x --top
    completes $shell auto,cpu,cuda --device ""
    completes $shell cpu,cuda --device c
    completes $shell bash --completion b
    completes $shell "" --frobnicate
    [ $shell = bash ] || continue
    completes bash cpu,cuda --device = c
    completes bash auto,cpu,cuda --device =
    completes bash "" -b ""
    completes bash "" --question "$tmp/files/"
    completes bash "$tmp/files/photo one.jpg,$tmp/files/photo2.jpg" --model "$tmp/files/p"
    completes bash "$tmp/files/photo2.jpg" "$tmp/files/photo2"
    completes bash "@$tmp/files/photo2.jpg" "@$tmp/files/photo2"
done
if have zsh; then
    zsh -f -n "$tmp/zsh" >"$tmp/out" 2>&1 && ok || bad "zsh: $(cat "$tmp/out")"
    # in a terminal of its own: load it, type "blip2 --bea" and a tab, and have the shell write down what then stands
    cat >"$tmp/type.zsh" <<'EOT'
zmodload zsh/zpty
zpty shell zsh -f -i
# until FILE: reads what the shell prints until the file is there
until_there() { for i in {1..100}; do zpty -r -t shell more; [[ -s $1 ]] && return 0; sleep 0.05; done; return 1; }
zpty -w shell "cd $1; write() { print -r -- \$BUFFER >line; }; zle -N write; bindkey '^Xw' write"
zpty -w shell "autoload -Uz compinit; compinit -D -u; source ./zsh; print yes >loaded"
until_there $1/loaded || exit 1
zpty -w -n shell $'blip2 --bea\t\x18w'
until_there $1/line && grep -qxF 'blip2 --beams=' $1/line
EOT
    timeout 20 zsh -f "$tmp/type.zsh" "$tmp" >"$tmp/out" 2>&1 && ok ||
        bad "zsh completes '--bea' to '$(cat "$tmp/line")'"
fi
tally
