//! SQLite's session extension: records what a transaction changes. The rows themselves are read by [`super::changeset`].

use super::failure::Failure;
use bytes::Bytes;
use rusqlite::{Connection, ffi};
use std::marker::PhantomData;
use std::ptr;

/// A recording of every change to `main`, from its beginning to its end. Savepoints rolled back in between leave nothing in it.
pub struct Session<'conn> {
    raw: *mut ffi::sqlite3_session,
    conn: PhantomData<&'conn Connection>,
}

#[allow(unsafe_code)]
impl<'conn> Session<'conn> {
    /// Begins to record on this connection.
    pub fn begin(conn: &'conn Connection) -> Result<Session<'conn>, Failure> {
        let mut raw = ptr::null_mut();
        let mut sized: std::ffi::c_int = 1;
        // SAFETY: the handle is open for as long as `conn` lives, which outlives the session by its lifetime; the name is a literal;
        // `sized` is read during the call alone. A null table name attaches all tables.
        let code = unsafe {
            match ffi::sqlite3session_create(conn.handle(), c"main".as_ptr(), &raw mut raw) {
                ffi::SQLITE_OK => {
                    match ffi::sqlite3session_object_config(raw, ffi::SQLITE_SESSION_OBJCONFIG_SIZE, (&raw mut sized).cast()) {
                        ffi::SQLITE_OK => ffi::sqlite3session_attach(raw, ptr::null()),
                        code => code,
                    }
                }
                code => code,
            }
        };
        let session = Session { raw, conn: PhantomData };
        match code {
            ffi::SQLITE_OK => Ok(session),
            code => Err(Failure::Broken(format!("SQLite cannot record changes (code {code})"))),
        }
    }

    /// An upper bound of the changeset's size so far, in bytes.
    pub fn size(&self) -> u64 {
        // SAFETY: the session is alive.
        unsafe { ffi::sqlite3session_changeset_size(self.raw) }.max(0) as u64
    }

    /// All changes so far, after `head`, in SQLite's changeset format.
    pub fn changeset(&self, head: Vec<u8>) -> Result<Bytes, Failure> {
        let mut size = 0;
        let mut buffer = ptr::null_mut();
        // SAFETY: the session is alive; on success SQLite hands over `size` bytes, which are copied and given back once.
        let code = unsafe { ffi::sqlite3session_changeset(self.raw, &raw mut size, &raw mut buffer) };
        let mut bytes = head;
        if !buffer.is_null() {
            // SAFETY: as above.
            unsafe {
                bytes.extend_from_slice(std::slice::from_raw_parts(buffer.cast::<u8>(), size.max(0) as usize));
                ffi::sqlite3_free(buffer);
            }
        }
        match code {
            ffi::SQLITE_OK => Ok(Bytes::from(bytes)),
            code => Err(Failure::Broken(format!("SQLite could not record every change (code {code})"))),
        }
    }
}

#[allow(unsafe_code)]
impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created once, deleted once, while the connection is open.
            unsafe { ffi::sqlite3session_delete(self.raw) }
        }
    }
}
