//! Texts that are parsed: ids, names of branches, tokens, trace contexts.

use crate::input;
use arbitrary::Unstructured;
use lockstep_client as client;
use lockstep_core::{CoordId, Csn, Gid, ParticipantId, TraceContext, Txid};

/// Any text: it is read as what is written as that text, or refused in a sentence that can be shown.
pub fn texts(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let kind = input::below(&mut input, 5);
    if kind == 4 {
        return branch(&mut input);
    }
    let text = String::from_utf8_lossy(input::rest(&mut input));
    match kind {
        0 => match (text.parse::<Txid>(), text.parse::<client::Txid>()) {
            (Ok(txid), Ok(same)) => {
                assert_eq!(txid.to_string(), same.to_string(), "client and coordinator read the same");
                assert_eq!(txid.to_string().parse(), Ok(txid));
            }
            (Err(sentence), Err(same)) => {
                input::shown(&sentence);
                input::shown(&same);
            }
            other => panic!("client and coordinator disagree: {other:?}"),
        },
        1 => match (text.parse::<Csn>(), text.parse::<client::Csn>()) {
            (Ok(csn), Ok(same)) => {
                assert_eq!((csn.to_u64(), csn.to_string()), (same.to_u64(), same.to_string()));
                assert_eq!(csn.to_string().parse(), Ok(csn));
                assert_eq!(Csn::from_u64(csn.to_u64()), Some(csn));
            }
            (Err(sentence), Err(same)) => {
                input::shown(&sentence);
                input::shown(&same);
            }
            other => panic!("client and coordinator disagree: {other:?}"),
        },
        2 => {
            if let Ok(gid) = text.parse::<Gid>() {
                assert_eq!(gid.to_string(), text, "only what this product writes is its own");
                assert!(text.starts_with(&Gid::prefix(gid.coord_id, gid.participant)) && text.len() <= Gid::MAX_LEN);
            }
        }
        _ => {
            if let Some(context) = TraceContext::parse(&text) {
                let out = context.traceparent().expect("it has a parent");
                assert_eq!(TraceContext::parse(&out), Some(context));
            }
        }
    }
}

/// Any branch has a name that is read as that branch.
fn branch(input: &mut Unstructured) {
    let txid = Txid {
        epoch: lockstep_core::Epoch(input.arbitrary::<u32>().unwrap_or(0) & lockstep_core::Epoch::MAX.0),
        n: input::number(input) & lockstep_core::Csn::N_MAX,
        decider: match input.arbitrary().unwrap_or(0u16) {
            0 => lockstep_core::Decider::Log,
            n => lockstep_core::Decider::Leader(ParticipantId(n)),
        },
    };
    let gid = Gid { coord_id: CoordId(input.arbitrary().unwrap_or(0)), participant: ParticipantId(input.arbitrary().unwrap_or(0)), txid };
    let text = gid.to_string();
    assert!(text.len() <= Gid::MAX_LEN && text.parse() == Ok(gid) && txid.to_string().parse() == Ok(txid));
}
