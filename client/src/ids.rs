//! Who and when, as a client sees it.

use bytes::Bytes;
use lockstep_proto::v1;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Commit sequence number: the one order. Also a document's version (`if_csn`). `3.17` is the 17th decision of the 3rd start; its
/// JSON is that string, because it does not fit a JavaScript number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Csn(u64);

/// A transaction: `3-17`, or `3-17@p2` where participant 2 decides it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid {
    /// The coordinator's start.
    pub epoch: u32,
    /// The number inside it.
    pub n: u64,
    /// The database that decides it; `None`: the coordinator's log.
    pub leader: Option<u32>,
}

/// A coordinator, for the life of its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct CoordinatorId(pub u128);

/// A coordinator's log. Changes when a log that lost records is taken back into use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LogId(pub u128);

/// Where a coordinator stood when a key was first sent (R-KEY). Compared only by the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Which coordinator.
    pub coordinator: CoordinatorId,
    /// Its start.
    pub epoch: u32,
    /// The number that its next transaction would have got.
    pub n: u64,
}

/// An idempotency key: 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(Bytes);

/// Names a request whose outcome is asked for: everything that is needed to ask again later, also from another process.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct RequestId {
    /// The idempotency key.
    pub key: Key,
    /// The attempt under it, from 1.
    pub attempt: u32,
    /// Where the coordinator stood when it was first sent.
    pub position: Position,
}

/// What a read must have seen: from a receipt, handed to `at_least`. Opaque; may be passed on between processes.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Token(pub Bytes);

/// The name under which an application prepares the branch of a transaction at a store, to enlist it ([`crate::Begun::enlisted`]):
/// readable by a person in the store's own list, below 200 bytes, without quotes. `participant` is [`crate::Store::number`].
pub fn gid(coordinator: CoordinatorId, participant: u16, txid: Txid) -> String {
    format!("lockstep:{coordinator}:{participant}:{txid}")
}

impl Csn {
    const N_BITS: u32 = 39;

    /// From its number, as it is kept in a table. Below 2^63.
    pub fn from_u64(raw: u64) -> Csn {
        Csn(raw)
    }

    /// As one number, below 2^63; greater is later.
    pub fn to_u64(self) -> u64 {
        self.0
    }
}

impl Key {
    /// The limit of a key's length, in bytes.
    pub const MAX: usize = 64;

    /// Begins with the time: keys of about the same time lie on the same pages of a database that keeps them.
    pub(crate) fn random() -> Key {
        Key(Bytes::copy_from_slice(uuid::Uuid::now_v7().as_bytes()))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: Bytes) -> Key {
        Key(bytes)
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Key {
        Key(Bytes::copy_from_slice(text.as_bytes()))
    }
}
impl From<String> for Key {
    fn from(text: String) -> Key {
        Key(text.into())
    }
}
impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        Key(Bytes::copy_from_slice(bytes))
    }
}
impl From<uuid::Uuid> for Key {
    fn from(uuid: uuid::Uuid) -> Key {
        Key(Bytes::copy_from_slice(uuid.as_bytes()))
    }
}

impl Position {
    pub(crate) fn new(coordinator: CoordinatorId, position: v1::Position) -> Position {
        Position { coordinator, epoch: position.epoch, n: position.n }
    }

    pub(crate) fn to_wire(self) -> v1::Position {
        v1::Position { epoch: self.epoch, n: self.n }
    }
}

impl From<v1::TransactionId> for Txid {
    fn from(id: v1::TransactionId) -> Txid {
        Txid { epoch: id.epoch, n: id.n, leader: id.leader.checked_sub(1) }
    }
}
impl From<Txid> for v1::TransactionId {
    fn from(id: Txid) -> v1::TransactionId {
        v1::TransactionId { epoch: id.epoch, n: id.n, leader: id.leader.map_or(0, |leader| leader + 1) }
    }
}

impl fmt::Display for Csn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> Self::N_BITS, self.0 & ((1 << Self::N_BITS) - 1))
    }
}
impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.n)?;
        self.leader.map_or(Ok(()), |leader| write!(f, "@p{leader}"))
    }
}
impl fmt::Display for CoordinatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
/// As text where it is text, as a UUID where it may be one, in hexadecimal otherwise.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => match uuid::Uuid::from_slice(&self.0) {
                Ok(uuid) => fmt::Display::fmt(&uuid, f),
                Err(_) => write_hex(f, &self.0),
            },
        }
    }
}
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
debug_as_display!(Csn, Txid, CoordinatorId, LogId, Key, Token);

