//! Distributed tracing: the context that a client sends along, and the stretches of a transaction's life that are told to whoever asked.
//! Nothing is decided by any of it.

use crate::ids::{Csn, Epoch, ParticipantId, Time, Txid};
use crate::request::Wait;
use crate::vote::RefusalKind;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Names a trace. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TraceId(pub [u8; 16]);

/// Names a span within its trace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SpanId(pub [u8; 8]);

/// To which trace a transaction belongs: a `traceparent` of W3C Trace Context, <https://www.w3.org/TR/trace-context/>.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that the transaction is a part of; `None` if the trace begins with the transaction.
    pub parent: Option<SpanId>,
    /// Bit 0: sampled.
    pub flags: u8,
}

/// A traced transaction, as long as it is not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traced {
    /// Its trace.
    pub context: TraceContext,
    /// When the request came that said what it does.
    pub since: Time,
    /// Its own span was told: a client was answered, or that client's start is over.
    pub told: bool,
}

/// A stretch of a traced transaction's life, once it is over.
#[derive(Clone, PartialEq, Debug)]
pub struct Span {
    /// Whose trace.
    pub context: TraceContext,
    /// Whose life.
    pub txid: Txid,
    /// Its place in the order, if it has one.
    pub csn: Option<Csn>,
    /// From when.
    pub began: Time,
    /// Until when.
    pub ended: Time,
    /// What it was.
    pub stretch: Stretch,
}

/// What a stretch was. All but [`Stretch::Transaction`] are parts of that one.
#[derive(Clone, PartialEq, Debug)]
pub enum Stretch {
    /// From the request to the first answer.
    Transaction {
        /// What the client that was answered had waited for.
        wait: Wait,
        /// The answer.
        outcome: Outcome,
    },
    /// From Prepare to the vote.
    Prepare {
        /// Where.
        participant: ParticipantId,
        /// The vote's word; `None` if it did not come in time.
        vote: Option<&'static str>,
        /// Why it was No.
        refusal: Option<RefusalKind>,
    },
    /// From the last vote until the decision was durable.
    Decision {
        /// The database whose commit it was; `None`: the log.
        leader: Option<ParticipantId>,
        /// Transactions in the same record.
        together: usize,
    },
    /// From the first Commit of this start until it was applied.
    Commit {
        /// Where.
        participant: ParticipantId,
        /// The start that found it decided; `None` if that is the one that decided it.
        recovered: Option<Epoch>,
    },
}

/// What a client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is committed.
    Committed {
        /// Stores that had not followed when the wait's deadline passed.
        pending: usize,
    },
    /// It is aborted.
    Aborted {
        /// At which store, if at one.
        at: Option<ParticipantId>,
        /// Why.
        refusal: RefusalKind,
    },
}

/// Characters of a `traceparent` of version 00.
const LENGTH: usize = 55;

impl TraceContext {
    /// Reads a `traceparent`. `None` if it is malformed: by the standard it is then as if there were none.
    pub fn parse(text: &str) -> Option<TraceContext> {
        let bytes = text.as_bytes();
        let fixed: &[u8; LENGTH] = bytes.first_chunk()?;
        let [version] = hex(&fixed[..2])?;
        match (version, bytes.get(LENGTH)) {
            (0xff, _) => return None,
            (0, Some(_)) => return None,
            // A newer version may have more, after another dash; what is known of this one stands in front.
            (_, None | Some(b'-')) => {}
            (_, Some(_)) => return None,
        }
        if [2, 35, 52].iter().any(|dash| fixed[*dash] != b'-') {
            return None;
        }
        let (trace, parent, [flags]): ([u8; 16], [u8; 8], [u8; 1]) = (hex(&fixed[3..35])?, hex(&fixed[36..52])?, hex(&fixed[53..])?);
        if trace == [0; 16] || parent == [0; 8] {
            return None;
        }
        // A newer version's other flags are not known.
        let flags = if version == 0 { flags } else { flags & 1 };
        Some(TraceContext { trace: TraceId(trace), parent: Some(SpanId(parent)), flags })
    }

    /// Whether the caller has its spans recorded.
    pub fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The same trace, for what is done within this span. Whoever is told can be told as text: it has a parent.
    pub fn within(self, span: SpanId) -> TraceContext {
        TraceContext { parent: Some(span), ..self }
    }

    /// As a `traceparent`; `None` if the trace begins with the transaction.
    pub fn traceparent(&self) -> Option<String> {
        Some(format!("00-{}-{}-{:02x}", self.trace, self.parent?, self.flags))
    }

    /// The transaction's own span. Its id follows from the two, so that every start knows it.
    pub fn transaction_span(&self, txid: Txid) -> SpanId {
        self.derived(txid, 1, 0)
    }

