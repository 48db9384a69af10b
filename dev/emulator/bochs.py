"""Builds Bochs, the emulator of x86 processors, with what Linux wants to see before it lets a program use AMX.

    git clone https://github.com/bochs-emu/Bochs      (commit 783b58f of August 2026 was tried)
    python3 dev/emulator/bochs.py Bochs/bochs FOLDER [--jobs N]

The source is copied to FOLDER and changed and built there; FOLDER/bochs is what run.py takes as --bochs. It needs a
C++ compiler and make, and takes some minutes. Nothing is downloaded or installed.

Why changed: Bochs knows AMX, but not XFD ("extended feature disable"), by which a system lets the first tile
instruction of a program trap, so that it makes room for 8 KB of tiles only in programs that use them. Without XFD Linux
(arch/x86/kernel/fpu/xstate.c) does not switch tiles on at all. EDITS adds it, as Intel's manual has it (volume 1,
section 13.14): two MSRs, their bits of CPUID, #NM where the MSR says so. Left out: what XFD changes in XSAVE and XRSTOR,
which Linux never asks for tiles that it has disabled. Two edits more: TDPBSSD
multiplied bytes without their signs; files that run.py lays in memory would all land at address 0, since the address
lines are opened only afterwards. The rest of the arithmetic of tiles is Bochs's own.

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

# file, text that must be there once, what comes behind it
EDITS = [
    ("main.cc", "// Then load the optional RAM images", "\n  bx_pc_system.a20_mask = ~(bx_phy_address)0;"),
    ("cpu/cpu.h", "Bit64u ia32_xss;", "\n  Bit64u ia32_xfd, ia32_xfd_error;"),
    ("cpu/init.cc", "BX_CPU_THIS_PTR msr.ia32_xss = 0;",
     "\n  BX_CPU_THIS_PTR msr.ia32_xfd = BX_CPU_THIS_PTR msr.ia32_xfd_error = 0;"),
    ("cpu/cpuid.cc", "if (is_cpu_extension_supported(BX_ISA_XSAVES))\n      leaf->eax |= (1<<3);",
     "\n    if (is_cpu_extension_supported(BX_ISA_AMX)) leaf->eax |= (1<<4);"),
    ("cpu/crregs.cc", "xsave_restore[xcr0_t::BX_XCR0_XTILEDATA_BIT].attr   = BX_XSAVE_ALIGN64", " | 4"),
    ("cpu/msr.cc", 'msr_desc[BX_MSR_XSS] = new MSR_Descriptor("MSR_IA32_XSS", BX_ISA_XSAVES, '
     "~Bit64u(get_ia32_xss_allow_mask()));",
     "\n  msr_desc[0x1c4] = new MSR_Descriptor(\"MSR_IA32_XFD\", BX_ISA_AMX, ~BX_CONST64(0x40000));"
     "\n  msr_desc[0x1c5] = new MSR_Descriptor(\"MSR_IA32_XFD_ERR\", BX_ISA_AMX, ~BX_CONST64(0x40000));"),
    ("cpu/msr.cc", "val64 = BX_CPU_THIS_PTR msr.ia32_xss;\n      break;",
     "\n    case 0x1c4: val64 = BX_CPU_THIS_PTR msr.ia32_xfd; break;"
     "\n    case 0x1c5: val64 = BX_CPU_THIS_PTR msr.ia32_xfd_error; break;"),
    ("cpu/msr.cc", "BX_CPU_THIS_PTR msr.ia32_xss = val_64;\n      break;",
     "\n    case 0x1c4:"
     "\n      BX_CPU_THIS_PTR msr.ia32_xfd = val_64;"
     "\n      handleAvxModeChange();"
     "\n      updateFetchModeMask();"
     "\n      break;"
     "\n    case 0x1c5: BX_CPU_THIS_PTR msr.ia32_xfd_error = val_64; break;"),
    # TDPBSSD took signed bytes for unsigned ones; Intel's manual, volume 2, has them sign-extended
    ("cpu/avx/amx.cc", "BX_CPP_INLINE Bit32u DPBDSS(Bit32u x, Bit32u y)\n{",
     "\n  Bit32s sum = 0;"
     "\n  for (int n = 0; n < 32; n += 8) sum += Bit32s(Bit8s(x >> n)) * Bit32s(Bit8s(y >> n));"
     "\n  return Bit32u(sum);\n"),
    # no tile instruction is decoded as one while XFD forbids tiles; what then runs in its place says why
    ("cpu/proc_ctrl.cc", "if (! long64_mode() || ! BX_CPU_THIS_PTR cr4.get_OSXSAVE() ||",
     "\n      (BX_CPU_THIS_PTR msr.ia32_xfd & BX_XCR0_XTILEDATA_MASK) != 0 ||"),
    ("cpu/proc_ctrl.cc", "if (~BX_CPU_THIS_PTR xcr0.get32() & (BX_XCR0_XTILECFG_MASK | BX_XCR0_XTILEDATA_MASK))\n"
     "    exception(BX_UD_EXCEPTION, 0);",
     "\n\n  if (BX_CPU_THIS_PTR msr.ia32_xfd & BX_XCR0_XTILEDATA_MASK) {"
     "\n    BX_CPU_THIS_PTR msr.ia32_xfd_error = BX_XCR0_XTILEDATA_MASK;"
     "\n    exception(BX_NM_EXCEPTION, 0);"
     "\n  }"),
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
    """Puts the text of each edit behind its anchor."""
    for name, anchor, addition in edits or EDITS:
        path = folder / name
        text = path.read_text(encoding="latin-1") if path.is_file() else ""
        if text.count(anchor) != 1:
            fail(f"{path}: {text.count(anchor)} times '{anchor.splitlines()[0]}', expected once; "
                 "hint: this Bochs is another than dev/emulator/bochs.py was written for (doc/matmul.md)")
        path.write_text(text.replace(anchor, anchor + addition), encoding="latin-1")


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
