//! What the compiler calls for copying and clearing memory. The C library's own choose among several by the
//! processor, in start-up code that this program does not have.

/// # Safety
/// As in C: `to` can be written and `from` read for `count` bytes, and they do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    for at in 0..count {
        // SAFETY: within both, as the caller promises.
        unsafe { *to.add(at) = *from.add(at) };
    }
    to
}

/// # Safety
/// As in C: `to` can be written for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    for at in 0..count {
        // SAFETY: within it, as the caller promises.
        unsafe { *to.add(at) = byte as u8 };
    }
    to
}
