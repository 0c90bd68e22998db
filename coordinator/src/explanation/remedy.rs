//! The way out of what only a person can mend: by the rule that the machine names in its sentence.

/// What to do about a store that is not let in, because of this.
pub fn of_refused(why: &str, name: &str) -> String {
    if why.contains("(R-STORELOSS)") {
        format!(
            "if the newer copy of `{name}` still exists, put it back, and start both again; if not, restore the log and all stores from one backup \
             (`lockstep restore`), or give the store up (`lockstep participants remove {name} --dry-run`) and load it anew under another name"
        )
    } else if why.contains("which this log does not hold") {
        format!(
            "if this log is a copy, and the one that `{name}` follows still exists: stop this daemon, and go on with that one; if it is lost: \
             `lockstep leave-safe-mode --dry-run`"
        )
    } else if why.contains("(R-OWNER)") {
        format!("`{name}` follows one log alone: go on with that coordinator, or give this one a store of its own")
    } else if why.contains("(R-LOGLOSS)") {
        of_lost_log().into()
    } else {
        "mend what the sentence names; it is tried again by itself".into()
    }
}

/// What to do about a log that has lost records.
pub fn of_lost_log() -> &'static str {
    "put the newest log back, if there is one anywhere, and start again; if it is lost: compare the stores (`lockstep verify`), then \
     `lockstep leave-safe-mode --dry-run`"
}
