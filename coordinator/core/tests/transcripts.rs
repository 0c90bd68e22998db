//! Golden transcripts: the coordinator's behaviour as stories, one for each row of `docs/crash-table.md` and for each rule a client can meet.
//! `UPDATE=1 cargo test -p lockstep-core --test transcripts` writes them anew; read the difference.

mod support;

use lockstep_core::{
    Abilities, AdminAction, Ballot, Condition, CoordId, Csn, Epoch, FromParticipant, Kind, LogId, Marker, MarkerEvidence, Owner,
    ParticipantId, Position, Progress, Refusal, RefusalKind, Settle, Token, Vote, Wait,
};
use std::path::{Path, PathBuf};
use support::{Play, csn, enlisted, key, put, row, txid};

/// SQLite and Tantivy, as embedded.
const EMBEDDED: &[(&str, Kind)] = &[("db", Kind::Serial), ("index", Kind::Redo)];
/// A database that prepares, and an index.
const REMOTE: &[(&str, Kind)] = &[("pg", Kind::Preparing), ("index", Kind::Redo)];
/// A database whose own commit decides, and an index.
const LED: &[(&str, Kind)] = &[("bank", Kind::Leader), ("index", Kind::Redo)];
/// The same, with two databases that prepare.
const LED_FOR_ALL: &[(&str, Kind)] = &[("bank", Kind::Leader), ("pg", Kind::Preparing), ("other", Kind::Preparing), ("index", Kind::Redo)];

/// What a preparing store may be able to do beside that.
const ABLE: Abilities = Abilities { leads: true, keeps_acked: true, shares: false };

const PG: ParticipantId = ParticipantId(0);
const INDEX: ParticipantId = ParticipantId(1);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn golden(name: &str, title: &str, play: &Play) {
    let text = format!("{title}\n\n{}", play.text());
    let path = folder().join(format!("{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differs =
        expected.lines().zip(text.lines()).position(|(e, t)| e != t).unwrap_or(expected.lines().count().min(text.lines().count()));
    assert!(
        expected == text,
        "{} differs from line {}:\n  golden: {:?}\n  now:    {:?}\nUPDATE=1 writes it anew. All of it now:\n{text}",
        path.display(),
        differs + 1,
        expected.lines().nth(differs),
        text.lines().nth(differs)
    );
}

macro_rules! story {
    ($name:ident, $title:literal, $play:ident = $stage:expr, $body:block) => {
        #[test]
        fn $name() {
            let mut $play = $stage;
            $body
            golden(stringify!($name), $title, &$play);
        }
    };
}

/// A film: a row and a document.
fn film(n: u32) -> Vec<support::Part> {
    vec![row("db"), put("index", &format!("film-{n}"), None)]
}

fn remote_film(n: u32) -> Vec<support::Part> {
    vec![row("pg"), put("index", &format!("film-{n}"), None)]
}

fn led_film(n: u32) -> Vec<support::Part> {
    vec![row("bank"), put("index", &format!("film-{n}"), None)]
}

/// Voted, decided and forced: 1-1 at 1.1.
fn decided(play: &mut Play) {
    play.asks("add film 1", film(1));
    play.all_yes(&["index", "db"], "1-1");
    play.forced();
}

fn remote_decided(play: &mut Play) {
    play.asks("add film 1", remote_film(1));
    play.all_yes(&["index", "pg"], "1-1");
    play.forced();
}

fn led(play: &mut Play) {
    play.asks("add film 1", led_film(1));
    play.all_yes(&["index", "bank"], "1-1@p0");
}

/// Two are refused, and a minute passes: where one outcome is kept, a floor that passes all before is on its way.
fn outdated(play: &mut Play, parts: &[support::Part]) {
    play.asks("refused", parts.to_vec());
    play.asks("refused, too", parts.to_vec());
    play.passes(60_000);
}

/// An operator does not wait for the bank, durably.
fn waives_bank(play: &mut Play) {
    play.operator(AdminAction::Waive { participant: ParticipantId(0) }, "its machine is away for days");
    play.forced();
}

/// The bank has decided 1-1 for all, and the coordinator has died of it; these are there again, and pg holds its branch.
fn led_for_all(play: &mut Play, recovered: &[&str]) -> Marker {
    play.asks("add film 1", vec![row("bank"), row("pg"), row("other"), put("index", "film-1", None)]);
    play.all_yes(&["index", "pg", "other", "bank"], "1-1@p0");
    let marker = play.marker("1-1@p0");
    play.coordinator_dies();
    play.recovers(recovered);
    play.asks_about("pg", "1-1@p0");
    marker
}

/// The bank, which was waived, tells of 1-1 while a floor that passes it is on its way.
fn told_before_a_floor(play: &mut Play) {
    led(play);
    let marker = play.marker("1-1@p0");
    play.coordinator_dies();
    play.recovers(&[]);
    waives_bank(play);
    outdated(play, &[put("index", "x", None)]);
    play.connects("bank");
    play.tells_markers("bank", &[marker]);
}

/// The log has lost a floor that the bank was told and that has passed film 1; that is accepted, and the index is there again.
fn floor_lost(play: &mut Play) {
    led(play);
    play.says("bank", FromParticipant::Led(vec![txid("1-1@p0")]));
    play.follows("index", "1.1", "1.1");
    outdated(play, &[put("index", "x", None)]);
    play.forced();
    play.actor("bank").floor = Position { epoch: Epoch(1), n: 3 };
    play.actor("index").highest = Csn::ZERO;
    play.coordinator_dies_log_lost(5);
    play.forced();
    play.connects("index");
    play.connects("bank");
    play.tells_markers("bank", &[]);
    play.retries("add film 1", 1, 1, led_film(1));
    play.operator(AdminAction::LeaveSafeMode, "looked at everything");
    play.forced();
    play.forced();
    play.coordinator_dies();
    play.recovers(&["index"]);
}

// ---- no crash at all

story!(life, "A transaction at a database and an index, from the question to the last trace in the log.", play = Play::new(EMBEDDED), {
    play.asks("add film 1", film(1));
    play.note("Redo participants are asked at once; the serial executor runs last, when nobody else can say No any more.");
    play.all_yes(&["index", "db"], "1-1");
    play.note("The CSN is taken, and nobody has been told anything: the record is not durable yet.");
    play.forced();
    play.follows("db", "1.1", "1.1");
    play.note("The client waited until every database has it. The index follows on its own time.");
    play.follows("index", "1.1", "0.0");
    play.follows("index", "1.1", "1.1");
    play.note("Nobody needs the redos any more. How far the stores have come is forced before they are forgotten (R-STORELOSS).");
    play.passes(1000);
    play.forced();
});

story!(
    start,
    "A first start: nothing is sent before the epoch is durable, and a store that comes too early waits for it.",
    play = Play::before_start(EMBEDDED, |_| {}),
    {
        play.arrives("db");
        play.asks("too early", film(1));
        play.forced();
        play.hello("db");
        play.connects("index");
        play.shows_status();
    }
);

story!(
    serial_batch,
    "A serial executor runs several transactions in one open local transaction: one record, one force, one order (R-SERIAL).",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.asks("add film 2", film(2));
        play.yes("index", "1-1");
        play.yes("index", "1-2");
        play.note("It ran the second one first. That is their order.");
        play.votes("db", &["1-2", "1-1"]);
        play.forced();
        play.follows("db", "1.2", "1.2");
    }
);

story!(one_participant, "One database alone: the same path, with one branch.", play = Play::new(&[("pg", Kind::Preparing)]), {
    play.asks("rename", vec![row("pg")]);
    play.yes("pg", "1-1");
    play.forced();
    play.acks("pg", "1-1");
    play.passes(1000);
});

story!(
    one_leader,
    "One database alone that leads: no record in the log at all; its own commit decides.",
    play = Play::new(&[("bank", Kind::Leader)]),
    {
        play.asks("rename", vec![row("bank")]);
        play.yes("bank", "1-1@p0");
        play.says("bank", FromParticipant::Led(vec![txid("1-1@p0")]));
    }
);

story!(read_only, "Read-only everywhere: no CSN of its own, no record, no phase two.", play = Play::new(EMBEDDED), {
    decided(&mut play);
    play.asks("look", vec![row("db")]);
    play.read_only("db", "1-2");
});

story!(
    read_only_beside_a_leader,
    "What a transaction has only read may be newer than what a leader still decides about: its token covers all of it.",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing), ("index", Kind::Redo)]),
    {
        led(&mut play);
        play.asks("add film 2", remote_film(2));
        play.all_yes(&["index", "pg"], "1-2");
        play.forced();
        play.acks("pg", "1-2");
        play.asks("read film 2", vec![row("pg")]);
        play.read_only("pg", "1-3");
    }
);

story!(
    read_only_before_a_crash,
    "A read-only receipt stands for a decision that goes with a crash: nothing is missing in the next start.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.all_yes(&["index", "pg"], "1-1");
        play.asks("read", vec![row("pg")]);
        play.read_only("pg", "1-2");
        let token = play.token("1.1");
        play.coordinator_dies();
        play.recovers(&["index", "pg"]);
        play.reads("index", token, 1000);
    }
);

