//! The name of a prepared branch at a store that keeps prepared transactions itself: `(txid, participant)` of one coordinator as a text
//! that a person can read in the store's own list of them. Written once, so that whoever prepares a branch and whoever looks for
//! orphans agree.

use crate::ids::{CoordId, ParticipantId, Txid};
use std::fmt;
use std::str::FromStr;

/// A branch, by the coordinator that answers for it.
///
/// As text: `lockstep:<coord_id, 32 hexadecimal digits>:<participant's number>:<txid>`, for example
/// `lockstep:0123456789abcdef0123456789abcdef:2:3-17`, or with `3-17@p2` for a transaction that participant 2 decides (R-DECIDER).
/// At most [`Gid::MAX_LEN`] bytes of ASCII, no quotes: below PostgreSQL's 200.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid {
    /// Whose log answers for it.
    pub coord_id: CoordId,
    /// Where.
    pub participant: ParticipantId,
    /// Of which transaction.
    pub txid: Txid,
}

/// A text that is no [`Gid`]: not ours, and never to be touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotOurs;

const PREFIX: &str = "lockstep:";
const COORD_DIGITS: usize = 32;

impl Gid {
    /// The longest text: a participant's number, an epoch, a number in it, and a participant's number.
    pub const MAX_LEN: usize = PREFIX.len() + COORD_DIGITS + ":65535:16777215-549755813887@p65535".len();

    /// What every text of this coordinator at this participant begins with, for a scan of the store's list.
    pub fn prefix(coord_id: CoordId, participant: ParticipantId) -> String {
        format!("{PREFIX}{coord_id}:{}:", participant.0)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:{}:{}", self.coord_id, self.participant.0, self.txid)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Strict: exactly what `Display` writes, and nothing that merely means the same.
impl FromStr for Gid {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Gid, NotOurs> {
        let rest = text.strip_prefix(PREFIX).filter(|_| text.len() <= Gid::MAX_LEN).ok_or(NotOurs)?;
        let mut parts = rest.splitn(3, ':');
        let (Some(coord_id), Some(participant), Some(txid)) = (parts.next(), parts.next(), parts.next()) else { return Err(NotOurs) };
        let gid = Gid {
            coord_id: CoordId(u128::from_str_radix(coord_id, 16).map_err(|_| NotOurs)?),
            participant: ParticipantId(participant.parse().map_err(|_| NotOurs)?),
            txid: txid.parse().map_err(|_| NotOurs)?,
        };
        // Signs, leading zeros and capitals are read too: then it was written by somebody else.
        if gid.to_string() == text { Ok(gid) } else { Err(NotOurs) }
    }
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the name of a branch of this product: expected {PREFIX}<coordinator, 32 hexadecimal digits>:<participant>:<txid>")
    }
}

impl std::error::Error for NotOurs {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Csn, Decider, Epoch};

    fn gid(epoch: u32, n: u64, decider: Decider) -> Gid {
        let txid = Txid { epoch: Epoch(epoch), n, decider };
        Gid { coord_id: CoordId(0x0123_4567_89ab_cdef), participant: ParticipantId(2), txid }
    }

    #[test]
    fn reads_what_it_writes() {
        let logged = gid(3, 17, Decider::Log);
        assert_eq!(logged.to_string(), "lockstep:00000000000000000123456789abcdef:2:3-17");
        assert_eq!(logged.to_string().parse(), Ok(logged));
        assert!(logged.to_string().starts_with(&Gid::prefix(logged.coord_id, logged.participant)));
        let led = gid(3, 17, Decider::Leader(ParticipantId(2)));
        assert_eq!(led.to_string(), "lockstep:00000000000000000123456789abcdef:2:3-17@p2");
        assert_eq!(led.to_string().parse(), Ok(led));
    }

    #[test]
    fn the_longest_fits() {
        let txid = Txid { epoch: Epoch::MAX, n: Csn::N_MAX, decider: Decider::Leader(ParticipantId(u16::MAX)) };
        let longest = Gid { coord_id: CoordId(u128::MAX), participant: ParticipantId(u16::MAX), txid };
        assert_eq!(longest.to_string().len(), Gid::MAX_LEN);
        const { assert!(Gid::MAX_LEN < 200) };
        assert_eq!(longest.to_string().parse(), Ok(longest));
    }

    #[test]
    fn everything_else_is_not_ours() {
        let ours = gid(3, 17, Decider::Log).to_string();
        let strange = [
            String::new(),
            "lockstep:".into(),
            "lockstep:2:3-17".into(),
            "lockstep:123456789abcdef:2:3-17".into(), // too few digits
            ours.to_uppercase(),
            ours.replace("abcdef", "ABCDEF"),
            ours.replace(":2:", ":02:"),
            ours.replace(":2:", ":+2:"),
            ours.replace(":2:", ":65536:"),
            ours.replace("3-17", "3-017"),
            ours.replace("3-17", "3-17@p02"),
            ours.replace("3-17", "3-17@2"),
            ours.replace("3-17", "317"),
            ours.replace("3-17", "16777216-17"),
            ours.replace("3-17", "3-549755813888"),
            format!("{ours}:1"),
            format!("{ours} "),
            format!(" {ours}"),
            ours.replace("3-17", &"9".repeat(500)),
        ];
        for text in strange {
            assert_eq!(text.parse::<Gid>(), Err(NotOurs), "{text}");
        }
    }
}
