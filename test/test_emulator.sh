#!/bin/sh
# test/test_emulator.sh: dev/emulator without Bochs: wrong arguments, what is read off a serial line, edits of a source,
# and whole runs with a stand-in for Bochs, which boots nothing and copies a serial line that was written beforehand.
# AMX itself in the emulator (dev/emulator/run.py) takes a built Bochs and a kernel, and is not run here.
. test/count.sh
run=dev/emulator/run.py

# refused TEXT ARGUMENTS...: not zero, and TEXT in what it says
refused() {
    want=$1
    shift
    if python3 "$@" >"$tmp/out" 2>&1; then bad "accepted: $*"
    elif grep -qF -e "$want" "$tmp/out"; then ok
    else bad "$*: no '$want' in: $(cat "$tmp/out")"; fi
}
command -v python3 >/dev/null || { skip "no python3: dev/emulator"; tally; exit 0; }
printf '#!/bin/sh\necho "Bochs x86 Emulator 2.7"\n' >"$tmp/old" && chmod +x "$tmp/old"
python3 -c 'import sys; b = bytearray(4096); b[0x202:0x206] = b"HdrS"; b[0x206:0x208] = b"\x0f\x02"
open(sys.argv[1], "wb").write(b)' "$tmp/kernel"
refused "which Bochs?" $run --kernel "$tmp/kernel"
refused "no such file" $run --bochs "$tmp/old" --kernel "$tmp/absent"
refused "not a Linux kernel" $run --bochs "$tmp/old" --kernel README.md
refused "expected some of amx" $run --bochs "$tmp/old" --kernel "$tmp/kernel" --isa sse9
refused "Bochs 2.7 without" $run --bochs "$tmp/old" --kernel "$tmp/kernel"
refused "does not say that it is Bochs" $run --bochs /bin/true --kernel "$tmp/kernel"
refused "no configure" dev/emulator/bochs.py "$tmp" "$tmp/new"
echo 'VERSION="2.7"' >"$tmp/configure"
refused "Bochs 2.7, expected" dev/emulator/bochs.py "$tmp" "$tmp/new"

# What run.py makes of single lines and files, and edits; and the serial lines for the stand-in, in $tmp/lines.
if python3 -B - "$tmp" <<'PY' 2>"$tmp/err"
import sys
from pathlib import Path
sys.path.insert(0, "dev/emulator")
import bochs
import run
tmp = Path(sys.argv[1])
good = "== 0 start\namx: worst element 0.1 of the bound\n7 passed, 0 failed, 0 skipped\n\n== 0 exit 0\n== end\n"
lines = {"good": good, "cut": good[:40], "nothing": "", "sigill": "== 0 start\n\n== 0 exit 132\n== end\n",
         "failing": good.replace("7 passed, 0", "FAIL x.c:1: e <= 1\n6 passed, 1").replace("exit 0", "exit 1"),
         "absent": good.replace("amx: worst", "SKIP amx: not on this processor").replace("7 passed, 0 failed, 0",
                                                                                        "2 passed, 0 failed, 1"),
         "skipped": good.replace("0 skipped", "1 skipped"), "code": good.replace("exit 0", "exit 1"),
         "empty": good.replace("7 passed", "0 passed")}
asked = run.examples(Path("demo/examples.txt").read_text())
assert len(asked) > 10
lines["demo"] = "".join(f"== {i} start\n{answer}\n\n== {i} exit 0\n" for i, (_, answer) in enumerate(asked))
lines["demo"] += f"== {len(asked)} start\ncpu: amx\ntwo dogs\n\n== {len(asked)} exit 0\n== end\n"
lines["demo-other"] = lines["demo"].replace("cpu: amx", "cpu: avx512")
lines["demo-wrong"] = lines["demo"].replace("two dogs and a car", "two dogs and a cat", 1)
assert lines["demo-wrong"] != lines["demo"]
(tmp / "lines").mkdir()
for name, text in lines.items():
    (tmp / "lines" / name).write_text(text)

made = run.archive({"a/b": (0o644, b"xyz")})
assert made.startswith(b"070701") and b"TRAILER!!!" in made and b"dev/console" in made
header, body = run.split_kernel((tmp / "kernel").read_bytes(), "kernel")
assert len(body) == 4096 - 5 * 512 and len(run.parameters(header, 1000)) == 4096 + len(run.BOOT) + 1

source = tmp / "source"
for words, side, want in [(["one"], "behind", "one\n!\ntwo\ntwo\n"), (["two\ntwo"], "before", "one\n!\ntwo\ntwo\n"),
                          (["one", "two"], "behind", "one\ntwo\n!\ntwo\n")]:
    source.write_text("one\ntwo\ntwo\n")
    bochs.edit(tmp, [("source", words, side, "!")])
    assert source.read_text() == want, source.read_text()
