//! Histories: what clients asked and were told, and whether any two stores that keep their promises could have told them that.
//!
//! Every transaction appends its number to the list in a row of the database, for each key that it writes, and puts the key's document, which
//! carries the number of its last write (or deletes it). So the row shows the order of all writes, and the document where it is in it.

pub mod checker;
pub mod event;
mod order;
mod recorder;

pub use checker::{Finding, Report, check};
pub use event::{Ask, Document, Event, Happened, Op, SeenDocument, SeenRow, Shown, Store, Told, Write};
pub use recorder::Recorder;
