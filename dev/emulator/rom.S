// dev/emulator/rom.S: the firmware of the emulated machine: from the reset vector into Linux, laid there by run.py.
//
// Linux wants to be entered in 32-bit mode with flat segments 0x10 (code) and 0x18 (data), interrupts off, and the
// address of its parameters in esi: Documentation/arch/x86/boot.rst, "32-bit boot protocol". Assembled and linked at 0,
// it is 64 KB, which the machine sees at 0xF0000. Not here: anything that a BIOS does; Linux asks none on this path.

        .set PARAMETERS, 0x90000        // as in run.py
        .set KERNEL, 0x100000

        .code16
        .globl _start
_start: cli
        movw    %cs, %ax
        movw    %ax, %ds
        lgdtl   table
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $0x10, $0xF0000 + flat

        .code32
flat:   movw    $0x18, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movl    $PARAMETERS, %esp
        xorl    %ebp, %ebp
        xorl    %edi, %edi
        xorl    %ebx, %ebx
        movl    $PARAMETERS, %esi
        movl    $KERNEL, %eax
        jmp     *%eax

        .balign 8
gdt:    .quad   0, 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
table:  .word   . - gdt - 1
        .long   0xF0000 + gdt

        .org    0xFFF0
        .code16
        ljmpw   $0xF000, $_start
        .org    0x10000
