//! Rules broken on purpose, to show that the simulator sees it.

/// What one part of the world gets wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mutation {
    /// Nothing.
    #[default]
    None,
    /// The log says Durable before it has forced: replies and Commits go out for what a crash may take back (§3.6).
    DurableBeforeForce,
    /// An index's watermark goes up to the newest CSN it has applied, past open ones (R-WATERMARK).
    WatermarkPassesOpen,
    /// A store acks what a crash may take back (§3.7).
    AckBeforeDurable,
    /// A put below the document's CSN overwrites it (§7).
    OldDocumentsWin,
    /// A serial executor's watermark is not in the local commit that it stands for (I8).
    WatermarkApart,
    /// A preparing store votes without holding locks (R-ORDER).
    NoLocks,
    /// A store keeps its open batch over the end of a session (R-SESSION).
    KeepsWorking,
    /// A branch's Prepare is delivered a second time, later, maybe in another session (R-ONEPREP).
    PreparesAgain,
    /// What applications have prepared is not looked for (R-ANSWER).
    NotListed,
    /// A preparing store does not tell the markers that it wrote (R-LR).
    MarkersUntold,
    /// A new session does not learn of what is still being decided (R-REDO).
    NoHandover,
}

impl Mutation {
    /// All that break something.
    pub const ALL: [Mutation; 11] = [
        Mutation::DurableBeforeForce,
        Mutation::WatermarkPassesOpen,
        Mutation::AckBeforeDurable,
        Mutation::OldDocumentsWin,
        Mutation::WatermarkApart,
        Mutation::NoLocks,
        Mutation::KeepsWorking,
        Mutation::PreparesAgain,
        Mutation::NoHandover,
        Mutation::NotListed,
        Mutation::MarkersUntold,
    ];
}
