//! Random batches over a rich schema: one file runs them, another only follows by redo. They never differ.
//!
//! `LOCKSTEP_SEED=n` runs one seed alone.

use crate::lab::{Image, dump, lab, sql, with};
use lockstep_core::{Operation, Value};
use lockstep_participants::ResourceManager;
use lockstep_participants::sqlite::Sqlite;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SCHEMA: &str = "
    CREATE TABLE person(id INTEGER PRIMARY KEY, name TEXT UNIQUE, nick TEXT, boss REFERENCES person ON DELETE SET NULL ON UPDATE CASCADE,
        upper_name AS (upper(name)) UNIQUE, CHECK (name <> 'nobody'));
    CREATE UNIQUE INDEX nicks ON person(lower(nick)) WHERE nick IS NOT NULL;
    CREATE TABLE account(person REFERENCES person ON DELETE CASCADE ON UPDATE CASCADE, kind TEXT, cents INT NOT NULL DEFAULT 0 CHECK (cents >= 0),
        note, PRIMARY KEY (person, kind), UNIQUE (kind, cents)) WITHOUT ROWID;
    CREATE TABLE tag(name TEXT PRIMARY KEY, weight REAL, body BLOB);
    CREATE TABLE tagged(tag REFERENCES tag ON DELETE CASCADE ON UPDATE SET DEFAULT DEFERRABLE INITIALLY DEFERRED, person INT, at INT DEFAULT 0,
        PRIMARY KEY (tag, person));
    CREATE TABLE event(id INTEGER PRIMARY KEY AUTOINCREMENT, what, who);
    CREATE TABLE strict_one(k ANY PRIMARY KEY, n INTEGER UNIQUE ON CONFLICT REPLACE, r REAL) STRICT;
    CREATE TRIGGER person_in AFTER INSERT ON person BEGIN INSERT INTO event(what, who) VALUES ('in', NEW.id); END;
    CREATE TRIGGER person_up AFTER UPDATE OF name ON person BEGIN INSERT INTO event(what, who) VALUES (OLD.name || '>' || NEW.name, NEW.id); END;
    CREATE TRIGGER person_out AFTER DELETE ON person BEGIN DELETE FROM event WHERE id = (SELECT max(id) FROM event) AND OLD.id % 2; END;
    CREATE TRIGGER tag_limit BEFORE INSERT ON tag WHEN (SELECT count(*) FROM tag) > 12 BEGIN SELECT RAISE(ABORT, 'too many tags'); END;";

const ROUNDS: usize = 6;