story!(
    read_only_at_one,
    "Read-only at one store: it has no phase two, and does not stand in the record.",
    play = Play::new(&[("pg", Kind::Preparing), ("maria", Kind::Preparing)]),
    {
        play.asks("move", vec![row("pg"), row("maria")]);
        play.note("Preparing databases are asked one after another, always in the same order.");
        play.read_only("pg", "1-1");
        play.yes("maria", "1-1");
        play.forced();
        play.acks("maria", "1-1");
    }
);

// ---- begun first

story!(
    begun,
    "A client begins first, to have the id; the commit under the same key goes on with that transaction.",
    play = Play::new(EMBEDDED),
    {
        play.begins("add film 1", None);
        play.begins("add film 1", None);
        play.note("Nothing is anywhere yet: no branch, no record.");
        play.inquires("add film 1", 1, 1);
        play.asks("add film 1", film(1));
        play.all_yes(&["index", "db"], "1-1");
        play.forced();
        play.follows("db", "1.1", "1.1");
        play.note("A Begin that comes late is told the outcome.");
        play.begins("add film 1", None);
    }
);

story!(
    begun_and_left,
    "A client begins and never asks to commit: aborted when its time is over, and so told whoever comes late.",
    play = Play::with(EMBEDDED, |config| config.max_open = 1),
    {
        play.begins("add film 1", None);
        play.note("What has begun counts among those that are open.");
        play.begins("add film 2", None);
        play.asks("add film 3", film(3));
        play.passes(30_000);
        play.asks("add film 1", film(1));
        play.asks("add film 4", film(4));
    }
);

story!(begun_and_rolled_back, "A client gives up what it began; one that it has asked to commit goes on.", play = Play::new(EMBEDDED), {
    play.begins("add film 1", None);
    play.rolls_back("add film 1", 1, 1);
    play.asks("add film 1", film(1));
    play.begins("add film 2", None);
    play.asks("add film 2", film(2));
    play.rolls_back("add film 2", 1, 2);
    play.all_yes(&["index", "db"], "1-2");
    play.forced();
    play.note("A roll-back that comes before its Begin: it never begins.");
    play.rolls_back("add film 3", 1, 3);
    play.begins("add film 3", None);
});

story!(
    begun_and_coordinator_dies,
    "The coordinator dies after Begin: nothing of it is anywhere, and it is looked up, never run, under its old position (R-KEY).",
    play = Play::new(EMBEDDED),
    {
        play.begins("add film 1", None);
        play.coordinator_dies();
        play.recovers(&["db", "index"]);
        play.retries("add film 1", 1, 1, film(1));
    }
);

story!(
    begun_decider,
    "Who decides is said at Begin, because the id names the decider (R-DECIDER): branches that contradict it are refused.",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing)]),
    {
        play.begins("led", Some("bank"));
        play.begins("led", None);
        play.asks("led", vec![row("bank")]);
        play.begins("not led after all", Some("bank"));
        play.asks("not led after all", vec![row("pg")]);
        play.begins("led after all", None);
        play.asks("led after all", vec![row("bank"), row("pg")]);
        play.begins("nobody can", Some("pg"));
    }
);

story!(
    enlisted_branch,
    "An application prepares a branch itself, on its own connection; its store looks whether it is there, and it is committed with the rest.",
    play = Play::new(REMOTE),
    {
        play.begins("take one from stock", None);
        play.note("The application runs its statements at pg, and prepares them under the name of 1-1.");
        play.actor("pg").prepared.push(txid("1-1"));
        play.asks("take one from stock", vec![enlisted("pg"), put("index", "film-1", None)]);
        play.all_yes(&["index", "pg"], "1-1");
        play.forced();
        play.acks("pg", "1-1");
    }
);

story!(
    enlisted_first,
    "A branch that an application has prepared is looked at first: it holds its locks already, and the other database waits for its own.",
    play = Play::new(&[("pg", Kind::Preparing), ("maria", Kind::Preparing)]),
    {
        play.begins("move", None);
        play.actor("maria").prepared.push(txid("1-1"));
        play.asks("move", vec![row("pg"), enlisted("maria")]);
        play.yes("maria", "1-1");
        play.no("pg", "1-1", RefusalKind::Constraint, "there is no such account");
    }
);

story!(
    enlisted_refused,
    "What cannot be enlisted is refused in a sentence, and a branch that is prepared already is told Abort though nobody asked for it.",
    play = Play::new(&[("pg", Kind::Preparing), ("db", Kind::Serial), ("maria", Kind::Preparing)]),
    {
        play.asks("not begun", vec![enlisted("pg")]);
        play.begins("at a serial executor", None);
        play.asks("at a serial executor", vec![enlisted("db")]);
        play.begins("with a statement", None);
        let (_, mut operations) = enlisted("pg");
        operations.extend(row("pg").1);
        play.asks("with a statement", vec![("pg", operations), row("maria")]);
        play.begins("store away", None);
        play.dies("maria");
        play.asks("store away", vec![enlisted("pg"), row("maria")]);
    }
);

story!(
    enlisted_and_left,
    "An application prepares its branch and never asks to commit: the store finds the branch, asks, and is told to abort.",
    play = Play::new(REMOTE),
    {
        play.begins("take one from stock", None);
        play.actor("pg").prepared.push(txid("1-1"));
        play.asks_about("pg", "1-1");
        play.note("No answer while it is Active. The application dies.");
        play.passes(30_000);
        play.asks_about("pg", "1-1");
    }
);

story!(
    enlisted_and_coordinator_dies,
    "The coordinator dies between Begin and the commit; the branch that the application has prepared is presumed aborted.",
    play = Play::new(REMOTE),
    {
        play.begins("take one from stock", None);
        play.actor("pg").prepared.push(txid("1-1"));
        play.coordinator_dies();
        play.forced();
        play.connects("index");
        play.connects("pg");
        play.retries("take one from stock", 1, 1, vec![enlisted("pg"), put("index", "film-1", None)]);
    }
);

// ---- the coordinator dies

story!(
    coordinator_before_votes,
    "The coordinator dies before any vote. Nothing of it is anywhere; the client is told so.",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.coordinator_dies();
        play.forced();
        play.connects("db");
        play.connects("index");
        play.note("The key was first sent to an older start: it is looked up, never executed (R-KEY).");
        play.retries("add film 1", 1, 1, film(1));
    }
);

story!(
    coordinator_after_votes,
    "The coordinator dies after votes, before the Commit record is written. The prepared branch asks, and is told to abort.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.coordinator_dies();
        play.forced();
        play.connects("pg");
        play.note("pg has told what it knows of the log. The index has not: records might be missing (R-LOGLOSS). It is waited for.");
        play.connects("index");
    }
);

story!(
    coordinator_append_lost,
    "The coordinator dies while the Commit record is written but not forced, and the record is lost: aborted.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.all_yes(&["index", "pg"], "1-1");
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("pg");
        play.retries("add film 1", 1, 1, remote_film(1));
    }
);

story!(
    coordinator_append_survives,
    "The same, but the record happens to have reached the disk: committed. Nobody had been told anything else.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.all_yes(&["index", "pg"], "1-1");
        play.coordinator_dies_log_survives();
        play.forced();
        play.connects("pg");
        play.connects("index");
        play.acks("pg", "1-1");
        play.retries("add film 1", 1, 1, remote_film(1));
    }
);

story!(coordinator_after_force, "The coordinator dies after the force, before it has told anybody.", play = Play::new(EMBEDDED), {
    play.asks("add film 1", film(1));
    play.all_yes(&["index", "db"], "1-1");
    play.note("The disk has it; the coordinator does not live to hear so.");
    play.coordinator_dies_log_survives();
    play.forced();
    play.connects("db");
    play.note("The redo goes out before Open: db takes no new transaction before it knows of it (R-REDO).");
    play.connects("index");
    play.follows("db", "1.1", "1.1");
    play.retries("add film 1", 1, 1, film(1));
    play.follows("index", "1.1", "1.1");
});

story!(
    coordinator_after_send,
    "The coordinator dies after it has told the stores, before any of them acked: they are told again.",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.note("pg commits meanwhile; its ack finds nobody.");
        play.actor("pg").prepared.clear();
        play.coordinator_dies();
        play.forced();
        play.connects("pg");
        play.connects("index");
        play.note("Its marker says that this branch was committed (R-MARKER): that is an ack.");
        play.says("pg", FromParticipant::NotPrepared(txid("1-1"), MarkerEvidence::Committed));
        play.follows("index", "1.1", "1.1");
        play.retries("add film 1", 1, 1, remote_film(1));
    }
);

