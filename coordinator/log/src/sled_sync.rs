//! What sled calls to have its writes on the disk, in the place of libc's function of that name: that one leaves them, and a file's new
//! length, in the disk's cache or the system's memory. Sled counts on them all the same: it overwrites a segment as soon as what it moved
//! from there is written, and its thread, which moves most, waits for nobody's force. Power lost then takes both.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};

/// How often sled has had its writes forced, in this process.
pub fn forces() -> u64 {
    FORCES.load(Ordering::Relaxed)
}

static FORCES: AtomicU64 = AtomicU64::new(0);

/// So that it is in every program that has sled in it.
#[used]
static IN_PLACE: extern "C" fn(c_int, i64, i64, c_uint) -> c_int = sync_file_range;

/// `sync_file_range(2)`, but that all of the file survives power loss afterwards.
#[allow(unsafe_code)]
// SAFETY: as libc's declaration of it has it; nothing else in this process calls it.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(descriptor: c_int, _offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
    unsafe extern "C" {
        fn fdatasync(descriptor: c_int) -> c_int;
    }
    FORCES.fetch_add(1, Ordering::Relaxed);
    // SAFETY: it takes any number, and tells of one that is no open file.
    unsafe { fdatasync(descriptor) }
}
