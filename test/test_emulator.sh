#!/bin/sh
# test/test_emulator.sh: dev/emulator without Bochs: wrong arguments, what is read off a serial line, edits of a source.
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
command -v python3 >/dev/null || { skip "no python3"; ok; tally; exit; }
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

if python3 -B - "$tmp" <<'PY' 2>"$tmp/err"
import sys
from pathlib import Path
sys.path.insert(0, "dev/emulator")
import bochs
import run
good = "== 0 start\namx: worst element 0.1 of the bound\n7 passed, 0 failed, 0 skipped\n\n== 0 exit 0\n== end\n"
def judged(serial): return run.judge_isa("amx", *run.results(serial, 1)[0])[0]
assert judged(good)
assert not judged(good.replace("7 passed, 0", "6 passed, 1"))
assert not judged(good.replace("exit 0", "exit 1"))
assert not judged(good.replace("exit 0", "exit 132"))
assert not judged(good.replace("0 skipped", "1 skipped"))
assert not judged(good.replace("amx: worst", "SKIP amx: not on this processor"))
assert not judged(good[:40]) and not judged("")
assert len(run.examples(Path("demo/examples.txt").read_text())) > 10
made = run.archive({"a/b": (0o644, b"xyz")})
assert made.startswith(b"070701") and b"TRAILER!!!" in made and b"dev/console" in made
source = Path(sys.argv[1], "source")
source.write_text("one two")
bochs.edit(source.parent, [("source", "one", "!")])
assert source.read_text() == "one! two"
try:
    bochs.edit(source.parent, [("source", "three", "!")])
except SystemExit:
    pass
else:
    raise AssertionError("an anchor that is not there was found")
PY
then ok; else bad "$(cat "$tmp/err")"; fi
skip "AMX in an emulator: dev/emulator/run.py by hand (doc/matmul.md)"
tally