    /// The span of a Prepare.
    pub fn prepare_span(&self, txid: Txid, participant: ParticipantId) -> SpanId {
        self.derived(txid, 2, participant.0.into())
    }

    /// The decision's span.
    pub fn decision_span(&self, txid: Txid) -> SpanId {
        self.derived(txid, 3, 0)
    }

    /// The span of a Commit, or of what a later start sent again.
    pub fn commit_span(&self, txid: Txid, participant: ParticipantId, recovered: Option<Epoch>) -> SpanId {
        self.derived(txid, 4, u64::from(recovered.map_or(0, |epoch| epoch.0)) << 16 | u64::from(participant.0))
    }

    /// Unique in the trace, as far as 64 bits go.
    fn derived(&self, txid: Txid, stretch: u64, place: u64) -> SpanId {
        let (high, low) = self.trace.0.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let words = [number(high), number(low), txid.epoch.0.into(), txid.n, stretch, place];
        let hash = words.into_iter().fold(0, |hash, word| mixed(hash ^ word));
        SpanId(hash.max(1).to_be_bytes())
    }
}

impl Span {
    /// Its id.
    pub fn id(&self) -> SpanId {
        match self.stretch {
            Stretch::Transaction { .. } => self.context.transaction_span(self.txid),
            Stretch::Prepare { participant, .. } => self.context.prepare_span(self.txid, participant),
            Stretch::Decision { .. } => self.context.decision_span(self.txid),
            Stretch::Commit { participant, recovered } => self.context.commit_span(self.txid, participant, recovered),
        }
    }

    /// What it is a part of. What a later start does is a part of the client's span: the transaction's own may have died untold.
    pub fn parent(&self) -> Option<SpanId> {
        match self.stretch {
            Stretch::Transaction { .. } => self.context.parent,
            Stretch::Commit { recovered: Some(_), .. } => {
                Some(self.context.parent.unwrap_or_else(|| self.context.transaction_span(self.txid)))
            }
            Stretch::Prepare { .. } | Stretch::Decision { .. } | Stretch::Commit { recovered: None, .. } => {
                Some(self.context.transaction_span(self.txid))
            }
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The last field of something that was written without it: what ends before it has none. Not being readable is as good as not being there.
pub(crate) fn if_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TraceContext>, D::Error> {
    Ok(Option::deserialize(deserializer).unwrap_or(None))
}

/// Lower case only, as the standard has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// SplitMix64's finisher.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Decider;
    use std::collections::BTreeSet;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_standards_example_is_read_and_written() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        assert_eq!((context.trace.to_string().as_str(), context.sampled()), ("4bf92f3577b34da6a3ce929d0e0e4736", true));
        assert_eq!(context.parent, Some(SpanId([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7])));
        assert_eq!(context.traceparent().as_deref(), Some(EXAMPLE));
        assert!(!TraceContext::parse(&EXAMPLE.replace("-01", "-02")).unwrap().sampled());
    }

    #[test]
    fn a_newer_version_is_read_as_far_as_it_is_known() {
        let newer = |rest: &str| TraceContext::parse(&format!("{}{rest}", EXAMPLE.replacen("00-", "cc-", 1)));
        assert_eq!(newer(""), TraceContext::parse(EXAMPLE));
        assert_eq!(newer("-what-the-future-will-be-like"), TraceContext::parse(EXAMPLE));
        assert_eq!(newer(".what"), None);
        assert_eq!(TraceContext::parse(&EXAMPLE.replacen("00-", "cc-", 1).replace("-01", "-ff")).unwrap().flags, 1);
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        let wrong = [
            String::new(),
            "x".repeat(100_000),
            EXAMPLE[..54].to_string(),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE} "),
            EXAMPLE.to_uppercase(),
            EXAMPLE.replacen("00-", "ff-", 1),
            EXAMPLE.replacen("00-", "0x-", 1),
            EXAMPLE.replace('-', "_"),
            EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            EXAMPLE.replace("-01", "-0g"),
            format!("{}é", &EXAMPLE[..53]),
        ];
        for text in wrong {
            assert_eq!(TraceContext::parse(&text), None, "{text:.80}");
        }
    }

    #[test]
    fn spans_of_one_trace_have_ids_of_their_own() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        let mut ids = BTreeSet::new();
        for n in 1..50 {
            let txid = Txid { epoch: Epoch(3), n, decider: Decider::Log };
            ids.extend([context.transaction_span(txid), context.decision_span(txid)]);
            for participant in (0..10).map(ParticipantId) {
                ids.insert(context.prepare_span(txid, participant));
                ids.extend([None, Some(Epoch(4)), Some(Epoch(5))].map(|recovered| context.commit_span(txid, participant, recovered)));
            }
        }
        assert_eq!(ids.len(), 49 * (2 + 10 * 4));
    }
}