story!(
    coordinator_after_acks,
    "The coordinator dies after all acks, before End and Acked are durable: the record is still there, and told again.",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.acks("pg", "1-1");
        play.follows("index", "1.1", "1.1");
        play.coordinator_dies();
        play.forced();
        play.connects("index");
        play.note("The index's watermark has passed 1.1: it is owed nothing.");
        play.connects("pg");
        play.says("pg", FromParticipant::NotPrepared(txid("1-1"), MarkerEvidence::Committed));
        play.passes(1000);
        play.forced();
        play.coordinator_dies();
        play.note("End and Acked are durable now: nothing is told again.");
        play.forced();
        play.connects("index");
        play.connects("pg");
    }
);

story!(
    coordinator_during_recovery,
    "The coordinator dies while it recovers, twice: each start takes a higher epoch, and sends nothing before that is durable.",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.coordinator_dies();
        play.arrives("db");
        play.note("Epoch 2 was not forced; the next start may take the same number. Nothing was sent under it.");
        play.coordinator_dies();
        play.forced();
        play.connects("db");
        play.coordinator_dies();
        play.forced();
        play.connects("db");
        play.connects("index");
    }
);

// ---- a participant dies

story!(
    redo_dies_preparing,
    "A redo participant dies after its vote, before the decision: its Yes was worth nothing without its session (R-REDO).",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.yes("index", "1-1");
        play.dies("index");
        play.connects("index");
    }
);

story!(
    redo_dies_deciding,
    "A redo participant dies while the decision is being forced: its new session is told of it before it takes any Prepare (R-REDO).",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.all_yes(&["index", "db"], "1-1");
        play.dies("index");
        play.note("There is no way back from here: neither a lost session nor a time-out aborts it (R-UNKNOWN).");
        play.connects("index");
        play.forced();
        play.follows("index", "1.1", "1.1");
    }
);

story!(
    redo_dies_after_apply,
    "A redo participant dies after it applied, before that was durable and acked: it is sent again, from its watermark.",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.follows("db", "1.1", "1.1");
        play.follows("index", "1.1", "0.0");
        play.dies("index");
        play.connects("index");
        play.follows("index", "1.1", "1.1");
    }
);

story!(
    asked_about_what_is_taken_back,
    "A serial executor's last commits go with a power cut, and a client asks about one of them: it waits until that is there again.",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.follows("index", "1.1", "1.1");
        play.follows("db", "1.1", "0.0");
        play.note("It is applied everywhere, and has ended. What `db` has not synced yet is lost.");
        play.dies("db");
        play.connects("db");
        play.retries("add film 1", 1, 1, film(1));
        play.note("It waits, as after a start of the coordinator.");
        play.follows("db", "1.1", "1.1");
    }
);

story!(
    prepared_then_commit,
    "A preparing participant dies after its vote and comes back after the decision: its new session lists the branch, and is told Commit.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.all_yes(&["index", "pg"], "1-1");
        play.dies("pg");
        play.forced();
        play.note("Decided without it: its branch is durable and must not be rolled back, however long it is away.");
        play.connects("pg");
        play.acks("pg", "1-1");
    }
);

story!(
    prepared_then_abort,
    "A preparing participant dies after its vote and comes back after the transaction was aborted: told Abort.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.dies("pg");
        play.no("index", "1-1", RefusalKind::Constraint, "the title is too long");
        play.connects("pg");
    }
);

story!(
    prepared_in_progress,
    "A preparing participant comes back while the transaction is still open: no answer, because no record proves nothing yet.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.dies("pg");
        play.connects("pg");
        play.asks_about("pg", "1-1");
        play.note("Its Yes still holds: it is durable there.");
        play.yes("index", "1-1");
        play.asks_about("pg", "1-1");
        play.forced();
    }
);

story!(
    prepared_before_vote_lost,
    "A preparing participant dies while its Prepare is under way: aborted, and whatever it prepared is told Abort.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.dies("pg");
        play.note("Its force had succeeded; only its vote was lost.");
        play.actor("pg").prepared.push(txid("1-1"));
        play.connects("pg");
    }
);

story!(
    prepared_of_older_epoch,
    "A branch of an older epoch: presumed aborted, but only after all have told what they know of the log, or 30 s (R-LOGLOSS).",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.coordinator_dies();
        play.forced();
        play.connects("pg");
        play.asks_about("pg", "1-1");
        play.note("The index does not come back.");
        play.passes(29_999);
        play.passes(1);
        play.note("A branch of a higher epoch than ours is not ours to answer: somebody newer is in charge.");
        play.asks_about("pg", "3-1");
    }
);

story!(
    serial_dies_before_its_commit,
    "The serial executor dies between the log's force and its own commit: its group is applied again from the log.",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.asks("add film 2", film(2));
        play.yes("index", "1-1");
        play.yes("index", "1-2");
        play.votes("db", &["1-1", "1-2"]);
        play.forced();
        play.dies("db");
        play.asks("add film 3", film(3));
        play.connects("db");
        play.follows("db", "1.2", "1.2");
    }
);

story!(
    serial_batch_taken_back,
    "One of a serial executor's batch is aborted before its vote arrives: the whole batch is taken back, and the others run again (R-SERIAL).",
    play = Play::new(&[("db", Kind::Serial), ("index", Kind::Redo), ("other", Kind::Redo)]),
    {
        play.asks("add film 1", film(1));
        play.asks("both", vec![row("db"), put("other", "x", None)]);
        play.yes("index", "1-1");
        play.yes("other", "1-2");
        play.dies("other");
        play.votes("db", &["1-2", "1-1"]);
        play.note("1-1 ran on top of what 1-2 wrote: its vote does not count. db has the Abort by now, and has run it again.");
        play.votes("db", &["1-1"]);
    }
);

story!(
    serial_batch_too_large,
    "What a serial executor's batch would put into one record is more than the log takes: what is beyond is refused, and the others run again.",
    play = Play::new(EMBEDDED),
    {
        for n in 1..=3 {
            play.asks(&format!("add film {n}"), film(n));
            let votes = vec![(txid(&format!("1-{n}")), Vote::Redo(vec![0; 30 << 20].into(), [].into()))];
            play.says("index", FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }));
        }
        play.votes("db", &["1-1", "1-2", "1-3"]);
        play.note("1-1 and 1-2 ran in one local transaction with 1-3: db has the Abort by now, and has run them again.");
        play.votes("db", &["1-1", "1-2"]);
        play.forced();
    }
);

// ---- a database leads

story!(leader_lost_marker, "A leader's session is lost after Lead, and it had committed: its marker says so.", play = Play::new(LED), {
    led(&mut play);
    play.disconnects("bank");
    play.note("Nobody can say how long bank stays away: a client is not kept waiting for it.");
    play.passes(20_000);
    play.inquires("add film 1", 1, 1);
    play.note("No time-out decides: only bank knows. It is asked, and the marker is the answer (R-LR).");
    play.connects("bank");
    let marker = play.marker("1-1@p0");
    play.inquires("add film 1", 1, 1);
    play.says("bank", FromParticipant::Settled(Settle::Txid(txid("1-1@p0")), Some(Box::new(marker))));
});

story!(
    leader_lost_no_marker,
    "A leader's session is lost after Lead, and it had not committed: the question itself decides, by an abort marker.",
    play = Play::new(LED),
    {
        led(&mut play);
        play.dies("bank");
        play.connects("bank");
        play.says("bank", FromParticipant::Settled(Settle::Txid(txid("1-1@p0")), None));
    }
);

story!(
    leader_could_not,
    "A leader could not commit, and has rolled back for certain: the one way from Deciding to Aborted.",
    play = Play::new(LED),
    {
        led(&mut play);
        play.says("bank", FromParticipant::NotLed(vec![txid("1-1@p0")], Refusal::new(RefusalKind::Conflict, "could not serialize")));
    }
);

story!(
    leader_coordinator_dies,
    "The coordinator dies after Lead. Its log knows nothing; the leader's markers do, and bring the others' redos.",
    play = Play::new(LED),
    {
        led(&mut play);
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.forced();
        play.connects("index");
        play.note("Until bank's markers are read, nobody knows: no answer, no watermark.");
        play.retries("add film 1", 1, 1, led_film(1));
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.retries("add film 1", 1, 1, led_film(1));
        play.follows("index", "1.1", "1.1");
    }
);

story!(
    key_without_position,
    "A client that has lost its position sends its key again before the leader has told: nobody can tell, so nothing is settled (R-KEY).",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing), ("index", Kind::Redo)]),
    {
        led(&mut play);
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["pg", "index"]);
        play.note("To this start it looks like a new request.");
        play.asks("add film 1", led_film(1));
        play.inquires("add film 1", 2, 1);
        play.rolls_back("add film 1", 2, 1);
        play.begins("add film 1", Some("bank"));
        play.note("What bank has no part in goes on.");
        play.asks("add film 2", remote_film(2));
        play.all_yes(&["index", "pg"], "2-1");
        play.forced();
        play.connects("bank");
        play.asks("add film 1", led_film(1));
        play.tells_markers("bank", &[marker]);
        play.asks("add film 1", led_film(1));
    }
);

