//! Who and when: who takes part, and the numbers that say what was before what.
//!
//! All of them are plain numbers that order themselves; none is drawn here. Random ones (`CoordId`, `LogId`, the incarnation) are
//! handed in by whoever drives the machine.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The coordinator: one decision log is one `CoordId`, made once, kept in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CoordId(pub u128);

/// The log's own identity. It changes when a log that lost records is taken back into use (R-LOGLOSS), so that old tokens show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogId(pub u128);

/// One start of the coordinator. Taken (+1) and forced before anything is sent. 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u32);

/// A coordinator as a participant knows it (R-OWNER): a lower epoch, or the same one with another incarnation, is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Whose log it is.
    pub coord_id: CoordId,
    /// Its current start.
    pub epoch: Epoch,
    /// A random number of that start: tells two copies of one log apart.
    pub incarnation: u64,
}

/// Commit sequence number: epoch (24 bits) · n (39 bits). Commit order, document version, recovery cursor and read token in one.
/// Allocated at the decision, never restarted, never repeated. Zero is "before everything". Fits an `i64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Csn(u64);

/// A transaction. It names its epoch, so nobody needs a table to know which incarnation began it, and its decider (R-DECIDER).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Txid {
    /// The start that began it.
    pub epoch: Epoch,
    /// The transaction's number inside the epoch.
    pub n: u64,
    /// Who decides its outcome.
    pub decider: Decider,
}

/// Who decides a transaction: the log, or one database (database-led, R-LR).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Decider {
    /// The coordinator's decision log.
    Log,
    /// That database's own local commit, with a marker row in it.
    Leader(ParticipantId),
}

/// The coordinator's place in the order of beginnings. A request carries the one at which its key was first sent (R-KEY).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The start.
    pub epoch: Epoch,
    /// The number that the next transaction of that start would have got.
    pub n: u64,
}

/// A record's place in the decision log. Gap-free, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

/// A participant's number in the log's own registry (`Record::Participant`): the same for the life of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ParticipantId(pub u16);

/// One ordered stream between the coordinator and a participant. Numbers rise; messages of an ended session are dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Whom to answer: chosen by the driver, never read by the machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Monotonic time of the driver in microseconds. Only time-outs and retention read it; no clock decides safety.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Time(pub u64);

/// A receipt's token: what a read must have seen (`at_least`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Token {
    /// The log that gave it.
    pub log_id: LogId,
    /// How far a store must have followed.
    pub csn: Csn,
}

impl Epoch {
    /// The highest epoch that fits a CSN.
    pub const MAX: Epoch = Epoch((1 << 24) - 1);

    /// The epoch of the next start.
    pub fn next(self) -> Epoch {
        assert!(self < Epoch::MAX, "the epoch is used up: 16,777,215 starts");
        Epoch(self.0 + 1)
    }
}

impl Csn {
    /// Before everything.
    pub const ZERO: Csn = Csn(0);
    /// Bits of the number inside an epoch.
    pub const N_BITS: u32 = 39;
    /// The highest number inside an epoch; a full one takes a new epoch.
    pub const N_MAX: u64 = (1 << Self::N_BITS) - 1;

    /// The `n`th decision of `epoch`.
    pub fn new(epoch: Epoch, n: u64) -> Csn {
        assert!(epoch <= Epoch::MAX && n <= Self::N_MAX, "CSN out of range");
        Csn(u64::from(epoch.0) << Self::N_BITS | n)
    }

    /// From a number that a store kept. `None` if it is no CSN.
    pub fn from_u64(raw: u64) -> Option<Csn> {
        (raw >> 63 == 0).then_some(Csn(raw))
    }

    /// As one number; below 2^63.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// The start in which it was decided.
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 >> Self::N_BITS) as u32)
    }

    /// The number inside its epoch.
    pub fn n(self) -> u64 {
        self.0 & Self::N_MAX
    }

    /// The number just above, as a bound.
    pub fn next(self) -> Csn {
        Csn(self.0 + 1)
    }

    /// The CSN just below; zero stays zero.
    pub fn before(self) -> Csn {
        Csn(self.0.saturating_sub(1))
    }
}

impl Lsn {
    /// The next place.
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl Txid {
    /// Where in the order of beginnings it stands.
    pub fn position(self) -> Position {
        Position { epoch: self.epoch, n: self.n }
    }
}

impl Time {
    /// This time plus some microseconds.
    pub fn after(self, micros: u64) -> Time {
        Time(self.0.saturating_add(micros))
    }
}

impl fmt::Display for CoordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Csn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.n())
    }
}
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for ParticipantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}
impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decider {
            Decider::Log => write!(f, "{}-{}", self.epoch, self.n),
            Decider::Leader(p) => write!(f, "{}-{}@{p}", self.epoch, self.n),
        }
    }
}

/// `3-17` or, led by participant 2, `3-17@p2`: the form that `Display` gives.
impl std::str::FromStr for Txid {
    type Err = String;

    fn from_str(text: &str) -> Result<Txid, String> {
        let bad = || format!("`{text}` is no transaction id: expected EPOCH-N or EPOCH-N@pID, for example 3-17");
        let (number, decider) = match text.split_once("@p") {
            Some((number, id)) => (number, Decider::Leader(ParticipantId(id.parse().map_err(|_| bad())?))),
            None => (text, Decider::Log),
        };
        let (epoch, n) = number.split_once('-').ok_or_else(bad)?;
        let (epoch, n) = (Epoch(epoch.parse().map_err(|_| bad())?), n.parse().map_err(|_| bad())?);
        if epoch > Epoch::MAX || n > Csn::N_MAX { Err(bad()) } else { Ok(Txid { epoch, n, decider }) }
    }
}

/// `3.17`: the form that `Display` gives.
impl std::str::FromStr for Csn {
    type Err = String;

    fn from_str(text: &str) -> Result<Csn, String> {
        let bad = || format!("`{text}` is no CSN: expected EPOCH.N, for example 3.17");
        let (epoch, n) = text.split_once('.').ok_or_else(bad)?;
        let (epoch, n) = (Epoch(epoch.parse().map_err(|_| bad())?), n.parse().map_err(|_| bad())?);
        if epoch > Epoch::MAX || n > Csn::N_MAX { Err(bad()) } else { Ok(Csn::new(epoch, n)) }
    }
}

macro_rules! debug_as_display {
    ($($t:ty),*) => {$(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
debug_as_display!(CoordId, LogId, Epoch, Csn, Lsn, Txid);
