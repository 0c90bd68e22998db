//! R-WATERMARK at the store: how far it has followed, and how far it may say so.

use super::batch::Batch;
use super::contract::{ParticipantEffect, StoreCommand};
use super::session::{Phase, Session};
use super::{Command, Next};
use crate::ids::{Csn, Time};
use crate::message::{FromParticipant, Progress};
use crate::mutation::{Mutation, broken};
use crate::vote::Kind;

impl Session {
    /// R-WATERMARK: below everything that this session knows to be decided, or perhaps decided, and that the store was not given, or
    /// gave back.
    pub(super) fn watermark_limit(&self) -> Csn {
        let (reserved, delivery) = (self.reserved.keys().next().copied(), self.deliveries.keys().next().copied());
        let lowest = [reserved, delivery, self.first_waiting()].into_iter().flatten().min();
        let below = |csn: Csn| if broken(Mutation::WatermarkOffByOne) { csn } else { csn.before() };
        lowest.map_or(self.closed, |csn| self.closed.min(below(csn)))
    }

    /// What a store says of its progress; a preparing one has no watermark, only the row that it was told to write.
    pub(super) fn trusted(&self, kind: Kind, progress: Progress) -> Progress {
        match kind {
            Kind::Preparing => self.progress,
            Kind::Redo | Kind::Serial | Kind::Leader => progress,
        }
    }

    /// Tells how far the store has followed, if that is news or was asked for by a repeat.
    pub(super) fn advance(&mut self, progress: Progress, repeated: bool, effects: &mut Vec<ParticipantEffect>) {
        assert!(progress.durable <= progress.applied, "durable {} above applied {}", progress.durable, progress.applied);
        assert!(
            progress.applied >= self.progress.applied && progress.durable >= self.progress.durable,
            "the store went back from {:?} to {progress:?} within a session",
            self.progress
        );
        if progress != self.progress || repeated {
            self.progress = progress;
            self.send(FromParticipant::Progress(progress), effects);
        }
    }

    /// Upkeep; if `only_news`, only if something has happened since the last time.
    pub(super) fn tend(&mut self, only_news: bool) -> Next {
        // Before Open not all that is reserved is known, and what Hello said must still hold when the handover arrives.
        if !matches!(self.phase, Phase::Open { .. }) || !matches!(self.batch, Batch::None) {
            return None;
        }
        let closed = self.watermark_limit();
        if only_news && !self.untended && closed <= self.given {
            return None;
        }
        self.untended = false;
        self.tend_at = None;
        Some((StoreCommand::Tend(closed), Command::Tend(closed)))
    }

    /// It was tended with this limit, and wants to be again at that time.
    pub(super) fn tended(&mut self, kind: Kind, closed: Csn, progress: Progress, next: Option<Time>, effects: &mut Vec<ParticipantEffect>) {
        self.given = self.given.max(closed);
        self.tend_at = next;
        let progress = self.trusted(kind, progress);
        self.advance(progress, false, effects);
    }
}
