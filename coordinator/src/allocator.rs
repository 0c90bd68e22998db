//! The allocator of the daemon's memory.

/// Requests, votes and redos are made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_abandoned_page_purge` of mimalloc.h, which keeps the places of its options from version to version.
const ABANDONED_PAGE_PURGE: libmimalloc_sys::mi_option_t = 12;

/// What an ended thread leaves free goes back to the system at once: an index ends several with each commit, and what waited for their
/// successors was a fifth of the daemon's memory. To be called before there is a second thread.
pub fn give_back_of_ended_threads() {
    #[allow(unsafe_code)]
    // SAFETY: no other thread reads or sets options yet; a place that is none is ignored.
    unsafe {
        libmimalloc_sys::mi_option_set_enabled(ABANDONED_PAGE_PURGE, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Its name in the environment leads to the place that is set here.
    #[test]
    fn the_option_is_where_it_is_set() {
        const NAME: &str = "MIMALLOC_ABANDONED_PAGE_PURGE";
        if std::env::var_os(NAME).is_some() {
            #[allow(unsafe_code)]
            // SAFETY: nothing sets options meanwhile.
            let value = unsafe { libmimalloc_sys::mi_option_get(ABANDONED_PAGE_PURGE) };
            assert_eq!(value, 7);
            return;
        }
        let this = std::env::current_exe().unwrap();
        let it = Command::new(this).args(["--exact", "allocator::tests::the_option_is_where_it_is_set"]).env(NAME, "7").output().unwrap();
        let said = String::from_utf8_lossy(&it.stdout);
        assert!(it.status.success() && said.contains("1 passed"), "{said}");
    }
}