story!(
    key_without_position_alone,
    "The same at a preparing store that decides what touches it alone: it is open while it tells, and a transaction of several stores may run.",
    play = Play::able(REMOTE, ABLE),
    {
        play.asks("rename", vec![row("pg")]);
        play.yes("pg", "1-1@p0");
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("pg");
        play.asks("rename", vec![row("pg")]);
        play.asks("add film 2", remote_film(2));
        play.tells_markers("pg", &[marker]);
        play.asks("rename", vec![row("pg")]);
    }
);

story!(
    key_without_position_waived,
    "The same, and the leader is waived: that settles nothing, until the floor has passed all that it may have decided.",
    play = Play::with(&[("bank", Kind::Leader), ("index", Kind::Redo)], |config| config.outcomes_max = 1),
    {
        led(&mut play);
        play.coordinator_dies();
        play.recovers(&["index"]);
        waives_bank(&mut play);
        play.inquires("add film 1", 2, 1);
        outdated(&mut play, &[put("index", "x", None)]);
        play.forced();
        play.note("What bank has decided is told to nobody any more: a key of then counts as new.");
        play.inquires("add film 1", 2, 3);
    }
);

story!(
    key_used_again,
    "A key that a leader had decided is used for another request before it has told: damage, and what it decided is followed all the same.",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing), ("index", Kind::Redo)]),
    {
        led(&mut play);
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["pg", "index"]);
        play.asks("add film 1", remote_film(2));
        play.all_yes(&["index", "pg"], "2-1");
        play.forced();
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.note("What its client was told first stays.");
        play.asks("add film 1", remote_film(2));
        play.shows_status();
    }
);

story!(
    leader_not_alone,
    "A leader at which older sessions may still commit: it is scanned again and again, no watermark moves, and a key is settled there.",
    play = Play::new(LED),
    {
        led(&mut play);
        let late = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.actor("bank").exclusive = false;
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.retries("another", 1, 2, led_film(2));
        play.says("bank", FromParticipant::Settled(Settle::Key(key("another"), lockstep_core::Position { epoch: Epoch(1), n: 2 }), None));
        play.note("And now the old session's commit comes through after all.");
        play.passes(2000);
        play.tells_markers("bank", &[late]);
        play.retries("add film 1", 1, 1, led_film(1));
    }
);

story!(
    waived_leader,
    "A leader that is away is waived: stores go on without it, and no outcome is settled without it, in this start or the next.",
    play = Play::new(LED),
    {
        led(&mut play);
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["index"]);
        waives_bank(&mut play);
        play.forced();
        play.note("Told aborted now, it might be committed later: it stays unknown.");
        play.retries("add film 1", 1, 1, led_film(1));
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.retries("add film 1", 1, 1, led_film(1));
    }
);

story!(
    waived_too_late,
    "An index follows past what a waived leader had decided. The next start knows of the waiver: damage, not silence (I12).",
    play = Play::new(&[("bank", Kind::Leader), ("db", Kind::Serial), ("index", Kind::Redo)]),
    {
        play.asks("add film 1", vec![row("bank"), put("index", "film-1", None)]);
        play.all_yes(&["index", "bank"], "1-1@p0");
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["index", "db"]);
        waives_bank(&mut play);
        play.note("How far the stores had come is forced before they may go further; the serial executor has waited for it.");
        play.forced();
        play.asks("add film 2", film(2));
        play.all_yes(&["index", "db"], "2-1");
        play.forced();
        play.follows("db", "2.1", "2.1");
        play.follows("index", "2.1", "2.1");
        play.coordinator_dies();
        play.recovers(&["index", "db"]);
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.forced();
        play.note("Once that is durable the waiver is over.");
        play.shows_status();
    }
);

story!(
    waived_below_the_floor,
    "A waived leader is back when the floor has passed what it had decided: a prepared branch is told, and who may lack it is damage (I12).",
    play = Play::with(LED_FOR_ALL, |config| config.outcomes_max = 1),
    {
        let marker = led_for_all(&mut play, &["pg"]);
        waives_bank(&mut play);
        outdated(&mut play, &[put("index", "x", None)]);
        play.forced();
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.note("Its marker stays: `pg` and `other` may hold their branches. The index has not been heard.");
        play.forced();
        play.acks("pg", "1-1@p0");
        play.connects("other");
        play.asks_about("other", "1-1@p0");
        play.acks("other", "1-1@p0");
        play.shows_status();
    }
);

story!(
    waived_and_told_twice,
    "The same leader tells of it twice: who was told of it, and has not answered, may still hold its branch.",
    play = Play::with(LED_FOR_ALL, |config| config.outcomes_max = 1),
    {
        let marker = led_for_all(&mut play, &["pg", "index"]);
        waives_bank(&mut play);
        play.forced();
        outdated(&mut play, &[put("index", "x", None)]);
        play.forced();
        play.actor("bank").exclusive = false;
        play.connects("bank");
        play.tells_markers("bank", std::slice::from_ref(&marker));
        play.forced();
        play.passes(2_000);
        play.tells_markers("bank", &[marker]);
        play.actor("other").prepared.clear();
        play.connects("other");
        play.note("`other` holds nothing, and `pg` has not answered: its branch is committed, whenever it asks.");
        play.dies("pg");
        play.connects("pg");
        play.acks("pg", "1-1@p0");
    }
);

story!(
    waived_and_finished_by_hand,
    "A branch was rolled back by hand, and its leader, once it is back, has committed it long ago: damage, before its marker may go (I12).",
    play = Play::with(&[("bank", Kind::Leader), ("pg", Kind::Preparing)], |config| config.outcomes_max = 1),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.all_yes(&["pg", "bank"], "1-1@p0");
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["pg"]);
        play.asks_about("pg", "1-1@p0");
        play.operator(AdminAction::Waive { participant: ParticipantId(0) }, "its machine is away for days");
        let order = AdminAction::Resolve { txid: txid("1-1@p0"), participant: ParticipantId(1), commit: false };
        play.operator(order, "its locks block the shop");
        play.forced();
        play.actor("pg").prepared.clear();
        play.says("pg", FromParticipant::Resolved { txid: txid("1-1@p0"), commit: false });
        outdated(&mut play, &[row("pg"), row("pg")]);
        play.forced();
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.forced();
        play.connects("pg");
        play.shows_status();
    }
);

story!(
    waived_and_asked_before_the_floor,
    "A client asks for what a leader has told while a floor that passes it is on its way: nothing is said of it until that is durable.",
    play = Play::with(LED, |config| config.outcomes_max = 1),
    {
        told_before_a_floor(&mut play);
        play.connects("index");
        play.retries("add film 1", 1, 1, led_film(1));
        play.forced();
        play.retries("add film 1", 1, 1, led_film(1));
    }
);

story!(
    waived_below_a_floor_to_come,
    "The same, when the floor that passes it is not durable yet: the marker will be dropped, and the index may not have followed by then.",
    play = Play::with(LED, |config| config.outcomes_max = 1),
    {
        told_before_a_floor(&mut play);
        play.forced();
    }
);

story!(
    led_branch_below_the_floor,
    "A branch that is prepared for a leader comes back when the floor has passed it: the leader has told of none below it, so it is aborted.",
    play = Play::with(&[("bank", Kind::Leader), ("pg", Kind::Preparing)], |config| config.outcomes_max = 1),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.yes("pg", "1-1@p0");
        play.dies("pg");
        play.coordinator_dies();
        play.recovers(&["bank"]);
        play.tells_markers("bank", &[]);
        outdated(&mut play, &[row("pg")]);
        play.forced();
        play.coordinator_dies();
        play.recovers(&[]);
        play.connects("pg");
        play.asks_about("pg", "1-1@p0");
        play.note("Not before the leader has told, in this start too.");
        play.connects("bank");
        play.tells_markers("bank", &[]);
    }
);

story!(
    leader_lost_markers,
    "A leader is put back to an older state: the newest marker that it is known to have written is looked for in every new session (R-STORELOSS).",
    play = Play::new(LED),
    {
        led(&mut play);
        play.says("bank", FromParticipant::Led(vec![txid("1-1@p0")]));
        play.follows("index", "1.1", "1.1");
        play.disconnects("bank");
        play.note("An older backup of bank is put in its place.");
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.asks("add film 2", led_film(2));
        play.coordinator_dies_log_survives();
        play.note("The next start knows of it, too.");
        play.recovers(&["index"]);
        play.connects("bank");
        play.tells_markers("bank", &[]);
    }
);

story!(
    leader_lost_and_a_floor,
    "A leader that was found put back stays refused in later starts, whatever floor is raised meanwhile, until it shows its marker again.",
    play = Play::with(LED, |config| config.outcomes_max = 1),
    {
        led(&mut play);
        play.says("bank", FromParticipant::Led(vec![txid("1-1@p0")]));
        let marker = play.marker("1-1@p0");
        play.disconnects("bank");
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.asks("refused", vec![put("index", "x", None)]);
        play.follows("index", "1.1", "1.1");
        play.asks("refused, too", vec![put("index", "x", None)]);
        play.passes(60_000);
        play.forced();
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.note("Its own state is put in place again.");
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.note("It may drop that once the log says that it was there.");
        play.forced();
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("bank");
        play.tells_markers("bank", &[]);
    }
);