for words in ["three"], ["one", "three"], ["two"]:
    try:
        bochs.edit(tmp, [("source", words, "behind", "!")])
    except SystemExit:
        continue
    raise AssertionError(f"{words} led to a line")
PY
then ok; else bad "$(cat "$tmp/err")"; fi

# whole RESULT LINES TEXT ARGUMENTS...: run.py with the stand-in ends with exit code RESULT and says TEXT
whole() {
    result=$1 name=$2 want=$3
    shift 3
    LINES_OF=$tmp/lines/$name python3 -B $run --bochs "$tmp/bochs" --kernel "$tmp/kernel" --programs "$tmp/programs" \
        --work "$tmp/work" "$@" >"$tmp/out" 2>&1
    code=$?
    if [ $code -eq "$result" ] && grep -qF -e "$want" "$tmp/out"; then ok
    else bad "$name, $*: exit code $code, expected $result, '$want' in: $(cat "$tmp/out")"; fi
}
cat >"$tmp/bochs" <<'SH'
#!/bin/sh
# The stand-in: bochs --help [cpu], or bochs -q -f BOCHSRC.
if [ "$1" = --help ]; then echo "Bochs x86 Emulator 3.1 sapphire_rapids"; exit; fi
for name in $(sed -n 's/^optramimage.: file=\(.*\),.*/\1/p; s/^romimage: file=//p' "$3"); do
    [ -s "$name" ] || { echo "no $name" >&2; exit 1; }
done
serial=$(sed -n 's/^com1: .*dev=//p' "$3")
[ "${LINES_OF##*/}" != hanging ] || { echo "== 0 start" >"$serial"; exec sleep 60; }
sed 's/$/\r/' "$LINES_OF" >"$serial"
SH
chmod +x "$tmp/bochs"
mkdir "$tmp/programs" && echo a >"$tmp/programs/test_matmul" && echo b >"$tmp/programs/blip2"
echo 'int main(void) { return 0; }' >"$tmp/empty.c"
if [ "$(uname -m)" != x86_64 ] || ! ${CC:-cc} -static -o "$tmp/empty" "$tmp/empty.c" 2>/dev/null; then
    skip "whole runs with a stand-in for Bochs: they need x86-64 and a libc to link statically"
else
    whole 0 good "ok   amx: 7 passed, 0 failed, 0 skipped; worst element 0.1" --isa amx
    whole 1 good "1 passed, 1 failed, 0 skipped" --isa amx,avxvnni
    whole 1 failing "FAIL x.c:1: e <= 1" --isa amx
    whole 1 absent "FAIL amx: not on this processor" --isa amx
    whole 1 skipped "FAIL amx: 7 passed, 0 failed, 1 skipped" --isa amx
    whole 1 code "FAIL amx: 7 passed" --isa amx
    whole 1 empty "FAIL amx: 0 passed" --isa amx
    whole 1 cut "FAIL amx: did not end" --isa amx
    whole 1 nothing "FAIL amx: did not end" --isa amx
    whole 1 sigill "FAIL amx: killed by SIGILL" --isa amx
    whole 1 hanging "not done after 1 s" --isa amx --seconds 1
    whole 1 hanging "FAIL amx: did not end" --isa amx --seconds 1
    whole 0 demo " answers as expected, 0 not" --demo
    whole 1 demo-wrong " answers as expected, 1 not" --demo
    whole 1 demo-other "expected 'cpu: amx'" --demo
    whole 1 good "FAIL demo model, --cpu-isa amx: 0 answers" --demo

    # The controls pass when the test fails as it must, and only then. Nothing is compiled for the mistake here.
    if python3 -B - "$tmp" <<'PY' 2>"$tmp/err"
import os
import sys
from pathlib import Path
sys.path.insert(0, "dev/emulator")
import run
tmp = Path(sys.argv[1])
machine = run.Machine(tmp / "bochs", tmp / "kernel", tmp / "work", tmp / "programs", 60)


def put_in(source, *targets):
    text = (source / "matmul_amx.h").read_text()
    assert run.MISTAKE[0] not in text and run.MISTAKE[1] in text
    (source / "build" / "static").mkdir(parents=True)
    (source / "build" / "static" / "test_matmul").write_text("a")


run.make_static = put_in
for control, caught in (run.control_without, {"absent"}), (run.control_mistake, {"failing"}):
    for name in "good", "absent", "failing", "sigill", "cut", "nothing":
        os.environ["LINES_OF"] = str(tmp / "lines" / name)
        passed, line = control(machine)
        assert passed == (name in caught), f"{control.__name__}, {name}: {line}"
PY
    then ok; else bad "$(cat "$tmp/err")"; fi
fi
skip "AMX in an emulator: dev/emulator/run.py by hand (doc/matmul.md)"
tally
