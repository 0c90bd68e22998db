//! The invariants I1 to I12, and some rules beside them. It knows what clients asked and were told, what stood durably in a log or in a
//! leader's markers, what stores did, and what was said aloud: damage, alarms. It knows nothing of how.

use super::store::State;
use crate::vote::Kind;
use crate::{
    AdminAction, Alarm, CommitEntry, Condition, Csn, Damage, DamageKind, Entry, Epoch, LogId, Owner, ParticipantId, Receipt, Record,
    RequestKey, ToParticipant, Txid, Value, Wait,
};
use std::collections::{BTreeMap, BTreeSet};

/// In the place of a log's number: decisions that stand in leaders' markers.
pub(crate) const LEADERS: usize = usize::MAX;
/// In the place of a log's number: a log that has lost an order.
const GIVEN_UP: usize = usize::MAX - 1;

/// Names a request's writes wherever they go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Tag(pub u64);

/// What a request writes at one store.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    pub store: usize,
    pub keys: Vec<(String, bool, Option<Condition>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Committed(Csn),
    Aborted,
}

#[derive(Debug)]
struct Asked {
    writes: Vec<Writes>,
    /// The logs in which its decision stands durably, [`LEADERS`] among them, and its place there.
    decided: Vec<(usize, Csn)>,
    /// What clients were told of it, by the owner of which log.
    told: Vec<(usize, Told)>,
    /// A log that held its decision was put back to an older state, or given up; or two copies of one log said different things. No
    /// protocol survives that; it must be said aloud (I12).
    lost: bool,
    /// Its leader was not waited for: stores may have followed past it, which is damage, and conditions did not know of it. All else stands.
    waived: bool,
    /// A log has lost its decision.
    gone: bool,
    /// A log has lost the floor that it was below. No store can tell.
    below: bool,
    ever_applied: BTreeSet<usize>,
}

/// What shows that a store was put back, as long as the coordinator that knows it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Evidence {
    /// It holds less than it has acked, or than it is known to have decided.
    Kept,
    /// It keeps an older owner than it has answered; that is overwritten when it has recovered, and told once.
    Owner { recovered: bool },
}

/// Everything that was seen from outside.
#[derive(Debug)]
pub(crate) struct Checker {
    kinds: Vec<Kind>,
    asked: Vec<Asked>,
    by_key: BTreeMap<RequestKey, Tag>,
    by_txid: BTreeMap<(usize, Txid), Tag>,
    /// Whose place it is.
    by_csn: BTreeMap<Csn, Tag>,
    /// Branches that an operator finished or gave up: waived, and they must be recorded as damage or agree.
    by_hand: BTreeSet<(usize, Tag)>,
    /// Damage that was recorded, aloud.
    damage: BTreeSet<(usize, Tag)>,
    /// Stores that were put back to an older state, and those of them that were found out.
    restored: BTreeSet<usize>,
    /// Of those, what shows it.
    evident: BTreeMap<usize, Evidence>,
    /// Leaders that an operator did not wait for.
    waived: BTreeSet<usize>,
    store_alarms: BTreeSet<usize>,
    /// Somebody has said that a log lost records, or that it is not the owner of a store.
    log_alarm: bool,
    /// There are two copies of one log, or were.
    cloned: bool,
    two_logs: bool,
    /// Logs whose owner some store has followed since they went apart: only what these did can show.
    followed: BTreeSet<usize>,
    /// Every start that a store has kept durably as its owner.
    kept: BTreeSet<(usize, Epoch, u64)>,
    /// Damage that stands in a log durably.
    recorded: BTreeSet<(usize, Tag)>,
    /// Stores that an operator has given up for ever, and by which log.
    removed: BTreeSet<(usize, usize)>,
    /// Stores of which an operator has ordered that, whether the order came to be durable or not.
    given_up: BTreeSet<usize>,
    /// Redos that were given up before a host was started, as its log has it (R-SKIP).
    skipped: BTreeMap<usize, BTreeSet<(ParticipantId, Txid)>>,
    /// Since a log was put back by command: stores that have not been heard.
    unheard: BTreeSet<usize>,
    /// Identities that a log had before it was put back by command.
    retired: BTreeSet<u128>,
    pub violation: Option<String>,
}

impl Asked {
    fn decided_at(&self) -> Option<Csn> {
        self.decided.first().map(|(_, csn)| *csn)
    }

    /// Whether its decision has this place, and nothing has happened that no protocol survives.
    fn stands_at(&self, csn: Csn) -> bool {
        !self.lost && self.decided.iter().any(|(_, decided)| *decided == csn)
    }

    /// What the owner of this log told of it.
    fn told_by(&self, log: usize) -> Option<Told> {
        self.told.iter().find(|(by, _)| *by == log).map(|(_, told)| *told)
    }

    fn tell(&mut self, log: usize, told: Told) {
        self.told.retain(|(by, _)| *by != log);
        self.told.push((log, told));
    }

    fn told_aborted(&self) -> bool {
        self.told.iter().any(|(_, told)| *told == Told::Aborted)
    }
}