story!(
    older_owner,
    "A store of any kind that is put back to before this start does not know it for its owner: it has lost changes (R-STORELOSS).",
    play = Play::new(REMOTE),
    {
        play.disconnects("pg");
        play.actor("pg").owner = None;
        play.connects("pg");
        play.asks("add film 1", remote_film(1));
    }
);

story!(
    leader_says_nothing_written,
    "A leader that wrote nothing cannot decide for a database that did.",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing)]),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.yes("pg", "1-1@p0");
        play.read_only("bank", "1-1@p0");
    }
);

// ---- a preparing store that decides what touches it alone

story!(
    alone,
    "A preparing store that leads, and a transaction that touches it alone: nothing is prepared, nothing is logged, its own commit decides (R-LR).",
    play = Play::able(REMOTE, ABLE),
    {
        play.asks("rename", vec![row("pg")]);
        play.yes("pg", "1-1@p0");
        play.says("pg", FromParticipant::Led(vec![txid("1-1@p0")]));
        play.note("With a second store, or begun without naming it, the log decides as always.");
        play.asks("add film 1", remote_film(1));
        play.begins("rename again", None);
        play.asks("rename again", vec![row("pg")]);
        play.begins("rename, and so begun", Some("pg"));
        play.asks("rename, and so begun", vec![row("pg")]);
        play.begins("led, but not alone", Some("pg"));
        play.asks("led, but not alone", remote_film(2));
        play.note("Several at once are independent of each other.");
        play.asks("rename once more", vec![row("pg")]);
        play.votes("pg", &["1-4@p0", "1-6@p0"]);
        play.says("pg", FromParticipant::NotLed(vec![txid("1-4@p0")], Refusal::new(RefusalKind::Conflict, "could not serialize")));
        play.says("pg", FromParticipant::Led(vec![txid("1-6@p0")]));
    }
);

story!(
    alone_first,
    "A store's first Hello that says it leads: the log says so durably before it is given anything to decide, or the next start would not ask it.",
    play = Play::before_start(REMOTE, |_| {}),
    {
        play.actor("pg").abilities = ABLE;
        play.forced();
        play.connects("index");
        play.connects("pg");
        play.asks("too early", vec![row("pg")]);
        play.forced();
        play.tells_markers("pg", &[]);
        play.asks("rename", vec![row("pg")]);
        play.note("Once it has led it cannot stop: what it has decided could not be asked any more.");
        play.dies("pg");
        play.actor("pg").abilities = Default::default();
        play.connects("pg");
    }
);

story!(
    alone_lost,
    "A preparing store's session is lost after Lead. It is asked when it is back; meanwhile nobody else waits, because it touches nobody else.",
    play = Play::able(REMOTE, ABLE),
    {
        play.asks("rename", vec![row("pg")]);
        play.yes("pg", "1-1@p0");
        play.asks("add film 1", remote_film(1));
        play.all_yes(&["index", "pg"], "1-2");
        play.forced();
        play.dies("pg");
        play.follows("index", "1.2", "1.2");
        play.connects("pg");
        play.says("pg", FromParticipant::Settled(Settle::Txid(txid("1-1@p0")), None));
    }
);

story!(
    alone_coordinator_dies,
    "The coordinator dies after it told a preparing store to commit by itself: its marker says that it did.",
    play = Play::able(REMOTE, ABLE),
    {
        play.asks("rename", vec![row("pg")]);
        play.yes("pg", "1-1@p0");
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.forced();
        play.connects("index");
        play.note("Until pg's markers are read nobody knows.");
        play.retries("rename", 1, 1, vec![row("pg")]);
        play.connects("pg");
        play.tells_markers("pg", &[marker]);
        play.retries("rename", 1, 1, vec![row("pg")]);
    }
);

/// Its votes on these, as one branch.
fn shares(play: &mut Play, store: &str, txs: &[&str]) {
    let votes = txs.iter().map(|tx| (txid(tx), Vote::InGroup([].into()))).collect();
    play.says(store, FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }));
}

const SHARES: Abilities = Abilities { leads: false, keeps_acked: false, shares: true };

story!(
    shared_branch,
    "Two transactions share a branch at a preparing store, which is asked when everybody else has voted: one record, and one Commit (R-SHARED).",
    play = Play::able(REMOTE, SHARES),
    {
        play.asks("add film 1", remote_film(1));
        play.asks("add film 2", remote_film(2));
        play.votes("index", &["1-1"]);
        play.votes("index", &["1-2"]);
        shares(&mut play, "pg", &["1-1", "1-2"]);
        play.coordinator_dies_log_survives();
        play.note("The branch is found by the name of the first.");
        play.actor("pg").prepared = vec![txid("1-1")];
        play.recovers(&["pg", "index"]);
        play.asks_about("pg", "1-1");
        play.note("Somebody has rolled it back: that is damage of both.");
        play.says("pg", FromParticipant::NotPrepared(txid("1-1"), MarkerEvidence::RolledBack));
    }
);

story!(
    shared_branch_one_aborted,
    "One of those that share a branch is aborted while their votes are on their way: they are void, and the others are voted on again.",
    play = Play::able(&[("pg", Kind::Preparing), ("index", Kind::Redo), ("other", Kind::Redo)], SHARES),
    {
        play.asks("add film 1", remote_film(1));
        play.asks("add a note", vec![row("pg"), put("other", "note-1", None)]);
        play.votes("index", &["1-1"]);
        play.votes("other", &["1-2"]);
        play.disconnects("other");
        shares(&mut play, "pg", &["1-1", "1-2"]);
        play.note("The branch was rolled back. This time it is one of its own.");
        play.yes("pg", "1-1");
        play.forced();
    }
);

story!(
    shared_branch_left,
    "What is prepared under the name of a transaction that has only read is left from before it ran again: it is never committed.",
    play = Play::able(REMOTE, SHARES),
    {
        play.asks("look", vec![row("pg")]);
        play.read_only("pg", "1-1");
        play.asks_about("pg", "1-1");
    }
);

story!(
    acked_row,
    "Before the log forgets what a preparing store was acked, the store writes down how far that is (R-STORELOSS).",
    play = Play::able(REMOTE, ABLE),
    {
        remote_decided(&mut play);
        play.acks("pg", "1-1");
        play.follows("index", "1.1", "1.1");
        play.passes(1000);
        play.note("Nothing is forgotten before that row is durable.");
        play.passes(1000);
        play.follows("pg", "1.1", "1.1");
        play.passes(1000);
        play.forced();
        play.coordinator_dies();
        play.forced();
        play.connects("pg");
    }
);

story!(
    acked_row_lost,
    "A preparing store comes back with less than it had written down: an old copy was restored. It is not used (R-STORELOSS).",
    play = Play::able(REMOTE, ABLE),
    {
        remote_decided(&mut play);
        play.acks("pg", "1-1");
        play.follows("index", "1.1", "1.1");
        play.passes(1000);
        play.follows("pg", "1.1", "1.1");
        play.passes(1000);
        play.forced();
        play.dies("pg");
        play.actor("pg").progress = Progress::default();
        play.connects("pg");
        play.asks("add film 2", remote_film(2));
    }
);

// ---- clients

story!(retry_committed, "A client retries after a crash and gets the receipt it would have had.", play = Play::new(EMBEDDED), {
    decided(&mut play);
    play.coordinator_dies();
    play.recovers(&["db", "index"]);
    play.retries("add film 1", 1, 1, film(1));
    play.follows("db", "1.1", "1.1");
});

story!(
    retry_unknown,
    "A client retries what was never decided: told aborted, for ever under this key; the next attempt runs.",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.coordinator_dies();
        play.recovers(&["db", "index"]);
        play.retries("add film 1", 1, 1, film(1));
        play.retries("add film 1", 1, 1, film(1));
        play.asks("add film 1/2", film(1));
    }
);

story!(
    retry_expired,
    "A client comes back after its outcome was forgotten: expired, never aborted, and never run again.",
    play = Play::with(EMBEDDED, |config| config.outcomes_max = 1),
    {
        decided(&mut play);
        play.follows("db", "1.1", "1.1");
        play.follows("index", "1.1", "1.1");
        play.asks("look", vec![row("db")]);
        play.read_only("db", "1-2");
        play.passes(1000);
        play.note("The floor is durable before anything is dropped.");
        play.forced();
        play.retries("add film 1", 1, 1, film(1));
        play.coordinator_dies();
        play.recovers(&["db", "index"]);
        play.retries("add film 1", 1, 1, film(1));
    }
);