/// `3.17`: the form that `Display` gives.
impl FromStr for Csn {
    type Err = String;

    fn from_str(text: &str) -> Result<Csn, String> {
        let parse = || {
            let (epoch, n) = numbered(text, '.')?;
            Some(Csn(u64::from(epoch) << Csn::N_BITS | n))
        };
        parse().ok_or_else(|| format!("`{text}` is no CSN: expected EPOCH.N, for example 3.17"))
    }
}

/// A start and a number inside it, as far as those go.
fn numbered(text: &str, between: char) -> Option<(u32, u64)> {
    let (epoch, n) = text.split_once(between)?;
    let (epoch, n): (u32, u64) = (epoch.parse().ok()?, n.parse().ok()?);
    (epoch < 1 << 24 && n < 1 << Csn::N_BITS).then_some((epoch, n))
}

/// `3-17` or `3-17@p2`: the form that `Display` gives.
impl FromStr for Txid {
    type Err = String;

    fn from_str(text: &str) -> Result<Txid, String> {
        let parse = || {
            let (number, leader) = match text.split_once("@p") {
                Some((number, leader)) => (number, Some(leader.parse::<u16>().ok()?.into())),
                None => (text, None),
            };
            let (epoch, n) = numbered(number, '-')?;
            Some(Txid { epoch, n, leader })
        };
        parse().ok_or_else(|| format!("`{text}` is no transaction id: expected EPOCH-N or EPOCH-N@pID, for example 3-17"))
    }
}

impl Serialize for Csn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Csn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Csn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The 16 bytes of an identity; anything else is none.
pub(crate) fn uuid_bytes(bytes: &[u8]) -> Option<u128> {
    bytes.try_into().map(u128::from_be_bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_as_written() {
        for text in ["0.0", "3.17", "16777215.549755813887"] {
            assert_eq!(text.parse::<Csn>().unwrap().to_string(), text);
        }
        for text in ["3-17", "3-17@p2"] {
            assert_eq!(text.parse::<Txid>().unwrap().to_string(), text);
        }
        for text in ["", "3", "3.x", "16777216.0", "0.549755813888"] {
            assert!(text.parse::<Csn>().is_err(), "{text}");
        }
        for text in ["", "3", "3-x", "16777216-0", "0-549755813888", "80000123-171357@p3", "3-17@p"] {
            assert!(text.parse::<Txid>().is_err(), "{text}");
        }
        let led = Txid { epoch: 3, n: 17, leader: Some(0) };
        assert_eq!(Txid::from(v1::TransactionId::from(led)), led);
        assert_eq!(serde_json::to_string(&Csn(1 << 39 | 5)).unwrap(), "\"1.5\"");
    }

    #[test]
    fn a_request_id_survives_json() {
        let id = RequestId { key: Key::random(), attempt: 2, position: Position { coordinator: CoordinatorId(u128::MAX), epoch: 1, n: 9 } };
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<RequestId>(&text).unwrap(), id, "{text}");
    }

    #[test]
    fn keys_show_as_text_where_they_are_text() {
        assert_eq!(Key::from("order-17").to_string(), "order-17");
        assert_eq!(Key::from(&[0u8, 255][..]).to_string(), "00ff");
        assert_eq!(Key::from(uuid::Uuid::from_u128(255)).to_string(), "00000000-0000-0000-0000-0000000000ff");
    }

    /// The other side reads it strictly (`lockstep_core::gid`): these texts stand in its tests too.
    #[test]
    fn a_branch_has_the_name_that_the_store_looks_for() {
        let name = |leader| gid(CoordinatorId(0x0123_4567_89ab_cdef), 2, Txid { epoch: 3, n: 17, leader });
        assert_eq!(name(None), "lockstep:00000000000000000123456789abcdef:2:3-17");
        assert_eq!(name(Some(2)), "lockstep:00000000000000000123456789abcdef:2:3-17@p2");
    }
}
