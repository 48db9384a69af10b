"""Runs test_matmul and the demo model on an emulated processor that has AMX, for machines that have none.

    python3 dev/emulator/run.py --bochs BUILT/bochs --kernel /boot/vmlinuz-... [--isa amx,avxvnni] [--demo] [--controls]

--bochs is what bochs.py made; --kernel a Linux for x86-64, 5.16 or later, such as Debian's (6.1 of its package
linux-image-cloud-amd64 was tried). Without further options: test_matmul once for each of ISAS, the demo model's
answers with --cpu-isa amx, and the controls, which must fail: a processor without AMX, a mistake planted in
matmul_amx.h. Two machines at a time (--jobs), one to three minutes each on two cores that have nothing else to do.

The guest is that kernel, an archive in memory with init.c, the statically linked programs and demo/, and rom.S in place
of a BIOS: no disk, no boot loader. Everything is made in build/emulator (--work), where the serial line of each guest
is left too. The exit code is 0 when everything passed, else 1.

In order: the guest's files, booting, reading what it wrote, the tests, the command line. Not here: Bochs itself
(bochs.py); speed: what an emulator takes says nothing about a processor.
"""

import argparse
import gzip
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "dev" / "emulator"
ISAS = ["amx", "amx-bf16", "avx512vnni", "avx512bf16", "avxvnni"]

# Where things lie in the guest's memory; rom.S has the first two.
PARAMETERS, KERNEL, COMMAND_LINE, ARCHIVE = 0x90000, 0x100000, 0x91000, 128 << 20
MEMORY = 512                                        # MB
# fsrm: without a BIOS the bit for fast strings is off, and Linux 6.1 takes FSRM without ERMS for a copy that never ends
BOOT = "console=ttyS0 loglevel=1 nokaslr nolapic noapic acpi=off mitigations=off panic=-1 clearcpuid=fsrm rdinit=/init"

# planted by the control: the low bytes of x are multiplied with the wrong half of the weights
MISTAKE = ("TILE_INT8(&tiles, 3, 5, 7);", "TILE_INT8(&tiles, 3, 5, 6);")


def fail(text: str):
    sys.exit(f"run.py: {text}")


# ----------------------------------------------------------------------------------------------------------
# The guest's files.


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs (cpio, "newc") of name -> (mode, content), with /dev/console, folders before what is in them."""
    def entry(i: int, name: str, mode: int, data: bytes, device=(0, 0)) -> bytes:
        fields = [i, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
        return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
    folders = {str(p) for name in files for p in Path(name).parents if str(p) != "."} | {"dev", "proc", "tmp"}
    entries = [(name, 0o40755, b"", (0, 0)) for name in sorted(folders)]
    entries.append(("dev/console", 0o20600, b"", (5, 1)))
    entries.append(("dev/null", 0o20666, b"", (1, 3)))
    entries += [(name, 0o100000 | mode, data, (0, 0)) for name, (mode, data) in files.items()]
    made = b"".join(entry(i + 1, *e) for i, e in enumerate(entries))
    return made + entry(0, "TRAILER!!!", 0, b"")


def split_kernel(image: bytes, name: str) -> tuple[bytes, bytes]:
    """A bzImage -> its header as Linux's parameters want it, the part that runs."""
    if image[0x202:0x206] != b"HdrS":
        fail(f"{name}: not a Linux kernel for x86; hint: /boot/vmlinuz-...")
    version = struct.unpack_from("<H", image, 0x206)[0]
    if version < 0x20C:
        fail(f"{name}: boot protocol {version:#x}, expected 0x20c or later; hint: Linux 5.16 or later")
    sectors = image[0x1F1] or 4
    return image[0x1F1:0x202 + image[0x201]], image[512 * (sectors + 1):]


def parameters(header: bytes, archive_size: int) -> bytes:
    """The page of boot parameters and, 4096 bytes on, the command line."""
    page = bytearray(4096)
    page[0x1F1:0x1F1 + len(header)] = header
    page[0x210] = 0xFF                                              # a boot loader without a number
    struct.pack_into("<II", page, 0x218, ARCHIVE, archive_size)
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    regions = [(0, 0x9F000, 1), (0x100000, (MEMORY << 20) - 0x100000, 1)]
    page[0x1E8] = len(regions)
    for i, region in enumerate(regions):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * i, *region)
    return bytes(page) + BOOT.encode() + b"\0"


