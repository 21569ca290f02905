//! Chance comes from the seed alone.
//!
//! The libraries under test take it in three ways: openraft's election time-outs from `rand`, the order
//! of a hash map and of `tokio::select!` from the standard library's random state. All end in the C
//! library's `getrandom`. In this binary that symbol is ours, and answers with numbers from the seed: one
//! seed gives one run, without `--cfg tokio_unstable` and without another random generator in the product.
//! `one_seed_gives_one_run` checks that.

use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on everything random in this process follows from `seed`. Threads that asked for chance
/// before keep what they got, so a run begins on a thread of its own.
pub fn begin(seed: u64) {
    STATE.store(seed.wrapping_mul(0xD134_2543_DE82_EF95), Ordering::SeqCst);
}

fn next_byte() -> u8 {
    let mut z = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z >> 56) as u8
}

/// Stands before the C library's function of this name.
///
/// # Safety
/// As there: `buffer` has room for `length` bytes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        // SAFETY: the caller owns `length` bytes from `buffer` on, see above.
        unsafe { buffer.add(at).write(next_byte()) };
    }
    length.cast_signed()
}
