//! The allocator of the daemon's memory.

/// Requests, votes and redos are made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What an ended thread leaves free goes back to the system at once: an index ends several with each commit, and what waited for their
/// successors was a fifth of the daemon's memory. To be called before there is a second thread.
pub fn give_back_of_ended_threads() {
    /// `mi_option_abandoned_page_purge` of mimalloc.h, which keeps the places of its options from version to version.
    const ABANDONED_PAGE_PURGE: libmimalloc_sys::mi_option_t = 12;
    #[allow(unsafe_code)]
    // SAFETY: no other thread reads or sets options yet; a place that is none is ignored.
    unsafe {
        libmimalloc_sys::mi_option_set_enabled(ABANDONED_PAGE_PURGE, true);
    }
}