fn operation(rng: &mut ChaCha8Rng) -> Operation {
    let mut id = || Value::Integer(rng.random_range(0..12));
    let (a, b) = (id(), id());
    let name = Value::Text(["ann", "Bob", "cy", "Dee", "nobody", "eve", "fay", "Gus"][rng.random_range(0..8)].into());
    let other = Value::Text(["x", "Y", "z", "ann", "q", "X"][rng.random_range(0..6)].into());
    let any = match rng.random_range(0..7) {
        0 => Value::Null,
        1 => Value::Real(rng.random_range(-2..3) as f64 / 2.0),
        2 => Value::Blob(vec![7; rng.random_range(0..3000)].into()),
        3 => other.clone(),
        _ => Value::Integer(rng.random_range(0..6)),
    };
    match rng.random_range(0..28) {
        0 => with("INSERT INTO person(id, name, nick, boss) VALUES (?, ?, ?, ?)", [a, name, other, b]),
        1 => with("INSERT OR REPLACE INTO person(id, name, nick) VALUES (?, ?, ?)", [a, name, other]),
        2 => with(
            "INSERT INTO person(name) VALUES (?) ON CONFLICT (name) DO UPDATE SET nick = excluded.name || id RETURNING id, upper_name",
            [name],
        ),
        3 => with("UPDATE person SET name = ? WHERE id = ?", [name, a]),
        4 => with("UPDATE OR REPLACE person SET name = ?, nick = ? WHERE id = ?", [name, other, a]),
        5 => with("UPDATE OR IGNORE person SET id = ? WHERE id = ?", [a, b]),
        6 => with("DELETE FROM person WHERE id = ?", [a]),
        7 => with("UPDATE person SET boss = ? WHERE id > ?", [a, b]),
        8 => sql("UPDATE person SET name = name || '+'"),
        9 => sql("UPDATE person SET name = rtrim(name, '+'), nick = NULL"),
        10 => with("INSERT INTO account VALUES (?, ?, ?, ?)", [a, other, b, any]),
        11 => with("UPDATE account SET cents = cents - 1, note = ? WHERE person = ?", [any, a]),
        12 => with("UPDATE account SET cents = (SELECT max(cents) FROM account) - cents WHERE kind = ?", [other]),
        13 => with("INSERT OR IGNORE INTO account SELECT id, ?, id, NULL FROM person", [other]),
        14 => with("INSERT INTO tag VALUES (?, ?, randomblob(40))", [name, any]),
        15 => with("UPDATE tag SET name = ?, weight = -weight WHERE name = ?", [other, name]),
        16 => with("DELETE FROM tag WHERE name = ?", [name]),
        17 => with("INSERT INTO tagged(tag, person) VALUES (?, ?)", [name, a]),
        18 => with("REPLACE INTO tagged SELECT name, ?, ? FROM tag", [a, b]),
        19 => with("INSERT INTO event(what, who) VALUES (?, ?)", [any, a]),
        20 => sql("DELETE FROM event WHERE id = (SELECT max(id) FROM event)"),
        21 => with("INSERT INTO strict_one VALUES (?, ?, ?)", [any, a, Value::Integer(3)]),
        22 => with("UPDATE strict_one SET n = ? WHERE n = ?", [a, b]),
        23 => with("UPDATE strict_one SET k = ?, r = random() / 3.0 WHERE n = ?", [any, a]),
        24 => sql("UPDATE strict_one SET n = 11 - n"),
        25 => sql("DELETE FROM tagged"),
        26 => sql("SELECT count(*) FROM person JOIN account ON person = id"),
        _ => with("INSERT OR ROLLBACK INTO tag VALUES (?, 0, NULL)", [name]),
    }
}

/// Gives how many transactions were accepted, and how many were refused.
fn run(seed: u64) -> (usize, usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut live = lab(SCHEMA);
    let mut image = live.image();
    let mut follower: Sqlite = image.recover();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let batch = (0..rng.random_range(1..10)).map(|_| (0..rng.random_range(1..5)).map(|_| operation(&mut rng)).collect()).collect();
        let (ballot, decided) = live.prepare(batch);
        let yes = ballot.votes.iter().filter(|(_, vote)| vote.is_yes()).count();
        accepted += yes;
        refused += ballot.votes.len() - yes;
        let Some(decided) = decided else { continue };
        if rng.random_bool(0.3) {
            // The whole group is taken back.
            live.store.abort(&decided.txids).unwrap();
            assert_eq!(live.dump(), dump(&image.path), "seed {seed}, round {round}: after an abort");
            continue;
        }
        let crashed: Option<Image> = rng.random_bool(0.2).then(|| live.image());
        live.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
        if let Some(crashed) = crashed {
            // From here on the file that crashed between force and COMMIT follows.
            drop(follower);
            image = crashed;
            follower = image.recover();
        }
        for _ in 0..2 {
            let committed = follower.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
            assert_eq!(committed.stuck, [], "seed {seed}, round {round}");
        }
        assert_eq!(live.dump(), dump(&image.path), "seed {seed}, round {round}");
    }
    (accepted, refused)
}

#[test]
fn a_follower_never_differs() {
    if let Some(seed) = std::env::var("LOCKSTEP_SEED").ok().and_then(|seed| seed.parse().ok()) {
        run(seed);
        return;
    }
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..300 {
        let (yes, no) = run(seed);
        accepted += yes;
        refused += no;
    }
    assert!(accepted > 2000 && refused > 1000, "the mix is lopsided: {accepted} accepted, {refused} refused");
}
