//! What a program without libc must bring itself, beside its first instruction (`start.rs`): the
//! memory functions that the compiler calls, and a personality symbol the prebuilt `core` refers
//! to.

use core::arch::asm;

/// The arguments the kernel put on the stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProgramArgs {
    stack: *const usize,
}

impl ProgramArgs {
    /// The `n`th argument.
    pub(crate) fn get(self, n: usize) -> Option<&'static [u8]> {
        // SAFETY: argc is at the entry stack pointer.
        let argc = unsafe { *self.stack };
        if n >= argc {
            return None;
        }
        // SAFETY: argv[0] to argv[argc - 1] follow it.
        let arg = unsafe { self.stack.wrapping_add(1 + n).read() };
        let arg = core::ptr::with_exposed_provenance::<core::ffi::c_char>(arg);
        // SAFETY: the kernel terminates arguments, and they stay for the life of the program.
        Some(unsafe { core::ffi::CStr::from_ptr(arg) }.to_bytes())
    }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller promises both areas; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") dest => _, inout("rsi") src => _,
            options(nostack, preserves_flags));
    }
    dest
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    if dest.addr().wrapping_sub(src.addr()) >= n {
        // SAFETY: copying upwards never overwrites what is still to be read here.
        return unsafe { memcpy(dest, src, n) };
    }
    // SAFETY: downwards, from the last byte; the direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rcx") n => _,
            inout("rdi") dest.wrapping_add(n).wrapping_sub(1) => _,
            inout("rsi") src.wrapping_add(n).wrapping_sub(1) => _,
            options(nostack));
    }
    dest
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dest: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller promises the area.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") dest => _, in("eax") value,
            options(nostack, preserves_flags));
    }
    dest
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    while i < n {
        // SAFETY: `i < n`, and the caller promises `n` bytes.
        let x = unsafe { a.wrapping_add(i).read() };
        // SAFETY: as above.
        let y = unsafe { b.wrapping_add(i).read() };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        i += 1;
    }
    0
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: as the caller promises.
    unsafe { memcmp(a, b, n) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(s: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the caller promises a terminator.
    while unsafe { s.wrapping_add(n).read() } != 0 {
        n += 1;
    }
    n
}

/// The agent's tables: zero pages until they are used.
struct AgentCell(core::cell::UnsafeCell<crate::agent::Agent>);

// SAFETY: the program has one thread, and `begin` hands the contents out once.
unsafe impl Sync for AgentCell {}

static AGENT: AgentCell = AgentCell(core::cell::UnsafeCell::new(crate::agent::Agent::new()));

/// The arguments and the agent. To be called once, by the program's entry.
pub(crate) fn begin(stack: *const usize) -> (ProgramArgs, &'static mut crate::agent::Agent) {
    // SAFETY: called once, so this is the only reference.
    let agent = unsafe { &mut *AGENT.0.get() };
    (ProgramArgs { stack }, agent)
}