def compile_guest(folder: Path):
    """rom.bin and init from their sources; vga.bin, which nothing calls but Bochs insists on."""
    (folder / "vga.bin").write_bytes(b"\x55\xAA\x01" + bytes(508) + b"\0")
    cc = os.environ.get("CC", "cc")
    for command in ([cc, "-O2", "-static", "-o", folder / "init", HERE / "init.c"],
                    [cc, "-c", "-o", folder / "rom.o", HERE / "rom.S"],
                    ["ld", "-m", "elf_x86_64", "-Ttext=0", "--oformat=binary", "-o", folder / "rom.bin",
                     folder / "rom.o"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def make_static(source: Path, *targets: str):
    """Statically linked programs, from the Makefile of that source."""
    command = ["make", "-j2", "FLAVOUR=static", "LDFLAGS=-static", "NO_EDIT=1", "CUDA=0",
               *(f"build/static/{t}" for t in targets)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        fail(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}\nhint: static libraries, e.g. glibc-static")


# ----------------------------------------------------------------------------------------------------------
# Booting.


@dataclass
class Machine:
    bochs: Path
    kernel: Path
    folder: Path            # where its files are made
    programs: Path          # where the statically linked ones are
    seconds: int

    def run(self, name: str, files: dict[str, tuple[int, bytes]], commands: list[list[str]],
            cpu: str = "sapphire_rapids") -> str:
        """Boots a machine with these files that runs these commands -> what came over the serial line."""
        here = self.folder / name
        here.mkdir(parents=True, exist_ok=True)
        header, body = split_kernel(self.kernel.read_bytes(), str(self.kernel))
        listed = "".join("\t".join(c) + "\n" for c in commands).encode()
        packed = gzip.compress(archive({"init": (0o755, (self.folder / "init").read_bytes()), "run": (0o644, listed),
                                        **files}), 1)
        (here / "kernel").write_bytes(body)
        (here / "archive").write_bytes(packed)
        (here / "parameters").write_bytes(parameters(header, len(packed)))
        serial = here / "serial.txt"
        serial.unlink(missing_ok=True)
        (here / "bochsrc").write_text(
            f"cpu: model={cpu}, count=1, ips=100000000, reset_on_triple_fault=0\n"
            f"memory: guest={MEMORY}, host={MEMORY}\n"
            f"romimage: file={self.folder / 'rom.bin'}\nvgaromimage: file={self.folder / 'vga.bin'}\n"
            "plugin_ctrl: speaker=0\ndisplay_library: nogui\n"
            f"optramimage1: file={here / 'parameters'}, address={PARAMETERS:#x}\n"
            f"optramimage2: file={here / 'kernel'}, address={KERNEL:#x}\n"
            f"optramimage3: file={here / 'archive'}, address={ARCHIVE:#x}\n"
            f"com1: enabled=1, mode=file, dev={serial}\nlog: {here / 'bochs.log'}\n"
            "panic: action=fatal\nerror: action=report\ninfo: action=ignore\ndebug: action=ignore\n"
            "clock: sync=none\nboot: floppy\n")
        with (here / "bochs.out").open("w") as out:
            try:
                subprocess.run([self.bochs, "-q", "-f", here / "bochsrc"], stdin=subprocess.DEVNULL, stdout=out,
                               stderr=out, timeout=self.seconds)
            except subprocess.TimeoutExpired:
                print(f"{name}: not done after {self.seconds} s; hint: --seconds", file=sys.stderr)
        return serial.read_text(errors="replace").replace("\r", "") if serial.exists() else ""


# ----------------------------------------------------------------------------------------------------------
# Reading what it wrote.


def results(serial: str, n: int) -> list[tuple[int | None, str]]:
    """The exit code (None: it did not end) and the output of each of n commands."""
    found = []
    for i in range(n):
        begun = re.search(rf"^== {i} start\n", serial, re.MULTILINE)
        ended = re.search(rf"\n== {i} exit (\d+)$", serial, re.MULTILINE)
        if not begun or not ended:
            found.append((None, serial[begun.end():] if begun else ""))
        else:
            found.append((int(ended.group(1)), serial[begun.end():ended.start()].strip("\n")))
    return found


def tally(output: str) -> tuple[int, int, int] | None:
    """The numbers of the closing line of a test program."""
    found = re.findall(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", output, re.MULTILINE)
    return tuple(map(int, found[-1])) if found else None


def examples(text: str) -> list[tuple[list[str], str]]:
    """The commands of demo/examples.txt that need no shell, and the lines below each."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    split = [part.split("\n", 1) for part in parts]
    return [(shlex.split(command), answer.strip("\n")) for command, answer in split if command.startswith("./blip2")]


def rounded(answer: str) -> str:
    """Without the last digits of scores, which differ between processors."""
    return re.sub(r'("score":-*[0-9.]{5})[0-9]*', r"\1", answer)


# ----------------------------------------------------------------------------------------------------------
# The tests. Each returns lines to print and whether it passed.


def judge_isa(isa: str, code: int | None, output: str) -> tuple[bool, str]:
    """Of a run of `test_matmul ISA`: it passed when that ISA was there and everything held."""
    if code is None:
        return False, f"{isa}: did not end: ...{output[-300:]}"
    if 128 < code < 160:
        return False, f"{isa}: killed by {signal.Signals(code - 128).name}"
    counted = tally(output)
    if counted is None:
        return False, f"{isa}: exit code {code} and no tally: {output[-300:]}"
    if f"{isa}: not on this processor" in output:
        return False, f"{isa}: not on this processor"
    worst = re.findall(rf"^{isa}: worst element .*", output, re.MULTILINE)
    line = f"{isa}: {counted[0]} passed, {counted[1]} failed, {counted[2]} skipped"
    if code or counted[1] or counted[2] or not counted[0] or not worst:
        return False, "\n".join([line, *re.findall("^FAIL.*", output, re.MULTILINE)[:3]])
    return True, f"{line}; {worst[0].split(': ', 1)[1]}"


def test_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {"test_matmul": (0o755, (folder / "test_matmul").read_bytes())}


def test_isa(machine: Machine, isa: str) -> tuple[bool, str]:
    files = test_files(machine.programs)
    return judge_isa(isa, *results(machine.run(isa, files, [["/test_matmul", isa]]), 1)[0])


def demo_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    names = [p for p in (ROOT / "demo").iterdir() if p.suffix in (".bin", ".png", ".jpg", ".webp")]
    return {"blip2": (0o755, (folder / "blip2").read_bytes()),
            **{f"demo/{p.name}": (0o644, p.read_bytes()) for p in names}}


def test_demo(machine: Machine, isa: str) -> tuple[bool, str]:
    """The answers of demo/examples.txt with those inner loops; a last run with -v has to name them."""
    asked = examples((ROOT / "demo" / "examples.txt").read_text())
    commands = [["./blip2", "--quiet", "--cpu-isa", isa, *words[1:]] for words, _ in asked]
    verbose = ["./blip2", "-v", "--cpu-isa", isa, "demo/dogs.png"]
    got = results(machine.run(f"demo-{isa}", demo_files(machine.programs), [*commands, verbose]), len(commands) + 1)
    wrong = [f"FAIL {shlex.join(c)}: exit code {code}, expected '{want}', got '{text[-300:]}'"
             for c, (_, want), (code, text) in zip(commands, asked, got)
             if code != 0 or rounded(text) != rounded(want)]
    line = f"demo model, --cpu-isa {isa}: {len(asked) - len(wrong)} answers as expected, {len(wrong)} not"
    code, text = got[-1]
    if code != 0 or not re.search(rf"^cpu: {isa}$", text, re.MULTILINE):
        wrong.append(f"FAIL {shlex.join(verbose)}: exit code {code}, expected 'cpu: {isa}' in '{text[:300]}'")
    return not wrong and bool(asked), "\n".join([line, *wrong[:3]])


def control_without(machine: Machine) -> tuple[bool, str]:
    """A processor without AMX: the test must not pass there."""
    serial = machine.run("control-without", test_files(machine.programs), [["/test_matmul", "amx"]], "corei7_icelake_u")
    passed, line = judge_isa("amx", *results(serial, 1)[0])
    return not passed and "not on this processor" in line, f"control, a processor without AMX: {line}"


def control_mistake(machine: Machine) -> tuple[bool, str]:
    """A mistake in matmul_amx.h: the test must fail."""
    source = machine.folder / "mistake"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT, source, ignore=lambda folder, names: [n for n in names if Path(folder) == ROOT and (
        n.startswith(".") or n in ("build", "demo", "doc", "export"))])
    header = source / "matmul_amx.h"
    text = header.read_text()
    if text.count(MISTAKE[0]) != 1:
        fail(f"matmul_amx.h: {text.count(MISTAKE[0])} times '{MISTAKE[0]}', expected once")
    header.write_text(text.replace(*MISTAKE))
    make_static(source, "test_matmul")
    files = test_files(source / "build" / "static")
    passed, line = judge_isa("amx", *results(machine.run("control-mistake", files, [["/test_matmul", "amx"]]), 1)[0])
    caught = not passed and re.match(r"amx: \d+ passed, [1-9]\d* failed", line)
    return bool(caught), f"control, a mistake in matmul_amx.h: {line}"


# ----------------------------------------------------------------------------------------------------------


def version_of(bochs: Path) -> str:
    """What Bochs calls itself; an error where it has no AMX."""
    try:
        done = subprocess.run([bochs, "--help", "cpu"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        about = subprocess.run([bochs, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as e:
        fail(f"{bochs}: {e.strerror}; hint: --bochs names what dev/emulator/bochs.py built")
    found = re.search(r"Bochs x86 Emulator (\S+)", about.stdout + about.stderr)
    if not found:
        fail(f"{bochs}: does not say that it is Bochs; hint: --bochs names what dev/emulator/bochs.py built")
    if "sapphire_rapids" not in done.stdout + done.stderr:
        fail(f"{bochs}: Bochs {found.group(1)} without the processor sapphire_rapids; hint: build it with "
             "dev/emulator/bochs.py (Debian 12 has 2.7, which knows no AMX)")
    return found.group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bochs", type=Path, default=os.environ.get("BOCHS"), help="what bochs.py built; or BOCHS=")
    parser.add_argument("--kernel", type=Path, required=True, help="a Linux kernel, e.g. /boot/vmlinuz-...")
    parser.add_argument("--isa", default="", help="test_matmul with these only, e.g. amx,avxvnni")
    parser.add_argument("--demo", action="store_true", help="the demo model's answers with --cpu-isa amx")
    parser.add_argument("--controls", action="store_true", help="what must fail does")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="machines at a time [2]")
    parser.add_argument("--seconds", type=int, default=3600, metavar="N",
                        help="give up on a machine after this long [3600]")
    parser.add_argument("--programs", type=Path, metavar="FOLDER", help="test_matmul and blip2, linked statically, are "
                        "there already [make them in build/static]")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "emulator", metavar="FOLDER",
                        help="for all files that are made [build/emulator]")
    args = parser.parse_args()
    if not args.bochs:
        fail("which Bochs? hint: --bochs FILE, made by dev/emulator/bochs.py")
    isas = [i for i in args.isa.split(",") if i]
    for isa in isas:
        if isa not in ISAS:
            fail(f"--isa {isa}: expected some of {', '.join(ISAS)}")
    everything = not (isas or args.demo or args.controls)
    if not args.kernel.is_file():
        fail(f"{args.kernel}: no such file; hint: /boot/vmlinuz-..., or one out of a package (doc/matmul.md)")
    split_kernel(args.kernel.read_bytes(), str(args.kernel))
    bochs = Path(shutil.which(args.bochs) or args.bochs).resolve()
    print(f"Bochs {version_of(bochs)}, {args.kernel.name}", flush=True)

    folder = args.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    compile_guest(folder)
    if not args.programs:
        make_static(ROOT, "test_matmul", "blip2")
    machine = Machine(bochs, args.kernel, folder, args.programs or ROOT / "build" / "static", args.seconds)
    tests = [(test_isa, machine, isa) for isa in (ISAS if everything else isas)]
    if args.demo or everything:
        tests.insert(0, (test_demo, machine, "amx"))
    if args.controls or everything:
        tests += [(control_without, machine), (control_mistake, machine)]
    passed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for good, line in pool.map(lambda t: t[0](*t[1:]), tests):
            passed += good
            print(f"{'ok  ' if good else 'FAIL'} {line}", flush=True)
    print(f"{passed} passed, {len(tests) - passed} failed, 0 skipped")
    return passed != len(tests)


if __name__ == "__main__":
    sys.exit(main())