impl Checker {
    pub(crate) fn new(kinds: Vec<Kind>) -> Checker {
        Checker {
            kinds,
            asked: Vec::new(),
            by_key: BTreeMap::new(),
            by_txid: BTreeMap::new(),
            by_csn: BTreeMap::new(),
            by_hand: BTreeSet::new(),
            damage: BTreeSet::new(),
            restored: BTreeSet::new(),
            waived: BTreeSet::new(),
            evident: BTreeMap::new(),
            store_alarms: BTreeSet::new(),
            log_alarm: false,
            cloned: false,
            two_logs: false,
            followed: BTreeSet::new(),
            kept: BTreeSet::new(),
            recorded: BTreeSet::new(),
            removed: BTreeSet::new(),
            given_up: BTreeSet::new(),
            skipped: BTreeMap::new(),
            unheard: BTreeSet::new(),
            retired: BTreeSet::new(),
            violation: None,
        }
    }

    pub(crate) fn next_tag(&self) -> Tag {
        Tag(self.asked.len() as u64)
    }

    /// A client names a new request.
    pub(crate) fn asks(&mut self, key: RequestKey, writes: Vec<Writes>) -> Tag {
        let tag = self.next_tag();
        self.asked.push(Asked {
            writes,
            decided: Vec::new(),
            told: Vec::new(),
            lost: self.two_logs,
            waived: false,
            gone: false,
            below: false,
            ever_applied: BTreeSet::new(),
        });
        let before = self.by_key.insert(key, tag);
        assert!(before.is_none(), "clients name their requests once");
        tag
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A transaction has begun under this key; its id says so from now on, whatever is forgotten.
    pub(crate) fn named(&mut self, log: usize, txid: Txid, key: &RequestKey) {
        if let Some(&tag) = self.by_key.get(key) {
            self.by_txid.insert((log, txid), tag);
        }
    }

    pub(crate) fn tag_of(&self, log: usize, txid: Txid) -> Option<Tag> {
        self.by_txid.get(&(log, txid)).or_else(|| self.by_txid.get(&(LEADERS, txid))).copied()
    }

    /// A decision stands durably: in a log, or in a leader's marker.
    pub(crate) fn decided(&mut self, log: usize, entry: &CommitEntry) {
        let Some(&tag) = self.by_key.get(&entry.key) else {
            return self.violation(format!("a decision for a key that nobody used: {}", entry.txid));
        };
        self.by_txid.insert((log, entry.txid), tag);
        let cloned = self.cloned;
        let asked = &mut self.asked[tag.0 as usize];
        let aborted = match log {
            LEADERS => asked.told_aborted(),
            _ => asked.told_by(log) == Some(Told::Aborted),
        };
        let elsewhere = !aborted && asked.told_aborted();
        let other = asked.decided.iter().map(|(_, csn)| *csn).find(|csn| *csn != entry.csn);
        if !asked.decided.iter().any(|(by, _)| *by == log) {
            asked.decided.push((log, entry.csn));
        }
        asked.lost |= cloned && (elsewhere || aborted || other.is_some());
        if asked.lost {
            return;
        }
        let same = self.by_csn.insert(entry.csn, tag).filter(|same| *same != tag && !cloned);
        if aborted {
            self.violation(format!("I7: {tag:?} ({}) was told aborted and is decided to commit at {}", entry.txid, entry.csn));
        } else if let Some(other) = other {
            self.violation(format!("I8: {tag:?} ({}) is decided twice: at {other} and {}", entry.txid, entry.csn));
        } else if let Some(same) = same.filter(|same| self.asked[same.0 as usize].stands_at(entry.csn)) {
            self.violation(format!("R-ORDER: {tag:?} ({}) is decided at {}, which is the place of {same:?}", entry.txid, entry.csn));
        }
    }

    /// A store has applied it.
    pub(crate) fn applied(&mut self, store: usize, tag: Tag, state: &State) {
        let times = state.history.iter().filter(|applied| applied.tag == tag).count();
        if let Some(newer) = self.overwritten(store, tag, state) {
            self.violation(format!("I6: store {store} applied {tag:?} over {newer:?}, which is newer"));
        }
        let asked = &mut self.asked[tag.0 as usize];
        asked.ever_applied.insert(store);
        if self.by_hand.contains(&(store, tag)) || asked.lost {
            return;
        }
        if asked.decided.is_empty() {
            self.violation(format!("I3, I11: store {store} applied {tag:?}, which is not durably decided"));
        } else if asked.told_aborted() {
            self.violation(format!("I7: store {store} applied {tag:?}, which was told aborted"));
        } else if times > 1 {
            self.violation(format!("I8: store {store} applied {tag:?} {times} times"));
        }
    }

    /// A later write of one of its documents that this one, just applied, has taken the place of: not even what was given up (R-SKIP) may.
    fn overwritten(&self, store: usize, tag: Tag, state: &State) -> Option<Tag> {
        if self.kinds[store] != Kind::Redo || self.cloned || self.restored.contains(&store) || self.is_removed(store) {
            return None;
        }
        let place = |tag: Tag| self.asked[tag.0 as usize].decided_at().filter(|_| !self.asked[tag.0 as usize].lost);
        let (own, now) = (place(tag)?, state.history.last()?);
        let earlier = state.history.iter().filter(|applied| applied.tag != tag && applied.keys.iter().any(|key| now.keys.contains(key)));
        earlier.map(|applied| applied.tag).find(|earlier| place(*earlier).is_some_and(|place| place > own))
    }

    /// An operator finished a branch by hand, or gave a redo up.
    pub(crate) fn by_hand(&mut self, store: usize, tag: Tag) {
        self.by_hand.insert((store, tag));
    }

    /// Whether the redos of a serial executor may not fit: an operator's hand was there, an older copy was put in its place, or a leader is not
    /// waited for.
    pub(crate) fn touched(&self, store: usize) -> bool {
        // What a log has lost, and the store had not synced, others may have been made on top of.
        let untold = |w: &Writes| self.restored.contains(&w.store) || self.waived.contains(&w.store);
        let lost = |asked: &Asked| {
            let gone = asked.gone || ((asked.lost || asked.waived) && asked.writes.iter().any(untold));
            gone && asked.writes.iter().any(|w| w.store == store)
        };
        self.by_hand.iter().any(|(touched, _)| *touched == store) || self.asked.iter().any(lost)
    }

    /// What stands in a log by a person's hand, or because something is amiss, is durable.
    pub(crate) fn ordered(&mut self, log: usize, entry: &Entry) {
        match &entry.record {
            Record::Damage(damage) => {
                if let Some(tag) = self.tag_of(log, damage.txid) {
                    self.recorded.insert((damage.participant.0 as usize, tag));
                }
            }
            Record::Admin { action: AdminAction::Remove { participant }, .. } => self.store_removed(log, participant.0 as usize),
            _ => {}
        }
    }

    /// An operator orders that this store is given up: what it is owed becomes damage.
    pub(crate) fn gives_up(&mut self, store: usize) {
        self.given_up.insert(store);
    }

    /// It is given up from here on: whatever it was owed has gone on record before.
    fn store_removed(&mut self, log: usize, store: usize) {
        self.removed.insert((log, store));
        let owed = self.asked.iter().enumerate().find(|(i, asked)| {
            let tag = Tag(*i as u64);
            let known = asked.decided.iter().any(|(by, _)| *by == log || *by == LEADERS) && asked.writes.iter().any(|w| w.store == store);
            let settled = asked.ever_applied.contains(&store)
                || self.recorded.contains(&(store, tag))
                || self.by_hand.contains(&(store, tag))
                || self.restored.contains(&store);
            known && !settled && !asked.lost && !asked.waived
        });
        if let Some((i, _)) = owed {
            self.violation(format!("I12: store {store} is removed, and no damage is recorded of Tag({i}), which it was owed"));
        }
    }

    /// Whether a store was given up for ever. If the log has lost the order since, nothing is promised of it all the same.
    pub(crate) fn is_removed(&self, store: usize) -> bool {
        self.removed.iter().any(|(_, removed)| *removed == store)
    }

    /// A host is started on this log.
    pub(crate) fn started(&mut self, host: usize, log: &[Entry]) {
        let skipped = |entry: &Entry| match &entry.record {
            Record::Damage(damage) if damage.kind == DamageKind::Skipped => Some((damage.participant, damage.txid)),
            _ => None,
        };
        self.skipped.insert(host, log.iter().filter_map(skipped).collect());
    }

    /// It says something to a store: what was given up there before is not sent again.
    pub(crate) fn sent(&mut self, host: usize, to: ParticipantId, message: &ToParticipant) {
        let (ToParticipant::Commit(decided), Some(skipped)) = (message, self.skipped.get(&host)) else { return };
        if let Some(txid) = decided.txids.iter().find(|txid| skipped.contains(&(to, **txid))) {
            self.violation(format!("R-SKIP: {txid} was given up at {to}, and is sent there in a later start"));
        }
    }

    /// A coordinator says something to a store, which holds these branches prepared.
    pub(crate) fn told(&mut self, log: usize, store: usize, message: &ToParticipant, prepared: impl Fn(&Txid) -> bool) {
        match message {
            ToParticipant::Welcome { .. } if self.removed.contains(&(log, store)) => {
                self.violation(format!("store {store} was removed, and is let in again"));
            }
            // One that it does not hold any more it has asked about before it heard how that ended.
            ToParticipant::Abort(txid) if !self.cloned && prepared(txid) => {
                let committed = |tag: &Tag| !self.asked[tag.0 as usize].lost && self.asked[tag.0 as usize].decided_at().is_some();
                if let Some(tag) = self.tag_of(log, *txid).filter(committed) {
                    self.violation(format!("I1: store {store} is told to abort {txid} ({tag:?}), which is decided to commit"));
                }
            }
            _ => {}
        }
    }

    // ---- what no protocol survives, and what must be said of it ----

    /// A log was put back to an older copy: these records are gone. Epochs and numbers of transactions come a second time.
    pub(crate) fn log_lost(&mut self, log: usize, gone: &[Entry]) {
        for entry in gone {
            if let Record::Admin { action: AdminAction::Remove { participant }, .. } = &entry.record {
                // It is let in again; what it has missed meanwhile it is owed again, as far as the log holds it.
                self.removed.remove(&(log, participant.0 as usize));
                self.removed.insert((GIVEN_UP, participant.0 as usize));
            }
        }
        for entry in gone {
            let Record::Commit(group) = &entry.record else { continue };
            for entry in &group.entries {
                let Some(&tag) = self.by_key.get(&entry.key) else { continue };
                let asked = &mut self.asked[tag.0 as usize];
                asked.decided.retain(|(by, _)| *by != log);
                asked.gone = asked.decided.is_empty();
            }
        }
        // What a leader decided in a lost epoch may be asked about in the one that takes its number.
        let epochs = gone.iter().filter_map(|entry| if let Record::Epoch { epoch, .. } = entry.record { Some(epoch) } else { None });
        if let Some(epoch) = epochs.min() {
            let led = self.by_txid.iter().filter(|((by, txid), _)| *by == LEADERS && txid.epoch >= epoch);
            led.for_each(|(_, tag)| self.asked[tag.0 as usize].lost = true);
        }
        // That stores went on without a leader, and from where, nothing else tells: what it decided, they may lack.
        let of_waiver =
            |entry: &Entry| matches!(entry.record, Record::Followed { .. } | Record::Admin { action: AdminAction::Waive { .. }, .. });
        if gone.iter().any(of_waiver) {
            self.asked.iter_mut().filter(|asked| asked.waived).for_each(|asked| asked.lost = true);
        }
        // A leader has let go of what was below a floor that the log does not hold any more.
        let floors = gone.iter().filter_map(|entry| if let Record::Floor { position } = entry.record { Some(position) } else { None });
        if let Some(floor) = floors.max() {
            let below = self.by_txid.iter().filter(|((_, txid), _)| txid.position() < floor);
            for (_, tag) in below {
                let asked = &mut self.asked[tag.0 as usize];
                (asked.lost, asked.below) = (true, true);
            }
        }
        self.lose_undecided();
    }

    fn lose_undecided(&mut self) {
        self.asked.iter_mut().filter(|asked| asked.decided.is_empty()).for_each(|asked| asked.lost = true);
    }

    /// The log was put back by command: it presumes nothing before every store has been heard, and gives up its tokens.
    pub(crate) fn restored_by_command(&mut self, old: LogId) {
        self.unheard = (0..self.kinds.len()).collect();
        self.retired.insert(old.0);
    }

    /// The log was put back without a word: it has this identity again.
    pub(crate) fn restored_in_silence(&mut self, log_id: LogId) {
        self.unheard.clear();
        self.retired.remove(&log_id.0);
    }

    /// A store has said what it holds, or a person has said not to wait for it.
    pub(crate) fn heard(&mut self, store: usize) {
        self.unheard.remove(&store);
    }

    /// Whether the log was put back by command, and has not heard this store since.
    pub(crate) fn is_unheard(&self, store: usize) -> bool {
        self.unheard.contains(&store)
    }

    /// Whether tokens of this log are worth nothing any more.
    pub(crate) fn is_retired(&self, log_id: LogId) -> bool {
        self.retired.contains(&log_id.0)
    }

    /// Whether a store has followed this start.
    pub(crate) fn is_followed(&self, owner: Owner) -> bool {
        self.kept.iter().any(|(_, epoch, incarnation)| (*epoch, *incarnation) == (owner.epoch, owner.incarnation))
    }

    /// A copy of a log begins a life of its own. `lives`: its original is up, and a store follows it; if not, none does until it is started
    /// again. What was told before is both's.
    pub(crate) fn log_cloned(&mut self, from: usize, to: usize, lives: bool) {
        (self.cloned, self.two_logs) = (true, true);
        self.followed = lives.then_some(from).into_iter().collect();
        self.lose_undecided();
        for asked in &mut self.asked {
            if let Some(&(_, csn)) = asked.decided.iter().find(|(by, _)| *by == from) {
                asked.decided.push((to, csn));
            }
            if let Some(told) = asked.told_by(from) {
                asked.tell(to, told);
            }
        }
        let removed: Vec<_> = self.removed.iter().filter(|(by, _)| *by == from).map(|(_, store)| (to, *store)).collect();
        self.removed.extend(removed);
        let copied: Vec<_> = self.by_txid.iter().filter(|((by, _), _)| *by == from).map(|((_, txid), tag)| (*txid, *tag)).collect();
        self.by_txid.extend(copied.into_iter().map(|(txid, tag)| ((to, txid), tag)));
    }

    /// A store follows the owner of this log.
    pub(crate) fn followed(&mut self, store: usize, log: usize, owner: Owner) {
        self.followed.insert(log);
        self.kept.insert((store, owner.epoch, owner.incarnation));
        if let Some(Evidence::Owner { recovered }) = self.evident.get_mut(&store) {
            *recovered = true;
        }
    }

    /// What it has told on its way may be lost.
    pub(crate) fn session_ends(&mut self, store: usize) {
        if self.evident.get(&store) == Some(&(Evidence::Owner { recovered: true })) {
            self.evident.remove(&store);
        }
    }

    /// Its Hello has come: whoever hears it knows by now whether it came with an older owner.
    pub(crate) fn said_hello(&mut self, store: usize) {
        let shows = matches!(self.evident.get(&store), Some(Evidence::Owner { .. })) && !self.is_removed(store);
        if shows && !self.store_alarms.contains(&store) {
            self.violation(format!("R-STORELOSS: store {store} was put back, its Hello shows it by its owner, and nobody was told"));
        }
    }

    /// What was known in its memory alone is gone.
    pub(crate) fn coordinator_ends(&mut self) {
        self.evident.clear();
    }

    /// Whether no store was put back.
    pub(crate) fn keeps_all(&self) -> bool {
        self.restored.is_empty()
    }

    /// One of two copies is given up: what only it decided, or told, is lost.
    pub(crate) fn log_dropped(&mut self, log: usize, survivor: usize) {
        self.two_logs = false;
        self.lose_undecided();
        for asked in &mut self.asked {
            let at = |log: usize| asked.decided.iter().any(|(by, _)| *by == log);
            let told = asked.told_by(log);
            asked.lost |= at(log) != at(survivor) && !at(LEADERS);
            asked.lost |= told.is_some() && asked.told_by(survivor).is_some() && told != asked.told_by(survivor);
            asked.lost |= told == Some(Told::Aborted) && !asked.decided.is_empty();
        }
    }

    /// An operator does not wait for what this leader has decided.
    pub(crate) fn waived(&mut self, leader: usize) {
        self.waived.insert(leader);
        let led = |asked: &&mut Asked| asked.writes.iter().any(|w| w.store == leader);
        self.asked.iter_mut().filter(led).for_each(|asked| asked.waived = true);
    }

    /// A store was put back to an older state.
    pub(crate) fn store_restored(&mut self, store: usize, evidence: Option<Evidence>) {
        self.restored.insert(store);
        // A later one overwrites what was there before.
        match evidence {
            Some(evidence) => drop(self.evident.insert(store, evidence)),
            None => drop(self.evident.remove(&store)),
        }
        // What a database has forgotten may be asked there again.
        if matches!(self.kinds[store], Kind::Leader | Kind::Preparing) {
            let there = self.asked.iter_mut().filter(|asked| asked.writes.iter().any(|w| w.store == store));
            there.for_each(|asked| (asked.lost, asked.below) = (true, true));
        }
    }

    /// Whether this transaction's decision was in a log that does not hold it any more.
    pub(crate) fn was_decided(&self, tag: Tag) -> bool {
        self.asked[tag.0 as usize].gone
    }

    /// Whether this store has lost changes, and everybody knows.
    pub(crate) fn is_store_lost(&self, store: usize) -> bool {
        self.restored.contains(&store) && self.store_alarms.contains(&store)
    }

    /// Somebody was told.
    pub(crate) fn alarm(&mut self, log: usize, alarm: &Alarm) {
        match alarm {
            Alarm::LogLoss(_) | Alarm::NotOwner(..) => self.log_alarm = true,
            Alarm::StoreLoss(store, why) if !self.restored.contains(&(store.0 as usize)) => {
                self.violation(format!("store {} has lost nothing, and is said to: {why}", store.0));
            }
            Alarm::StoreLoss(store, _) => drop(self.store_alarms.insert(store.0 as usize)),
            Alarm::Damage(damage, _) => self.damaged(log, damage),
            Alarm::Stuck { .. } => {}
            Alarm::Misbehaves(store, why) => self.violation(format!("store {} is said to misbehave: {why}", store.0)),
            Alarm::WrongKind(store, ..) => self.violation(format!("store {} is said to be of another kind", store.0)),
        }
    }

    fn damaged(&mut self, log: usize, damage: &Damage) {
        let (store, tag) = (damage.participant.0 as usize, self.tag_of(log, damage.txid));
        let Some(tag) = tag else {
            return self.violation(format!("I12: damage of {}, which nobody asked for", damage.txid));
        };
        self.damage.insert((store, tag));
        let asked = &self.asked[tag.0 as usize];
        let real = self.by_hand.contains(&(store, tag)) || asked.lost || asked.waived || self.cloned || self.restored.contains(&store);
        let real = real || self.given_up.contains(&store) || self.is_removed(store);
        if !real {
            self.violation(format!(
                "I12: damage of {tag:?} ({}) at store {store} is recorded, and there is none: {}",
                damage.txid, damage.reason
            ));
        }
    }

    // ---- what clients are told ----

    /// The coordinator answers a client: committed. From this moment it is a promise, whether the answer arrives or not. `visible` is what one
    /// who reads finds at each store that the coordinator can know of: `None` at one that is away.
    pub(crate) fn told_committed(&mut self, log: usize, tag: Tag, receipt: &Receipt, wait: Wait, visible: &[Option<&State>]) {
        if let Some(seen) = seen_in(receipt).find(|seen| !self.may_be_seen(*seen)) {
            self.violation(format!("I11: {tag:?} is told what {seen:?} wrote, which is not durably decided"));
        }
        let (kinds, by_hand, restored, cloned) = (&self.kinds, &self.by_hand, &self.restored, self.cloned);
        let (ordered, damage) = (&self.given_up, &self.damage);
        let asked = &mut self.asked[tag.0 as usize];
        if asked.writes.is_empty() {
            return; // it only read
        }
        // The damage of a removal stands, though a crash may have cut off the order behind it. What a waived leader tells too late is damage.
        let waived = asked.waived;
        let given_up = |store: usize| (ordered.contains(&store) || waived) && damage.contains(&(store, tag));
        let there = |store: usize| match visible[store] {
            Some(state) => state.history.iter().any(|applied| applied.tag == tag),
            None => asked.ever_applied.contains(&store),
        };
        let followed = |store: usize| there(store) || by_hand.contains(&(store, tag)) || restored.contains(&store) || given_up(store);
        let waits_for = |store: usize| match wait {
            Wait::Decided => false,
            Wait::Applied => kinds[store] != Kind::Redo,
            Wait::Visible => true,
        };
        let lagging = |w: &&Writes| waits_for(w.store) && !receipt.pending.contains(&ParticipantId(w.store as u16)) && !followed(w.store);
        let stands = |log: usize| asked.decided.contains(&(log, receipt.csn));
        let problem = if asked.told_by(log) == Some(Told::Aborted) {
            Some("I7: it was told aborted before")
        } else if matches!(asked.told_by(log), Some(Told::Committed(csn)) if csn != receipt.csn) {
            Some("I2: it was told committed at another CSN before")
        } else if !stands(log) && !stands(LEADERS) {
            Some("I11: it is not durably decided at that CSN")
        } else if asked.writes.iter().any(|w| lagging(&w)) {
            Some("Clients: a store that the client waits for has not applied it")
        } else {
            None
        };
        asked.lost |= cloned && asked.told_aborted();
        let lost = asked.lost;
        asked.tell(log, Told::Committed(receipt.csn));
        if let Some(problem) = problem.filter(|_| !lost) {
            self.violation(format!("{problem}: {tag:?} ({}) is told committed at {} ({wait:?})", receipt.txid, receipt.csn));
        }
    }

    /// Whether what it wrote may be shown to clients.
    fn may_be_seen(&self, tag: Tag) -> bool {
        let asked = &self.asked[tag.0 as usize];
        asked.lost || !asked.decided.is_empty() || self.by_hand.iter().any(|(_, by_hand)| *by_hand == tag)
    }

    /// The coordinator answers a client: aborted.
    pub(crate) fn told_aborted(&mut self, log: usize, tag: Tag) {
        let cloned = self.cloned;
        let asked = &mut self.asked[tag.0 as usize];
        if asked.writes.is_empty() {
            return; // it only read: nothing of it is anywhere, and after a restart nobody knows of it
        }
        asked.lost |= cloned && (!asked.decided.is_empty() || asked.told.iter().any(|(_, told)| *told != Told::Aborted));
        let problem = match (asked.told_by(log), asked.decided_at()) {
            _ if asked.lost => None,
            (Some(Told::Committed(_)), _) => Some("it was told committed before"),
            (_, Some(_)) => Some("it is decided to commit"),
            (_, None) => None,
        };
        asked.tell(log, Told::Aborted);
        if let Some(problem) = problem {
            self.violation(format!("I7: {tag:?} is told aborted: {problem}"));
        }
    }

    /// Whether anybody was told that it is aborted.
    pub(crate) fn was_told_aborted(&self, tag: Tag) -> bool {
        self.asked[tag.0 as usize].told_aborted()
    }

    /// A client may read at a store that has reached its token: everything up to there is visible.
    pub(crate) fn reached(&mut self, store: usize, csn: Csn, visible: &State) {
        if self.restored.contains(&store) || self.is_removed(store) {
            return;
        }
        let missing = self.asked.iter().enumerate().find(|(i, asked)| {
            let due = asked.decided_at().is_some_and(|decided| decided <= csn) && asked.writes.iter().any(|w| w.store == store);
            due && !asked.lost
                && !asked.waived
                && !visible.history.iter().any(|applied| applied.tag.0 == *i as u64)
                && !self.by_hand.contains(&(store, Tag(*i as u64)))
                && !self.damage.contains(&(store, Tag(*i as u64)))
        });
        if let Some((i, asked)) = missing {
            let decided = asked.decided_at().expect("due");
            self.violation(format!("Clients: store {store} is said to have reached {csn}, but Tag({i}) at {decided} is not visible there"));
        }
    }

    // ---- the end ----

    /// Everything has come to rest: `stores` are what is durable, `starts` those of the log that is followed now. Whatever deviates from
    /// the decisions, somebody has said so (I12).
    pub(crate) fn at_rest(&mut self, stores: &[&State], starts: &[(Epoch, u64)]) {
        let untold = |store: &usize| !self.store_alarms.contains(store) && !self.is_removed(*store);
        if let Some((store, evidence)) = self.evident.iter().find(|(store, _)| untold(store)) {
            return self.violation(format!("R-STORELOSS: store {store} was put back, and nobody was told: {evidence:?}"));
        }
        let mut broken = None;
        for (i, asked) in self.asked.iter().enumerate() {
            let tag = Tag(i as u64);
            let there = |store: usize| stores[store].history.iter().any(|applied| applied.tag == tag);
            // From its removal on nobody looks after a store: it may lose what it had.
            let unattended = |store: usize| self.is_removed(store) && asked.ever_applied.contains(&store);
            let settled = |store: usize| there(store) || self.damage.contains(&(store, tag)) || unattended(store);
            let everywhere = asked.writes.iter().all(|w| settled(w.store));
            if asked.lost {
                // What a copy told its clients, and no store has ever heard of it, shows nowhere.
                let shows = |log: &usize| !self.cloned || self.followed.contains(log);
                let aborted = asked.told.iter().any(|(log, told)| *told == Told::Aborted && shows(log));
                // A store that has followed a start which the log does not hold can tell, and is asked.
                let promised = asked.told.iter().any(|(_, told)| matches!(told, Told::Committed(_)));
                let provable = asked.writes.iter().any(|w| self.has_kept_another(w.store, starts));
                // Where it is but in stores that were removed, an operator has given up what they could tell.
                let shown = asked.writes.iter().any(|w| there(w.store) && !self.is_removed(w.store));
                let deviates = shown || (promised && provable);
                let agree = asked.below || !deviates || (everywhere && !aborted);
                let store_lost = asked.writes.iter().any(|w| self.is_store_lost(w.store));
                let said = self.log_alarm || store_lost || self.damage.iter().any(|(_, damaged)| *damaged == tag);
                if !agree && !said {
                    broken.get_or_insert(format!("I12: {tag:?}, which a log has lost, is damaged, and nobody was told: {asked:?}"));
                }
                continue;
            }
            if self.database_lost(asked) {
                continue;
            }
            for w in &asked.writes {
                if there(w.store) == asked.decided_at().is_some() || self.damage.contains(&(w.store, tag)) {
                    continue;
                }
                // From its removal on nobody looks after it: it may lose what it had.
                let had = asked.ever_applied.contains(&w.store) || self.removed.contains(&(GIVEN_UP, w.store));
                if self.is_removed(w.store) && !there(w.store) && had {
                    continue;
                }
                let database = matches!(self.kinds[w.store], Kind::Leader | Kind::Preparing);
                if self.restored.contains(&w.store) && (self.store_alarms.contains(&w.store) || database) {
                    continue;
                }
                let by_hand = self.by_hand.contains(&(w.store, tag));
                let rule = if by_hand || self.restored.contains(&w.store) { "I12" } else { "I1, I5" };
                let what =
                    if there(w.store) { "applied it, though it was never decided" } else { "has not applied it, though it is decided" };
                broken.get_or_insert(format!("{rule}: store {} {what}: {tag:?}, {:?}, told {:?}", w.store, asked.decided, asked.told));
            }
        }
        if let Some(broken) = broken {
            return self.violation(broken);
        }
        for (store, state) in stores.iter().enumerate() {
            for (i, applied) in state.history.iter().enumerate() {
                let twice = state.history[..i].iter().any(|earlier| earlier.tag == applied.tag);
                if twice && !self.asked[applied.tag.0 as usize].lost {
                    return self.violation(format!("I8: store {store} holds {:?} twice", applied.tag));
                }
            }
        }
        self.one_order(stores);
        self.conditions();
    }

    /// Whether this store has kept a start for its owner that is not among these, and has not lost it.
    fn has_kept_another(&self, store: usize, starts: &[(Epoch, u64)]) -> bool {
        let another = |(at, epoch, incarnation): &(usize, Epoch, u64)| *at == store && !starts.contains(&(*epoch, *incarnation));
        !self.restored.contains(&store) && self.kept.iter().any(another)
    }

    /// Whether a database that may have decided it has lost changes, and everybody knows.
    fn database_lost(&self, asked: &Asked) -> bool {
        asked.writes.iter().any(|w| self.is_store_lost(w.store) && matches!(self.kinds[w.store], Kind::Leader | Kind::Preparing))
    }

    /// Whether nothing is promised of this write's place any more.
    fn excused(&self, store: usize, tag: Tag) -> bool {
        let anywhere = |set: &BTreeSet<(usize, Tag)>| set.iter().any(|(_, there)| *there == tag);
        let looked_after = !self.restored.contains(&store) && !self.is_removed(store);
        let asked = &self.asked[tag.0 as usize];
        asked.lost || asked.waived || !looked_after || anywhere(&self.by_hand) || anywhere(&self.damage)
    }

    /// I6: per document, the index's effective writes are a subsequence of the database's, and both end with the same one.
    fn one_order(&mut self, stores: &[&State]) {
        let mut documents: BTreeMap<(usize, String), BTreeSet<Tag>> = BTreeMap::new();
        for (i, asked) in self.asked.iter().enumerate() {
            for w in asked.writes.iter().filter(|w| self.kinds[w.store] == Kind::Redo) {
                for (key, ..) in &w.keys {
                    documents.entry((w.store, key.clone())).or_default().insert(Tag(i as u64));
                }
            }
        }
        for ((index, key), writers) in documents {
            let Some(database) = self.database_of(&key) else { continue };
            if writers.iter().any(|tag| self.excused(index, *tag) || self.excused(database, *tag)) {
                continue;
            }
            let order = |store: usize| -> Vec<Tag> {
                let touching = stores[store].history.iter().filter(|a| a.keys.contains(&key) && writers.contains(&a.tag));
                touching.map(|a| a.tag).collect()
            };
            let (rows, documents) = (order(database), order(index));
            let mut rest = rows.iter();
            let subsequence = documents.iter().all(|tag| rest.any(|row| row == tag));
            if !subsequence || rows.last() != documents.last() {
                let what =
                    format!("I6: `{key}`: the database (store {database}) has {rows:?}, the index (store {index}) has {documents:?}");
                return self.violation(what);
            }
        }
    }

    /// The database whose row every writer of the document locks (R-COVER).
    fn database_of(&self, key: &str) -> Option<usize> {
        let rows = self.asked.iter().flat_map(|asked| &asked.writes).filter(|w| self.kinds[w.store] != Kind::Redo);
        rows.filter(|w| w.keys.iter().any(|(k, ..)| k == key)).map(|w| w.store).next()
    }

    /// R-COND: a conditional write's predecessor in CSN order is the one it was based on.
    fn conditions(&mut self) {
        type Write = (Csn, Tag, bool, Option<Condition>);
        let mut documents: BTreeMap<(usize, &String), Vec<Write>> = BTreeMap::new();
        for (i, asked) in self.asked.iter().enumerate() {
            // One that a log has lost was decided, perhaps, and wrote.
            let Some(csn) = asked.decided_at().or((asked.lost || asked.waived).then_some(Csn::ZERO)) else { continue };
            for w in asked.writes.iter().filter(|w| self.kinds[w.store] == Kind::Redo) {
                for (key, delete, condition) in &w.keys {
                    documents.entry((w.store, key)).or_default().push((csn, Tag(i as u64), *delete, *condition));
                }
            }
        }
        let mut broken = None;
        for ((index, key), mut writes) in documents {
            writes.sort_by_key(|(csn, ..)| *csn);
            if writes.iter().any(|(_, tag, ..)| self.excused(index, *tag)) {
                continue;
            }
            let mut before: Option<Csn> = None;
            for (csn, tag, delete, condition) in writes {
                let holds = match condition {
                    None => true,
                    Some(Condition::Absent) => before.is_none(),
                    Some(Condition::Csn(expected)) => before == Some(expected),
                };
                if !holds {
                    broken.get_or_insert(format!(
                        "R-COND: {tag:?} at {csn} wrote `{key}` of store {index} under {condition:?}, over the write of {before:?}"
                    ));
                }
                before = (!delete).then_some(csn);
            }
        }
        if let Some(broken) = broken {
            self.violation(broken);
        }
    }

    /// What was asked and how it ended, for people.
    pub(crate) fn summary(&self) -> (usize, usize, usize) {
        let committed = self.asked.iter().filter(|a| !a.decided.is_empty()).count();
        let aborted = self.asked.iter().filter(|a| a.told_aborted()).count();
        (self.asked.len(), committed, aborted)
    }
}

/// Whose writes a client is shown: a played database answers with the newest.
fn seen_in(receipt: &Receipt) -> impl Iterator<Item = Tag> {
    let rows = receipt.results.iter().flatten().flat_map(|(_, results)| results.iter()).flat_map(|result| &result.rows);
    rows.flatten().filter_map(|value| if let Value::Integer(tag) = value { Some(Tag(*tag as u64)) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decider;

    #[test]
    fn a_place_belongs_to_one_transaction() {
        let mut checker = Checker::new(vec![Kind::Serial]);
        let mut decide = |n: u64, place: u64| {
            let key = RequestKey { key: n.to_be_bytes()[..].into(), attempt: 0 };
            checker.asks(key.clone(), Vec::new());
            let txid = Txid { epoch: Epoch(1), n, decider: Decider::Log };
            let csn = Csn::new(Epoch(1), place);
            checker.decided(0, &CommitEntry { txid, key, csn, request_hash: 0, branches: Vec::new(), at_ms: 0 });
            checker.violation.take()
        };
        assert_eq!((decide(1, 1), decide(2, 2)), (None, None));
        assert!(decide(3, 2).is_some_and(|what| what.starts_with("R-ORDER")));
    }
}
