//! A connection with its callbacks: the authorizer, the deadline, the count of frames in the write-ahead log.

use super::authorizer::{self, Action, Mode, Reason};
use super::schema::Schema;
use rusqlite::{Connection, ffi};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A connection that asks [`Hooks`] what it may do and for how long.
///
/// The connection is declared first, so that it is closed before the hooks that its callbacks point to are freed.
pub struct Guarded {
    conn: Connection,
    /// What the callbacks read and write.
    pub hooks: Box<Hooks>,
}

/// What a connection's callbacks share with its owner. Callbacks run only inside calls on the connection, on the same thread.
pub struct Hooks {
    /// Whose statement is being compiled.
    pub mode: Cell<Mode>,
    /// The tables.
    pub schema: RefCell<Schema>,
    /// Why the authorizer last said No.
    pub reason: RefCell<Option<Reason>>,
    /// When a running statement is interrupted.
    pub deadline: Cell<Option<Instant>>,
    /// Whether it is interrupted at once; others may say so.
    pub stop: Arc<AtomicBool>,
    /// Frames in the write-ahead log after the last commit.
    pub wal_frames: Cell<u32>,
}

/// Virtual machine steps between two looks at the clock.
const STEPS: c_int = 1000;

#[allow(unsafe_code)]
impl Guarded {
    /// Installs the callbacks, once: SQLite compiles every statement anew when they change. A value or row of more than `value_bytes`
    /// is refused by SQLite itself.
    pub fn new(conn: Connection, mode: Mode, value_bytes: usize, stop: Arc<AtomicBool>) -> Guarded {
        let hooks = Box::new(Hooks {
            mode: Cell::new(mode),
            schema: RefCell::default(),
            reason: RefCell::default(),
            deadline: Cell::new(None),
            stop,
            wal_frames: Cell::new(0),
        });
        let context = (&raw const *hooks).cast_mut().cast::<c_void>();
        let value_bytes = c_int::try_from(value_bytes).unwrap_or(c_int::MAX);
        // SAFETY: the handle is open; `context` points into a box that is freed only after the connection is closed (field order), and
        // the callbacks only ever make a shared reference of it.
        unsafe {
            let db = conn.handle();
            ffi::sqlite3_set_authorizer(db, Some(authorize), context);
            ffi::sqlite3_progress_handler(db, STEPS, Some(is_late), context);
            ffi::sqlite3_wal_hook(db, Some(committed), context);
            ffi::sqlite3_limit(db, ffi::SQLITE_LIMIT_LENGTH, value_bytes);
            ffi::sqlite3_limit(db, ffi::SQLITE_LIMIT_ATTACHED, 0);
        }
        Guarded { conn, hooks }
    }

    /// Whether the open transaction leaves a foreign key unresolved.
    pub fn violates_foreign_keys(&self) -> bool {
        let (mut now, mut high) = (0, 0);
        // SAFETY: the handle is open; both numbers outlive the call.
        let code = unsafe { ffi::sqlite3_db_status(self.conn.handle(), ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &raw mut now, &raw mut high, 0) };
        assert_eq!(code, ffi::SQLITE_OK, "SQLite does not tell of its deferred foreign keys");
        now != 0
    }
}

impl Guarded {
    /// Runs `compile` with statements judged as a client's; gives the authorizer's reason beside an error.
    pub fn judged<'a, T>(
        &'a self,
        mode: Mode,
        compile: impl FnOnce(&'a Connection) -> rusqlite::Result<T>,
    ) -> Result<T, (rusqlite::Error, Option<Reason>)> {
        self.hooks.reason.take();
        let before = self.hooks.mode.replace(mode);
        let result = compile(&self.conn);
        self.hooks.mode.set(before);
        result.map_err(|error| (error, self.hooks.reason.borrow_mut().take()))
    }
}

impl Deref for Guarded {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.conn
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn authorize(
    context: *mut c_void,
    code: c_int,
    first: *const c_char,
    second: *const c_char,
    database: *const c_char,
    accessor: *const c_char,
) -> c_int {
    // SAFETY: `context` is the hooks' box (see `Guarded::new`); SQLite's strings are NUL-terminated, or null, and live during the call.
    let (hooks, [first, second, database, accessor]) =
        unsafe { (&*context.cast::<Hooks>(), [first, second, database, accessor].map(|text| text_of(text))) };
    if hooks.mode.get() == Mode::Trusted {
        return ffi::SQLITE_OK;
    }
    match authorizer::authorize(hooks.mode.get(), &hooks.schema.borrow(), &Action { code, first, second, database, accessor }) {
        Ok(()) => ffi::SQLITE_OK,
        Err(reason) => {
            hooks.reason.borrow_mut().get_or_insert(reason);
            ffi::SQLITE_DENY
        }
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn is_late(context: *mut c_void) -> c_int {
    // SAFETY: see `Guarded::new`.
    let hooks = unsafe { &*context.cast::<Hooks>() };
    (hooks.stop.load(Ordering::Relaxed) || hooks.deadline.get().is_some_and(|deadline| Instant::now() >= deadline)).into()
}

#[allow(unsafe_code)]
unsafe extern "C" fn committed(context: *mut c_void, _: *mut ffi::sqlite3, _: *const c_char, frames: c_int) -> c_int {
    // SAFETY: see `Guarded::new`.
    let hooks = unsafe { &*context.cast::<Hooks>() };
    hooks.wal_frames.set(frames.max(0).cast_unsigned());
    ffi::SQLITE_OK
}

#[allow(unsafe_code)]
unsafe fn text_of<'a>(text: *const c_char) -> &'a str {
    if text.is_null() {
        return "";
    }
    // SAFETY: the caller vouches for the terminator and the lifetime.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("")
}
