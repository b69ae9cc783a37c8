//! The program's first instruction. Nobody here calls it: the kernel does.

use core::arch::global_asm;

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp", // argc, argv, envp as the kernel left them
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym crate::run_program,
);