story!(key_reused, "Another request under the same key is refused.", play = Play::new(EMBEDDED), {
    decided(&mut play);
    play.asks("add film 1", film(2));
});

story!(
    duplicate_joins,
    "The same request twice: the second joins the first. It runs once, and both are answered.",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.retries("add film 1", 1, 1, film(1));
        play.all_yes(&["index", "db"], "1-1");
        play.retries("add film 1", 1, 1, film(1));
        play.forced();
        play.follows("db", "1.1", "1.1");
    }
);

story!(
    asked_about_first,
    "A request that is asked about before it arrives: it never runs, and the late request is told the same.",
    play = Play::new(EMBEDDED),
    {
        play.inquires("add film 1", 1, 1);
        play.retries("add film 1", 1, 1, film(1));
    }
);

story!(
    condition_conflict,
    "A conditional write meets an undecided writer of the same document: a conflict, safe to retry (R-COND).",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.asks("change film 1", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
        play.note("Two unconditional writers do not disturb each other.");
        play.asks("overwrite film 1", film(1));
    }
);

story!(
    condition_on_unapplied,
    "A condition is tested against the newest decided write, whether the index has applied it or not (R-COND).",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.asks("create film 1", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
        play.asks("change film 1", vec![row("db"), put("index", "film-1", Some(Condition::Csn(csn("1.1"))))]);
        play.note("The same after a restart: what the index still owes is known before any Prepare.");
        play.coordinator_dies();
        play.recovers(&["db", "index"]);
        play.asks("create film 1/2", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
        play.follows("index", "1.1", "0.0");
        play.note("Applied: from now on the index itself can tell.");
        play.asks("create film 1/3", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
        play.dies("index");
        play.connects("index");
        play.note("It was not durable there, and is owed again: tested against the log once more.");
        play.asks("create film 1/4", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
    }
);

story!(
    condition_after_skip,
    "A write that an operator gave up does not count for conditions any more (R-SKIP, R-COND).",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.operator(AdminAction::Skip { txid: txid("1-1"), participant: INDEX }, "the index refuses this document for ever");
        play.forced();
        play.forced();
        play.asks("create film 1", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
        play.coordinator_dies();
        play.recovers(&["db", "index"]);
        play.note("The same after a restart.");
        play.asks("create film 1/2", vec![row("db"), put("index", "film-1", Some(Condition::Absent))]);
    }
);

story!(
    removal,
    "An operator gives a store up for ever: what it was owed is damage, and everything else goes on without it.",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.operator(AdminAction::Remove { participant: INDEX }, "it is not used any more");
        play.note("The damage goes first: a start that finds the order finds that too.");
        play.forced();
        play.asks("add film 2", film(2));
        play.operator(AdminAction::Remove { participant: INDEX }, "once more");
        play.dies("index");
        play.coordinator_dies();
        play.recovers(&["db"]);
        play.note("It is owed nothing, and is not let in again.");
        play.connects("index");
        play.asks("row 3", vec![row("db")]);
    }
);

story!(removal_in_doubt, "While something is being decided with a part at a store, it is not given up.", play = Play::new(EMBEDDED), {
    play.asks("add film 1", film(1));
    play.operator(AdminAction::Remove { participant: INDEX }, "it is not used any more");
    play.all_yes(&["index", "db"], "1-1");
    play.operator(AdminAction::Remove { participant: INDEX }, "it is not used any more");
});

story!(
    removal_of_a_leader,
    "A leader is given up: those that may hold its branches are there, and what stores have followed is forced before (R-STORELOSS).",
    play = Play::new(&[("bank", Kind::Leader), ("index", Kind::Redo), ("pg", Kind::Preparing)]),
    {
        let bank = ParticipantId(0);
        play.asks("add film 1", vec![row("bank"), put("index", "film-1", None)]);
        play.all_yes(&["index", "bank"], "1-1@p0");
        play.says("bank", FromParticipant::Led(vec![txid("1-1@p0")]));
        play.follows("index", "1.1", "1.1");
        play.asks("row 2", vec![row("bank"), row("pg")]);
        play.yes("pg", "1-2@p0");
        play.disconnects("pg");
        play.no("bank", "1-2@p0", RefusalKind::Conflict, "could not serialize");
        play.operator(AdminAction::Remove { participant: bank }, "it is not used any more");
        play.connects("pg");
        play.operator(AdminAction::Remove { participant: bank }, "it is not used any more");
        play.forced();
        (play.actor("index").progress, play.actor("index").highest) = (Progress::default(), Csn::ZERO);
        play.coordinator_dies();
        play.recovers(&["pg"]);
        play.note("The leader's markers are nowhere any more, and an older copy of the index is found out all the same.");
        play.connects("index");
    }
);

story!(
    removal_and_an_abort,
    "A leader is removed while its abort is on its way to a branch, and both ends die: it had told all that it committed, so this is aborted.",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing)]),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.yes("pg", "1-1@p0");
        play.no("bank", "1-1@p0", RefusalKind::Conflict, "could not serialize");
        play.operator(AdminAction::Remove { participant: ParticipantId(0) }, "it is not used any more");
        play.forced();
        play.note("That Abort is lost.");
        play.dies("pg");
        play.actor("pg").prepared.push(txid("1-1@p0"));
        play.coordinator_dies();
        play.forced();
        play.connects("pg");
    }
);

story!(
    removal_and_keys,
    "A leader is removed: what it had decided cannot be told any more, but a key of a later start it has not decided (R-KEY).",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing)]),
    {
        play.operator(AdminAction::Remove { participant: ParticipantId(0) }, "it is not used any more");
        play.forced();
        play.coordinator_dies();
        play.recovers(&["pg"]);
        play.asks("rename", vec![row("pg")]);
        play.coordinator_dies();
        play.recovers(&["pg"]);
        play.retries("move", 1, 1, vec![row("bank"), row("pg")]);
        play.retries("rename", 2, 1, vec![row("pg")]);
    }
);

story!(
    removal_and_a_branch_by_hand,
    "A leader is removed before it has said what became of a branch that was committed by hand: it has not committed it, and that is damage (I12).",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing)]),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.yes("pg", "1-1@p0");
        play.coordinator_dies();
        play.recovers(&["pg"]);
        let order = AdminAction::Resolve { txid: txid("1-1@p0"), participant: ParticipantId(1), commit: true };
        play.operator(order, "its locks block the shop");
        play.forced();
        play.actor("pg").prepared.clear();
        play.says("pg", FromParticipant::Resolved { txid: txid("1-1@p0"), commit: true });
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.operator(AdminAction::Remove { participant: ParticipantId(0) }, "it is not used any more");
        play.forced();
    }
);

story!(
    removal_of_an_acked_store,
    "A preparing store is removed, and a waived leader tells of a part there only then: how far it was acked stands for none of that (I12).",
    play = Play::able(&[("bank", Kind::Leader), ("pg", Kind::Preparing), ("index", Kind::Redo)], ABLE),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.all_yes(&["pg", "bank"], "1-1@p0");
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&["pg", "index"]);
        waives_bank(&mut play);
        play.asks("add film 2", remote_film(2));
        play.all_yes(&["index", "pg"], "2-1");
        play.forced();
        play.acks("pg", "2-1");
        play.follows("index", "2.1", "2.1");
        play.passes(1_000);
        play.follows("pg", "2.1", "2.1");
        play.passes(1_000);
        play.forced();
        play.disconnects("pg");
        play.operator(AdminAction::Remove { participant: ParticipantId(1) }, "it is not used any more");
        play.forced();
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
    }
);

story!(
    removal_below_the_floor,
    "The same, when the floor has passed it: on record before the marker may go.",
    play = Play::with(&[("bank", Kind::Leader), ("pg", Kind::Preparing)], |config| config.outcomes_max = 1),
    {
        play.asks("move", vec![row("bank"), row("pg")]);
        play.all_yes(&["pg", "bank"], "1-1@p0");
        let marker = play.marker("1-1@p0");
        play.coordinator_dies();
        play.recovers(&[]);
        waives_bank(&mut play);
        outdated(&mut play, &[row("pg")]);
        play.forced();
        play.operator(AdminAction::Remove { participant: ParticipantId(1) }, "it is not used any more");
        play.forced();
        play.connects("bank");
        play.tells_markers("bank", &[marker]);
        play.forced();
    }
);

story!(cover, "A document without a row has no place in the order: refused (R-COVER).", play = Play::new(EMBEDDED), {
    play.asks("document only", vec![put("index", "film-1", None)]);
    play.note("A statement that turns out to write nothing does not count either.");
    play.asks("reads a row", film(1));
    play.yes("index", "1-2");
    play.read_only("db", "1-2");
});

story!(
    log_full,
    "Little space is left for the log: new transactions are refused, old ones finished (R-FULL).",
    play = Play::new(EMBEDDED),
    {
        play.asks("add film 1", film(1));
        play.log_full(true);
        play.asks("add film 2", film(2));
        play.all_yes(&["index", "db"], "1-1");
        play.forced();
        play.log_full(false);
        play.asks("add film 3", film(3));
    }
);

