//! R-OWNER: whom a participant follows.

use super::Participant;
use super::contract::ParticipantEffect;
use super::session::Phase;
use crate::ids::{Csn, Epoch, Owner, ParticipantId, Txid};
use crate::message::{FromParticipant, Starts};
use crate::mutation::{Mutation, broken};

impl Participant {
    /// R-OWNER: a foreign coordinator, a lower epoch, or the same one with another incarnation, is refused.
    /// R-OWNER: the store's owner is overwritten only by a log that holds the start it has followed.
    pub(super) fn welcome(&mut self, owner: Owner, me: ParticipantId, starts: &Starts, effects: &mut Vec<ParticipantEffect>) {
        let session = self.session.as_mut().expect("checked by the caller");
        let holds = |kept| starts.hold(kept) || broken(Mutation::OwnerEpochOnly);
        let owner_may = |kept| (supersedes(owner, kept) && holds(kept)) || broken(Mutation::OwnerUnchecked);
        if let Some(kept) = self.owner.filter(|kept| !owner_may(*kept)) {
            session.phase = Phase::Refused;
            effects.push(ParticipantEffect::Send(session.id, FromParticipant::Refused(kept)));
            return;
        }
        self.owner = Some(owner);
        session.phase = Phase::Recovering { owner, me };
    }
}

/// R-OWNER.
pub(super) fn supersedes(new: Owner, kept: Owner) -> bool {
    let same = new.incarnation == kept.incarnation || broken(Mutation::OwnerEpochOnly);
    new.coord_id == kept.coord_id && (new.epoch > kept.epoch || (new.epoch == kept.epoch && same))
}

pub(super) fn highest_epoch(owner: Option<Owner>, highest: Csn, prepared: &[Txid]) -> Epoch {
    let of_branches = prepared.iter().map(|t| t.epoch).max().unwrap_or_default();
    owner.map(|o| o.epoch).unwrap_or_default().max(highest.epoch()).max(of_branches)
}
