"""Builds Bochs, the emulator of x86 processors, with what Linux wants to see before it lets a program use AMX.

    git clone https://github.com/bochs-emu/Bochs      (commit 783b58f of August 2026 was tried)
    python3 dev/emulator/bochs.py Bochs/bochs FOLDER [--jobs N]

The source is copied to FOLDER and changed and built there; FOLDER/bochs is what run.py takes as --bochs. It needs a
C++ compiler and make, and takes some minutes. Nothing is downloaded or installed.

Why changed: Bochs knows AMX, but not XFD ("extended feature disable"), by which a system lets the first tile
instruction of a program trap, so that it makes room for 8 KB of tiles only in programs that use them. Without XFD
Linux (arch/x86/kernel/fpu/xstate.c) does not switch tiles on at all. EDITS adds it, as Intel's manual has it (volume
1, section 13.14): two MSRs, their bits of CPUID, #NM where the MSR says so. Left out: what XFD changes in XSAVE and
XRSTOR, which Linux never asks for tiles that it has disabled. Two edits more: TDPBSSD took signed bytes for unsigned
ones; files that run.py lays in memory would all land at address 0, since the address lines are opened only afterwards.
The rest of the arithmetic of tiles is Bochs's own. Of Bochs's source nothing is here but the words that an edit looks
for.

In order: the edits, editing, building. Not here: running it (run.py).
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Without a display, devices that the guest has no use for, and debugging.
CONFIGURE = ["--with-nogui", "--enable-cpu-level=6", "--enable-x86-64", "--enable-avx", "--enable-evex",
             "--enable-amx", "--enable-all-optimizations", "--disable-docbook", "--disable-large-ramfile"]

# File, words that are there once (and words first met behind those), before or behind their line, lines of ours.
EDITS = [
    ("main.cc", ["load the optional RAM images"], "behind", "  bx_pc_system.a20_mask = ~(bx_phy_address)0;"),

    # XFD: the two MSRs, which start at 0; only the bit of the tiles' data can be set
    ("cpu/cpu.h", ["ia32_xss;"], "behind", "  Bit64u ia32_xfd, ia32_xfd_error;"),
    ("cpu/init.cc", ["msr.ia32_xss = 0;"], "behind",
     "  BX_CPU_THIS_PTR msr.ia32_xfd = BX_CPU_THIS_PTR msr.ia32_xfd_error = 0;"),
    ("cpu/msr.cc", ["msr_desc[BX_MSR_XSS]"], "behind", """\
  msr_desc[0x1c4] = new MSR_Descriptor("MSR_IA32_XFD", BX_ISA_AMX, ~BX_CONST64(0x40000));
  msr_desc[0x1c5] = new MSR_Descriptor("MSR_IA32_XFD_ERR", BX_ISA_AMX, ~BX_CONST64(0x40000));"""),
    ("cpu/msr.cc", ["case BX_MSR_XSS:\n"], "before", """\
    case 0x1c4: val64 = BX_CPU_THIS_PTR msr.ia32_xfd; break;
    case 0x1c5: val64 = BX_CPU_THIS_PTR msr.ia32_xfd_error; break;"""),
    ("cpu/msr.cc", ["case BX_MSR_XSS: "], "before", """\
    case 0x1c4:
      BX_CPU_THIS_PTR msr.ia32_xfd = val_64;
      handleAvxModeChange();
      updateFetchModeMask();
      break;
    case 0x1c5: BX_CPU_THIS_PTR msr.ia32_xfd_error = val_64; break;"""),

    # XFD: CPUID has it, for the tiles' data
    ("cpu/cpuid.cc", ["eax |= (1<<3)"], "behind",
     "    if (is_cpu_extension_supported(BX_ISA_AMX)) leaf->eax |= (1<<4);"),
    ("cpu/crregs.cc", ["XTILEDATA_BIT].attr"], "behind",
     "    xsave_restore[xcr0_t::BX_XCR0_XTILEDATA_BIT].attr |= 4;"),

    # XFD: no tile instruction is decoded as one while it forbids tiles; what then runs in its place says why
    ("cpu/proc_ctrl.cc", [" set_amx_ok();"], "behind",
     "  if (BX_CPU_THIS_PTR msr.ia32_xfd & BX_XCR0_XTILEDATA_MASK) clear_amx_ok();"),
    ("cpu/proc_ctrl.cc", ["BX_CPU_C::BxNoAMX", "BX_ASSERT(0)"], "before", """\
  if (BX_CPU_THIS_PTR msr.ia32_xfd & BX_XCR0_XTILEDATA_MASK) {
    BX_CPU_THIS_PTR msr.ia32_xfd_error = BX_XCR0_XTILEDATA_MASK;
    exception(BX_NM_EXCEPTION, 0);
  }"""),

    # TDPBSSD: signed bytes by signed bytes (Intel's Intrinsics Guide, _tile_dpbssd); returns before what it did
    ("cpu/avx/amx.cc", ["Bit32u DPBDSS(", "{"], "behind", """\
  Bit32s sum = 0;
  for (int n = 0; n < 32; n += 8) sum += Bit32s(Bit8s(x >> n)) * Bit32s(Bit8s(y >> n));
  return Bit32u(sum);"""),
]


def fail(text: str):
    sys.exit(f"bochs.py: {text}")


def release(source: Path) -> str:
    """What the source calls itself, e.g. 3.0.devel."""
    configure = source / "configure"
    if not configure.is_file():
        fail(f"{source}: no configure in it; hint: the folder bochs/ of Bochs's repository, or an unpacked release")
    found = re.search(r'^VERSION="([^"]*)"', configure.read_text(errors="replace"), re.MULTILINE)
    if not found:
        fail(f"{configure}: no VERSION; is this Bochs?")
    if re.match(r"[0-2]\.|3\.0$", found.group(1)):
        fail(f"{source}: Bochs {found.group(1)}, expected one after release 3.0, where AMX and XSAVE were put right")
    return found.group(1)


def edit(folder: Path, edits=None):
    """Puts the lines of each edit before or behind the line that its words lead to."""
    for name, words, side, lines in edits or EDITS:
        path = folder / name
        text = path.read_text(encoding="latin-1") if path.is_file() else ""
        at = text.find(words[0])
        for word in words[1:]:
            at = text.find(word, at) if at >= 0 else -1
        if at < 0 or text.count(words[0]) != 1:
            fail(f"{path}: {text.count(words[0])} times '{' ... '.join(words).strip()}', expected once; "
                 "hint: this Bochs is another than dev/emulator/bochs.py was written for (doc/matmul.md)")
        at = text.rfind("\n", 0, at) + 1 if side == "before" else text.find("\n", at) + 1 or len(text)
        path.write_text(text[:at] + lines + "\n" + text[at:], encoding="latin-1")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of Bochs's source, the one with configure")
    parser.add_argument("folder", type=Path, help="a new folder to build in")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="compile N files at a time")
    args = parser.parse_args()
    version = release(args.source)
    if args.folder.exists():
        fail(f"{args.folder} exists already; hint: name a new folder")
    shutil.copytree(args.source, args.folder, symlinks=True)
    edit(args.folder)
    log = args.folder / "build.log"
    with log.open("w") as out:
        for command in (["sh", "./configure", *CONFIGURE], ["make", f"-j{args.jobs}", "bochs"]):
            if subprocess.run(command, cwd=args.folder, stdout=out, stderr=subprocess.STDOUT).returncode:
                fail(f"{' '.join(command[:2])} failed; hint: {log} says why")
    print(f"Bochs {version} with XFD: {args.folder / 'bochs'}")


if __name__ == "__main__":
    main()
