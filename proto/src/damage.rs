/// What a `DamageEntry.kind` means, and how it is mended.
pub fn meaning(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "rolled back by hand" => (
            "it was decided to commit, the other stores have it, and this one does not.",
            "write here what is missing, by an ordinary transaction; the other stores and the application's own records say what it was.",
        ),
        "committed by hand" => (
            "it was decided to abort, the other stores have nothing of it, and this one has.",
            "undo here what is there too much, by an ordinary transaction; or write the same at the other stores, if it was to happen after all.",
        ),
        "skipped" => (
            "it is committed, the other stores have it, and here its write was given up.",
            "read the truth in the database, and put or delete each document anew in a transaction of its own.",
        ),
        "hazard" => (
            "it is committed, and nobody can tell whether this store has it.",
            "compare what it wrote here with the other stores, and write what is missing by an ordinary transaction.",
        ),
        _ => ("see docs/operations.md.", "see docs/operations.md."),
    }
}
