//! SQLite as a participant: a Yes can never fail to apply, and what cannot be promised is refused.

mod lab;

mod damage;
mod follow;
mod leader;
mod performance;
mod random;
mod refusals;
mod replay;
