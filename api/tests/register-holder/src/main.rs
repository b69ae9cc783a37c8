//! Holds values in all vector and mask registers that the processor has, and looks again and again
//! whether they are still there: for tests of what a saved and restored machine keeps. It runs in a
//! guest and prints a line for each look; it ends with status 1 at the first value that is lost.
#![expect(
    unsafe_code,
    reason = "registers are filled and read by machine instructions"
)]
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::arch::asm;
use std::io::Write;
use std::process::ExitCode;

/// Turns of an empty loop during which nothing but the registers has the values: a second or so on
/// an emulated processor.
const HOLD: u64 = 20_000_000;

/// `zmm0` to `zmm31`, then `k1` to `k7`; with less than AVX-512, `ymm` or `xmm` 0 to 15.
#[repr(C, align(64))]
#[derive(Clone, PartialEq)]
struct Registers {
    vectors: [[u64; 8]; 32],
    masks: [u64; 8],
}

impl Registers {
    /// Another value in each 64 bits of each.
    fn filled(seed: u64) -> Self {
        let mut value = seed;
        let mut next = || {
            value = value
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            value
        };
        let mut filled = Self {
            vectors: [[0; 8]; 32],
            masks: [0; 8],
        };
        filled
            .vectors
            .iter_mut()
            .flatten()
            .for_each(|v| *v = next());
        // A mask has 64 bits with AVX-512BW, which all processors with these tests have.
        filled.masks[1..].iter_mut().for_each(|m| *m = next());
        filled
    }
}

/// What a processor has.
#[derive(Clone, Copy)]
struct Width {
    name: &'static str,
    /// How many vector registers, and how many of their 64-bit parts.
    count: usize,
    parts: usize,
    masks: bool,
    hold: fn(&Registers, &mut Registers),
}

fn width() -> Width {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        return Width {
            name: "avx512",
            count: 32,
            parts: 8,
            masks: true,
            hold: hold_zmm,
        };
    }
    let narrow = Width {
        name: "sse",
        count: 16,
        parts: 2,
        masks: false,
        hold: hold_xmm,
    };
    if is_x86_feature_detected!("avx") {
        return Width {
            name: "avx",
            parts: 4,
            hold: hold_ymm,
            ..narrow
        };
    }
    narrow
}

/// Fills registers from `$from`, waits, and stores them to `$to`.
macro_rules! hold {
    (
        $from:expr, $to:expr,
        $move:literal, $register:literal, [$($n:literal)*], $($mask:literal)*
    ) => {
        // SAFETY: both are 2 KiB of vectors and 64 bytes of masks, aligned to 64 bytes; the caller
        // has seen that the processor has these registers, and each is named as changed.
        unsafe {
            asm!(
                $(concat!($move, " ", $register, $n, ", [{from} + 64 * ", $n, "]"),)*
                $(concat!("kmovq k", $mask, ", [{from} + 2048 + 8 * ", $mask, "]"),)*
                "2:",
                "dec {turns}",
                "jnz 2b",
                $(concat!($move, " [{to} + 64 * ", $n, "], ", $register, $n),)*
                $(concat!("kmovq [{to} + 2048 + 8 * ", $mask, "], k", $mask),)*
                from = in(reg) $from,
                to = in(reg) $to,
                turns = inout(reg) HOLD => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
    };
}

/// The registers above 15 and the masks are nobody else's: this program is compiled for processors
/// without them.
fn hold_zmm(from: &Registers, to: &mut Registers) {
    hold!(from, to, "vmovdqu64", "zmm",
        [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
         16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31],
        1 2 3 4 5 6 7);
}

fn hold_ymm(from: &Registers, to: &mut Registers) {
    hold!(from, to, "vmovdqu", "ymm", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15],);
}

fn hold_xmm(from: &Registers, to: &mut Registers) {
    hold!(from, to, "movdqu", "xmm", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15],);
}

/// The first register that does not have its value, by name.
fn lost(width: Width, want: &Registers, have: &Registers) -> Option<String> {
    let vector = (0..width.count)
        .find(|&i| want.vectors[i][..width.parts] != have.vectors[i][..width.parts])
        .map(|i| format!("vector register {i}"));
    vector.or_else(|| {
        (1..8)
            .find(|&i| width.masks && want.masks[i] != have.masks[i])
            .map(|i| format!("mask register {i}"))
    })
}

fn main() -> ExitCode {
    let width = width();
    println!("{}", width.name);
    for look in 1.. {
        let want = Registers::filled(look);
        let mut have = Registers::filled(0);
        (width.hold)(&want, &mut have);
        if let Some(name) = lost(width, &want, &have) {
            println!("lost {name} in look {look}");
            return ExitCode::FAILURE;
        }
        println!("{look}");
        if std::io::stdout().flush().is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}
