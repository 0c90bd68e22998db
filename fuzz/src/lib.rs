//! Bad input at machine speed: each target is a function that takes any bytes, feeds them to the real code, and panics if a promise is broken.
//!
//! The fuzzer (`./fuzz/run`) looks for bytes that reach new code; what it has found is kept in `corpus/`, and what broke something in
//! `findings/`. The ordinary tests play both again.

mod coordinator_sessions;
mod input;
mod log_folder;
mod log_records;
mod messages;
mod participant_sessions;
mod settings;
mod stores;
mod texts;

pub use coordinator_sessions::coordinator_sessions;
pub use log_folder::log_folder;
pub use log_records::log_records;
pub use messages::{client_messages, participant_messages};
pub use participant_sessions::participant_sessions;
pub use settings::{command_lines, configuration};
pub use stores::{documents, opensearch_documents, postgres_statements, postgres_texts, statements};
pub use texts::texts;

/// A target: its name, and what it does with its input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("log_records", log_records),
    ("log_folder", log_folder),
    ("client_messages", client_messages),
    ("participant_messages", participant_messages),
    ("coordinator_sessions", coordinator_sessions),
    ("participant_sessions", participant_sessions),
    ("statements", statements),
    ("documents", documents),
    ("opensearch_documents", opensearch_documents),
    ("postgres_texts", postgres_texts),
    ("postgres_statements", postgres_statements),
    ("configuration", configuration),
    ("command_lines", command_lines),
    ("texts", texts),
];