story!(limits, "The limits on what may be under way.", play = Play::with(EMBEDDED, |config| (config.max_open, config.max_lag) = (1, 1)), {
    play.asks("add film 1", film(1));
    play.asks("add film 2", film(2));
    play.all_yes(&["index", "db"], "1-1");
    play.forced();
    play.asks("add film 3", film(3));
});

story!(deadline_aborts, "Not decided within its deadline: aborted, and every store that was asked is told.", play = Play::new(REMOTE), {
    play.asks("add film 1", remote_film(1));
    play.yes("pg", "1-1");
    play.passes(15_000);
    play.note("The index's vote comes too late.");
    play.yes("index", "1-1");
});

story!(
    deadline_pending,
    "Committed, but a store has not followed within the wait's deadline: committed, pending at.",
    play = Play::new(EMBEDDED),
    {
        play.asks_for("add film 1", film(1), Wait::Visible, 2_000);
        play.all_yes(&["index", "db"], "1-1");
        play.forced();
        play.follows("db", "1.1", "1.1");
        play.passes(2_000);
        play.note("Sent again, in pauses that grow. It will get there.");
        play.passes(4_000);
        play.follows("index", "1.1", "1.1");
    }
);

story!(waits, "The three waits: decided, applied, visible.", play = Play::new(EMBEDDED), {
    play.asks_for("decided", film(1), Wait::Decided, 9_000);
    play.asks_for("visible", film(2), Wait::Visible, 9_000);
    play.asks_for("applied", film(3), Wait::Applied, 9_000);
    for tx in ["1-1", "1-2", "1-3"] {
        play.yes("index", tx);
    }
    play.votes("db", &["1-1", "1-2", "1-3"]);
    play.forced();
    play.follows("db", "1.3", "1.3");
    play.follows("index", "1.3", "0.0");
});

story!(at_least, "A token makes a read safe: reached, behind, or of another log.", play = Play::new(EMBEDDED), {
    decided(&mut play);
    let token = play.token("1.1");
    play.follows("db", "1.1", "1.1");
    play.reads("db", token, 1_000);
    play.reads("index", token, 1_000);
    play.reads("index", token, 5_000);
    play.passes(1_000);
    play.follows("index", "1.1", "0.0");
    play.reads("index", Token { log_id: LogId(0xbad), csn: csn("1.1") }, 1_000);
});

story!(
    at_least_taken_back,
    "What a reader waited for is not decided after all: there is nothing left to wait for.",
    play = Play::new(LED),
    {
        led(&mut play);
        let token = play.token("1.1");
        play.reads("index", token, 1000);
        let refusal = Refusal::new(RefusalKind::Conflict, "could not serialize");
        play.says("bank", FromParticipant::NotLed(vec![txid("1-1@p0")], refusal));
    }
);

story!(
    at_least_at_a_lost_store,
    "A store that was put back may lack what a token stands for, though it had acknowledged it.",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.acks("pg", "1-1");
        play.follows("index", "1.1", "1.1");
        play.disconnects("index");
        play.actor("index").progress = Progress::default();
        play.connects("index");
        let token = play.token("1.1");
        play.reads("index", token, 0);
    }
);

story!(store_away, "A store that is not there: refused before anything is sent.", play = Play::new(EMBEDDED), {
    play.dies("index");
    play.asks("add film 1", film(1));
    play.note("A transaction that does not need it goes on.");
    play.asks("rename", vec![row("db")]);
});

// ---- loss, and people

story!(
    owner_refuses,
    "A participant follows a newer start of this coordinator: this one is the old copy (R-OWNER, R-LOGLOSS).",
    play = Play::new(REMOTE),
    {
        play.disconnects("pg");
        play.arrives("pg");
        play.says("pg", FromParticipant::Refused(Owner { coord_id: CoordId(0xc0), epoch: Epoch(2), incarnation: 9 }));
        play.asks("add film 1", remote_film(1));
        play.note("A store of somebody else is just refused.");
        play.disconnects("index");
        play.arrives("index");
        play.says("index", FromParticipant::Refused(Owner { coord_id: CoordId(0xdead), epoch: Epoch(7), incarnation: 9 }));
        play.shows_status();
    }
);

story!(
    log_loss,
    "The log has lost records that it had forced: safe mode. Nothing is presumed; an operator looks, decides, and leaves it.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.all_yes(&["index", "pg"], "1-1");
        play.forced();
        play.follows("index", "1.1", "1.1");
        play.note("pg has not heard of it yet, and is still prepared.");
        play.coordinator_dies_log_lost(4);
        play.forced();
        play.connects("pg");
        play.connects("index");
        play.passes(30_000);
        play.note("No presumed abort, however long it takes: 1-1 stays in doubt.");
        play.retries("add film 1", 1, 1, remote_film(1));
        play.asks("add film 2", remote_film(2));
        play.operator(AdminAction::Resolve { txid: txid("1-1"), participant: PG, commit: true }, "the index has film 1: it was committed");
        play.forced();
        play.actor("pg").prepared.clear();
        play.says("pg", FromParticipant::Resolved { txid: txid("1-1"), commit: true });
        play.operator(AdminAction::LeaveSafeMode, "looked at everything");
        play.forced();
        play.note("That is forced, and only then said.");
        play.forced();
        play.coordinator_dies();
        play.recovers(&["pg", "index"]);
        play.note("The old loss is known, and is no evidence any more.");
        play.shows_status();
        play.asks("add film 2", remote_film(2));
    }
);

story!(
    log_loss_of_a_start,
    "The log has lost the very start in which it had decided, and counts it a second time: of no key anything is known.",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.follows("index", "1.1", "1.1");
        play.coordinator_dies_log_lost(3);
        play.forced();
        play.arrives("index");
        play.says("index", FromParticipant::Refused(Owner { coord_id: CoordId(0xc0), epoch: Epoch(1), incarnation: 1 }));
        play.note("It looks like a request that never came to this start.");
        play.inquires("add film 1", 1, 1);
        play.rolls_back("add film 1", 1, 1);
        play.retries("add film 1", 1, 1, remote_film(1));
        play.begins("add film 2", None);
    }
);

story!(
    log_loss_of_a_floor,
    "The log has lost a floor that its leader was told: outcomes are gone, and none of them is presumed.",
    play = Play::with(LED, |config| config.outcomes_max = 1),
    {
        floor_lost(&mut play);
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.note("The loss is known, and nobody keeps what was below that floor.");
        play.retries("add film 1", 1, 1, led_film(1));
        play.forced();
        play.retries("add film 1", 1, 1, led_film(1));
    }
);

story!(
    log_loss_of_a_floor_and_a_backup,
    "The same, while a copy of everything is made: nothing is forgotten before that is done, and nothing is said of what is to be forgotten.",
    play = Play::with(LED, |config| config.outcomes_max = 1),
    {
        floor_lost(&mut play);
        play.machine.hold_forgetting(true);
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.retries("add film 1", 1, 1, led_film(1));
        play.passes(5_000);
        play.note("The copy is made.");
        play.machine.hold_forgetting(false);
        play.passes(1_000);
        play.forced();
        play.retries("add film 1", 1, 1, led_film(1));
    }
);

story!(
    log_loss_of_a_floor_and_a_marker,
    "The same, when another leader tells what that floor passes, and the index lacks it: its marker stays until the index has it.",
    play = Play::new(&[("bank", Kind::Leader), ("index", Kind::Redo), ("till", Kind::Leader)]),
    {
        play.asks("sell film 1", vec![row("till"), put("index", "film-1", None)]);
        play.all_yes(&["index", "till"], "1-1@p2");
        let marker = play.marker("1-1@p2");
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.actor("bank").floor = Position { epoch: Epoch(1), n: 3 };
        play.connects("bank");
        play.operator(AdminAction::LeaveSafeMode, "looked at everything");
        play.forced();
        play.forced();
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("bank");
        play.tells_markers("bank", &[]);
        play.connects("till");
        play.tells_markers("till", std::slice::from_ref(&marker));
        play.forced();
        play.connects("till");
        play.tells_markers("till", std::slice::from_ref(&marker));
        play.follows("index", "1.1", "1.1");
        play.connects("till");
        play.tells_markers("till", &[marker]);
        play.shows_status();
    }
);

story!(
    store_loss,
    "A store comes back with less than it once acked: an old copy was restored. It is not used (R-STORELOSS).",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.follows("db", "1.1", "1.1");
        play.follows("index", "1.1", "1.1");
        play.passes(1000);
        play.forced();
        play.dies("index");
        play.actor("index").progress = Progress::default();
        play.connects("index");
        play.asks("add film 2", film(2));
    }
);

