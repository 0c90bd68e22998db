//! Rules of the protocol that can be taken away, one at a time, to show that each is needed: the simulator must find a violation.
//!
//! At its place in the machine a rule reads `&& !broken(Mutation::Name)`, or the like. Without the simulator that is a constant.

macro_rules! mutations {
    ($($name:ident, $rule:literal, $what:literal;)*) => {
        /// One rule taken away.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub enum Mutation {
            /// None is: the protocol as it is written.
            #[default]
            None,
            $(#[doc = $what] $name,)*
        }

        impl Mutation {
            /// All that take something away.
            pub const ALL: &[Mutation] = &[$(Mutation::$name),*];

            /// The rule, as docs/protocol.md names it.
            pub fn rule(self) -> &'static str {
                match self {
                    Mutation::None => "",
                    $(Mutation::$name => $rule,)*
                }
            }

            /// What happens instead.
            pub fn what(self) -> &'static str {
                match self {
                    Mutation::None => "nothing",
                    $(Mutation::$name => $what,)*
                }
            }
        }
    };
}

mutations! {
    // Who takes part
    OwnerUnchecked, "R-OWNER", "a participant follows whoever comes";
    OwnerEpochOnly, "R-OWNER", "a participant takes the same epoch with another incarnation for its owner";
    StartsUnchecked, "R-OWNER", "a participant follows a log that does not hold the start it has followed";
    LeaderOwnerUnchecked, "R-OWNER at the leader", "the transaction that inserts a marker does not read the owner row";
    LogSilenceDecides, "R-DECIDER", "a led branch is presumed aborted because the log does not know it";
    NoFence, "R-FENCE", "a paused coordinator appends after its successor has taken over";
    // A transaction's states
    PreparedEndsAlone, "once prepared, never alone", "a prepared branch is rolled back when its session ends";
    DecidingAborts, "only Preparing may abort", "a lost session aborts what is being decided";
    // The run
    YesBeforeForce, "force before Yes", "a preparing store votes before its branch is durable";
    OldPreparesTaken, "refuse old epochs and sessions", "a Prepare of an ended session is run in the next one, of a later epoch too";
    PreparesAgain, "R-ONEPREP", "a branch's Prepare is delivered a second time, later, maybe in another session";
    BatchOutOfOrder, "R-SERIAL", "the CSNs of a batch are taken against the order in which it ran";
    RestOfBatchStays, "R-SERIAL", "one of a batch is taken back, and the votes of the others stand";
    SharedApart, "R-SHARED", "those that share a branch are told of their outcome one by one";
    SharesEarly, "R-SHARED", "a preparing store is told that a transaction may share a branch before everybody else has voted";
    RestOfBranchStays, "R-SHARED", "one of those that share a branch is aborted, and the votes of the others stand";
    LedSharesBatch, "R-SERIAL", "a led transaction shares a batch with others";
    VoteOutlivesSession, "R-REDO", "a redo vote holds after its session has ended";
    NoHandover, "R-REDO", "a new session does not learn of what is still being decided";
    ReadOnlyFollows, "read-only: released", "a branch that only read takes part in phase two";
    ReadsUncommitted, "R-SERIAL", "what only reads in an open batch is answered before the batch is decided";
    NotListed, "R-ANSWER", "what applications have prepared is not looked for";
    MarkersUntold, "R-LR", "a preparing store does not tell the markers that it wrote";
    HandoverBeforeScan, "R-REDO, R-LR", "a serial executor is handed its redos before the leaders are scanned";
    IndexWaits, "R-NOWAIT", "an index waits for the other writer of a document instead of saying Conflict";
    LockWaitHoldsUp, "R-NOWAIT", "a branch that waits for a lock holds up what its store is told after it";
    AbortMissesWorking, "late votes", "an Abort does not reach what a leader runs beside others";
    DurableBeforeForce, "force before reply and send", "the log says Durable before it has forced";
    AckBeforeDurable, "ack after durable", "a store acks what a crash may take back";
    WatermarkPassesOpen, "R-WATERMARK", "an index's watermark goes up to the newest CSN that it has applied";
    ClosedPassesOpen, "R-WATERMARK", "stores are told that the watermark may pass CSNs whose outcome is open";
    WaiverForgotten, "R-WATERMARK", "the next start does not know that a leader was waived";
    RowStandsForLed, "R-LR, R-STORELOSS", "the row that says how far a preparing store is acked stands for branches whose leader had not told of them";
    CrossingUnseen, "R-WATERMARK", "what a waived leader tells, and a store had followed past unheard, counts as acked";
    ClosedBeforeScan, "R-WATERMARK", "the watermark does not wait for a leader that has not been scanned";
    WatermarkApart, "R-WATERMARK", "a serial executor's watermark is not in the local commit that it stands for";
    IndexWatermarkApart, "R-WATERMARK", "an index's watermark is durable before the documents that it stands for";
    LateRequests, "an index's fence", "an index applies what a session that has ended sent it";
    UnansweredArrives, "an index's fence, R-SKIP", "an index applies a request that it never answered, after its redo was given up";
    FirstAckEnds, "all acks, not the first", "the first ack ends a transaction";
    SkipBeforeDamage, "R-SKIP", "a redo is given up before its Damage is durable";
    LeaderVotesEarly, "R-LR", "a leader is asked before everybody else has voted, and its Yes decides";
    ScannedOnce, "R-LR", "a leader at which an older session may still commit is not looked at again";
    SettleReads, "R-LR", "recovery reads that there is no marker, and inserts none";
    OneScanIsEnough, "R-LR: several leaders", "what waits for leaders to be scanned waits for one of them";
    FloorBeforeScan, "R-LR: the floor", "the floor passes what a leader that has not been scanned may have decided";
    FloorPassesBranches, "R-MARKER: the floor", "a preparing store drops markers of branches that a later start asks for again";
    FloorApart, "R-LR", "markers below the floor go, and may be inserted again";
    // The log
    FailedAppendAborts, "R-UNKNOWN", "an append that fails is taken for not written: its clients are told aborted";
    ForceTriedAgain, "R-FSYNC", "a force that failed is tried again, and believed";
    FullLogRuns, "R-FULL", "a full log takes new transactions";
    PausedRuns, "a backup", "new transactions are taken while servers are copied";
    LogLossUnseen, "R-LOGLOSS", "nobody looks whether stores know more than the log";
    LostCsnUnseen, "R-LOGLOSS", "a store that knows a CSN above where the log ends says nothing of the log";
    PresumesUnheard, "R-LOGLOSS", "presumed abort does not wait for the stores' evidence";
    StoreLossUnseen, "R-STORELOSS", "a store that reports less than it has acked is let in";
    OwnerLossUnseen, "R-STORELOSS", "a store that keeps an older owner than it has answered is let in";
    MarkerLossUnseen, "R-STORELOSS", "a leader that has lost a marker is let in";
    AckedNotForced, "R-STORELOSS", "records are forgotten before Acked is durable";
    EndedNotSent, "R-STORELOSS", "a start does not send again what was ended, as if every store had it durably";
    LeaderAcked, "R-STORELOSS", "how far a leader has come is recorded, as if it had to show a marker of that CSN";
    // Sessions and questions
    KeepsWorking, "R-SESSION", "a store keeps its open batch over the end of a session";
    MarkerForgotten, "outcomes are kept", "a preparing store forgets a branch's outcome at once";
    ForeignBranches, "R-ANSWER: our gids only", "a store lists branches that are not ours";
    NewerEpochAborts, "R-ANSWER: > e", "a branch of a newer epoch is answered Abort";
    InProgressAborts, "R-ANSWER: = e, in progress", "a branch that is being decided is answered Abort";
    PresumesBeforeReplay, "R-ANSWER: < e, after replay", "branches are answered before the Commit records are read";
    // One order
    CsnAtBegin, "R-ORDER", "the CSN is taken when the transaction begins";
    CsnRestarts, "R-ORDER", "CSNs start again from 1 at every start";
    NoLocks, "R-ORDER", "a preparing store votes without holding locks";
    OldDocumentsWin, "documents by CSN", "a put below the document's CSN overwrites it";
    NoTombstones, "deletes leave their CSN", "a delete leaves nothing at the key";
    ConditionsAtIndexOnly, "R-COND", "conditions are not tested against decided writes that are not applied";
    NoExclusion, "R-COND", "two undecided writers of a document may be conditional";
    OneSidedExclusion, "R-COND", "an unconditional write may follow an undecided conditional one";
    ConditionsNotRebuilt, "R-COND", "after a start, decided writes that are not applied are not known to conditions";
    SkippedCounts, "R-COND", "a write that was given up counts for conditions";
    ConditionsBeforeScan, "R-COND", "conditions are tested before the leaders are scanned";
    // Clients
    KeyRunsAgain, "R-KEY", "a request that is sent again runs again";
    AbortedKeyRuns, "R-KEY", "a request whose key was aborted runs when it is sent again";
    AnyRequestJoins, "R-KEY", "another request under the same key is told the first one's outcome";
    OldEpochRuns, "R-KEY", "a request first sent to an older epoch is run";
    BelowFloorRuns, "R-KEY: the floor", "a request from below the floor is looked up or run";
    KeyNotAskedAtLeader, "R-KEY, R-DECIDER", "a key of an older epoch is settled without the leaders";
    WaivedNotAsked, "R-KEY, R-DECIDER", "a key of an older epoch is settled without a leader that was waived";
    UntoldKeysRun, "R-KEY, R-DECIDER", "a key that comes again without its position is settled before the leaders have told";
    EarlierStartsExpire, "R-KEY: the floor", "what was first sent to an earlier start, and has left no trace, is told expired";
    FloorNotForced, "R-KEY: the floor", "outcomes are forgotten before the Floor is durable";
    // By hand
    NoSuchBranchIsSuccess, "R-MARKER", "a Commit that finds no branch counts as done";
    DamageForgotten, "I12", "a start does not know of the damage that stands in its log";
    SkippedReplayed, "R-SKIP", "a start owes again what was given up";
    ForgetUnskips, "R-SKIP", "a start owes again what was given up, once its damage was forgotten";
    AuditForgotten, "who ordered what", "a start does not know what was ordered before it";
    RemovedLetIn, "a removed store", "a start lets a store in that was removed";
    RemovalLetsIn, "a removed store", "a store is let in while the order that removes it is on its way to the disk";
    RemovalUnrecorded, "a removed store, I12", "a store is removed, and what it was owed is not recorded as damage";
    RemovalBeforeScan, "a removed store, I12", "a store is removed though a leader has not told what it owes to it";
    RemovalNotAcked, "a removed store, R-STORELOSS", "a leader is removed, and the log does not say how far stores had followed it";
    RestoredPresumes, "R-LOGLOSS", "a log put back by command waits for stores no longer than another";
    RestoredKeepsTokens, "R-LOGLOSS", "a log put back by command honours the tokens of before";
    MigratesOverVotes, "R-REDO: the schema", "a schema is changed while redos made under the old one are not decided";
    // What a slip of the hand would do
    FloorOffByOne, "off by one", "a request from just below the floor is looked up or run";
    ClosedOffByOne, "off by one", "stores are told that the watermark may pass the first CSN whose outcome is open";
    WatermarkOffByOne, "off by one", "a store's watermark passes the first CSN that it was not given";
    ReachedOffByOne, "off by one", "a token's own transaction, not yet applied, counts as reached";
    PresumesLastEpoch, "off by one", "the last epoch's branches are presumed aborted without the stores' evidence";
    ThirdForgotten, "one of several", "of a transaction's participants two are told to follow";
    AckCountsTwice, "one of several", "an ack that comes twice counts for another store too";
    MarkerHoldsOneRedo, "one of several", "a leader's marker holds the redo of one index";
    TakeBackTellsOne, "one of several", "of those who hold a reserved redo that is taken back one is told";
    UnfollowedForgotten, "forgotten too soon", "the log forgets records that stores have not followed, once the floor has passed them";
    FloorPassesLed, "forgotten too soon", "the floor passes what a leader has decided and others have not applied";
    DroppedAtApplied, "applied for durable", "a decision is off a store's list when it can be read there";
    AckedAtApplied, "applied for durable", "the log is told that a store has acked what it has only applied";
    VisibleIsApplied, "applied for visible", "who waits until indices find it is told when databases have it";
    AppliedStaysApplied, "taken back", "what an index applied and lost with a crash is not sent again";
    EndedStaysEnded, "taken back", "who asks about what a store applied and lost with a crash is told that it is there";
    KeysNotTakenBack, "taken back", "conditions do not know of what an index applied and lost with a crash";
    LateItemUnseen, "found late", "what a leader tells below what a store has applied is not looked for";
    NewestIsLatest, "found late", "a write that is found late counts as its document's newest";
    SettlesNewer, "found late", "an older write, applied, ends the watch over a newer one of its document";
    EpochEndsAtFirst, "found late", "a start takes the first decision of an epoch for its last";
    GroupOwedFromLast, "batches", "a batch counts as owed from its last CSN on";
    OrderNotLookedAtAgain, "orders", "an order is carried out though what it is about has changed until it was durable";
    BarrierIgnoresStuck, "R-SERIAL", "a serial executor gets what comes after a redo that it could not apply";
    PreparesOverReserved, "R-SERIAL", "a serial executor runs on top of a redo that is being decided";
    AbortMissesRunning, "late votes", "an Abort does not reach a batch that runs";
}

/// Whether this rule is taken away in this run.
#[cfg(any(test, feature = "simulator"))]
pub(crate) fn broken(mutation: Mutation) -> bool {
    TAKEN_AWAY.get().contains(&mutation)
}

/// Whether this rule is taken away in this run: never, outside the simulator.
#[cfg(not(any(test, feature = "simulator")))]
pub(crate) const fn broken(_: Mutation) -> bool {
    false
}

#[cfg(any(test, feature = "simulator"))]
thread_local! {
    static TAKEN_AWAY: std::cell::Cell<[Mutation; 2]> = const { std::cell::Cell::new([Mutation::None; 2]) };
}

/// Takes a rule away in this thread; `None` gives all back.
#[cfg(any(test, feature = "simulator"))]
pub(crate) fn take_away(mutation: Mutation) {
    take_away_both([mutation, Mutation::None]);
}

/// Takes two rules away: where one stands before the other, neither is missed alone.
#[cfg(any(test, feature = "simulator"))]
pub(crate) fn take_away_both(mutations: [Mutation; 2]) {
    TAKEN_AWAY.set(mutations);
}