story!(
    skip,
    "An operator gives up a decided write at one store: forced as damage first, then it counts as applied (R-SKIP).",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.follows("db", "1.1", "1.1");
        play.says("index", FromParticipant::Stuck(csn("1.1"), "the index is read-only".into()));
        play.operator(AdminAction::Skip { txid: txid("1-1"), participant: INDEX }, "nobody will mend it");
        play.forced();
        play.note("The damage is not durable yet: if the coordinator dies here, nothing has been given up.");
        play.forced();
        play.shows_status();
        play.coordinator_dies();
        play.forced();
        play.connects("index");
        play.connects("db");
        play.shows_status();
        play.operator(AdminAction::Forget { txid: txid("1-1"), participant: INDEX }, "told the film's owner");
        play.forced();
        play.shows_status();
    }
);

story!(
    skip_lost,
    "The coordinator dies between an operator's word and the damage record: nothing was given up, and nobody was told so.",
    play = Play::new(EMBEDDED),
    {
        decided(&mut play);
        play.operator(AdminAction::Skip { txid: txid("1-1"), participant: INDEX }, "nobody will mend it");
        play.forced();
        play.coordinator_dies();
        play.forced();
        play.connects("index");
    }
);

story!(stuck, "A decided write that a store cannot apply: shouted about, and nothing else waits for it.", play = Play::new(EMBEDDED), {
    decided(&mut play);
    play.says("index", FromParticipant::Stuck(csn("1.1"), "the index is read-only".into()));
    play.says("index", FromParticipant::Stuck(csn("1.1"), "the index is read-only".into()));
    play.asks("add film 2", film(2));
    play.all_yes(&["index", "db"], "1-2");
    play.forced();
    play.follows("db", "1.2", "1.2");
    play.follows("index", "1.2", "1.2");
});

story!(
    rolled_back_by_hand,
    "A branch was rolled back by hand at its store before Commit came: damage, mixed (R-MARKER).",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.says("pg", FromParticipant::NotPrepared(txid("1-1"), MarkerEvidence::RolledBack));
        play.shows_status();
    }
);

story!(
    unknowable,
    "A branch is gone and nobody can know why: damage, hazard. After the first ack the same words mean nothing.",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.says("pg", FromParticipant::NotPrepared(txid("1-1"), MarkerEvidence::Unknowable));
        play.asks("add film 2", remote_film(2));
        play.all_yes(&["index", "pg"], "1-2");
        play.forced();
        play.acks("pg", "1-2");
        play.says("pg", FromParticipant::NotPrepared(txid("1-2"), MarkerEvidence::Unknowable));
    }
);

story!(
    by_hand_against_commit,
    "An operator rolls a branch back by hand, and the decision turns out to be Commit: damage.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.operator(AdminAction::Resolve { txid: txid("1-1"), participant: PG, commit: false }, "its locks block the shop");
        play.forced();
        play.says("pg", FromParticipant::Resolved { txid: txid("1-1"), commit: false });
        play.yes("index", "1-1");
        play.forced();
    }
);

story!(
    by_hand_against_abort,
    "An operator commits a branch by hand, and the decision turns out to be Abort: damage, though nobody asks about that branch again.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.disconnects("pg");
        play.operator(AdminAction::Resolve { txid: txid("1-1"), participant: PG, commit: true }, "its locks block the shop");
        play.forced();
        play.note("The store is away. It is told when it is back.");
        play.connects("pg");
        play.actor("pg").prepared.clear();
        play.says("pg", FromParticipant::Resolved { txid: txid("1-1"), commit: true });
        play.no("index", "1-1", RefusalKind::Constraint, "the title is too long");
        play.shows_status();
    }
);

story!(
    by_hand_meanwhile,
    "An operator's order is forced, and makes no sense any more when it is: it is refused, and no later start carries it out.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.yes("pg", "1-1");
        play.operator(AdminAction::Resolve { txid: txid("1-1"), participant: PG, commit: true }, "its locks block the shop");
        play.no("index", "1-1", RefusalKind::Constraint, "the title is too long");
        play.dies("pg");
        play.forced();
        play.note("Nobody is told before that is on record, too.");
        play.forced();
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("pg");
        play.asks_about("pg", "1-1");
    }
);

story!(
    by_hand_twice,
    "A second order for a branch waits for the first: what takes that back in the log, if it is refused, would take back the second as well.",
    play = Play::new(REMOTE),
    {
        play.asks("add film 1", remote_film(1));
        play.coordinator_dies();
        play.recovers(&["index"]);
        let order = AdminAction::Resolve { txid: txid("1-1"), participant: PG, commit: true };
        play.operator(order.clone(), "its locks block the shop");
        play.note("pg comes back and holds no such branch: the order makes no sense any more.");
        play.connects("pg");
        play.dies("pg");
        play.operator(order.clone(), "its locks block the shop");
        play.connects("pg");
        play.forces_one();
        play.dies("pg");
        play.operator(order.clone(), "its locks block the shop");
        play.forced();
        play.operator(order, "its locks block the shop");
        play.forced();
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.note("What was answered Done is done.");
        play.actor("pg").prepared.push(txid("1-1"));
        play.connects("pg");
    }
);

story!(
    by_hand_and_forgotten,
    "Damage that was forgotten stays so, though its store goes on telling how the branch ended there.",
    play = Play::new(REMOTE),
    {
        remote_decided(&mut play);
        play.dies("pg");
        play.actor("pg").prepared.clear();
        play.actor("pg").heuristics.push((txid("1-1"), false));
        play.connects("pg");
        play.operator(AdminAction::Forget { txid: txid("1-1"), participant: PG }, "the row is written anew");
        play.forced();
        play.connects("pg");
        play.coordinator_dies();
        play.recovers(&["index"]);
        play.connects("pg");
        play.shows_status();
    }
);

story!(by_hand_by_a_slip, "An order that names a decider which decides nothing is a slip of the pen.", play = Play::new(REMOTE), {
    play.asks("add film 1", remote_film(1));
    play.yes("pg", "1-1");
    play.dies("pg");
    play.operator(AdminAction::Resolve { txid: txid("1-1@p1"), participant: PG, commit: false }, "its locks block the shop");
});

story!(
    below_the_floor,
    "A transaction is decided, its store is away for so long that the outcome is dropped from memory: its branch is still told Commit.",
    play = Play::with(REMOTE, |config| config.outcomes_max = 1),
    {
        remote_decided(&mut play);
        play.follows("index", "1.1", "1.1");
        play.dies("pg");
        play.retries("other", 1, 2, vec![put("index", "x", None)]);
        play.retries("another", 1, 3, vec![put("index", "x", None)]);
        play.passes(60_000);
        play.forced();
        play.connects("pg");
        play.asks_about("pg", "1-1");
    }
);

// ---- participants that break the protocol

story!(
    impostors,
    "Whatever a participant says against the protocol ends its session, and never the coordinator.",
    play = Play::new(&[("bank", Kind::Leader), ("pg", Kind::Preparing), ("index", Kind::Redo)]),
    {
        play.asks("add film 1", remote_film(1));
        play.note("A ballot for a transaction nobody knows, a second vote, and a late one are no harm.");
        play.yes("index", "1-9");
        play.all_yes(&["index", "index"], "1-1");
        play.note("Finished before it was decided.");
        play.yes("pg", "1-1");
        play.says("pg", FromParticipant::Committed(txid("1-1")));
        play.connects("pg");
        play.note("A watermark beyond everything.");
        play.follows("index", "1.7", "1.7");
        play.actor("index").progress = Progress::default();
        play.actor("index").highest = Csn::ZERO;
        play.connects("index");
        play.note("Only one store decides, and this is not it.");
        play.says("pg", FromParticipant::Led(vec![txid("1-1@p0")]));
        play.connects("pg");
        play.note("A vote that is not its to give.");
        play.asks("add film 2", remote_film(2));
        play.says("pg", FromParticipant::Ballot(Ballot { votes: vec![(txid("1-2"), Vote::InGroup([].into()))], ..Ballot::default() }));
        play.note("Not one of several, though it may be, and more than a vote.");
        play.actor("pg").abilities = SHARES;
        play.connects("pg");
        play.asks("add film 3", remote_film(3));
        play.votes("index", &["1-3"]);
        let votes = vec![(txid("1-3"), Vote::InGroup([].into()))];
        play.says("pg", FromParticipant::Ballot(Ballot { votes, group_redo: bytes::Bytes::from_static(b"redo") }));
        play.note("It speaks before it has said what it holds.");
        play.arrives("pg");
        play.asks_about("pg", "1-1");
        play.note("A leader commits what it was never told to.");
        play.asks("rename", vec![row("bank")]);
        play.says("bank", FromParticipant::Led(vec![txid("1-4@p0")]));
    }
);

// ---- the table

#[test]
fn every_transcript_stands_in_the_crash_table() {
    let table = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/crash-table.md")).unwrap();
    for file in std::fs::read_dir(folder()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(table.contains(&format!("transcripts/{name})")), "docs/crash-table.md has no row for {name}");
    }
    for link in table.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| link.ends_with(".txt")) {
        assert!(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(link).exists(),
            "docs/crash-table.md links {link}, which is not there"
        );
    }
}
