//! What a server may be that is not what the store needs: encrypted otherwise, a standby, too old.

use crate::authority::Authority;
use crate::lab::{ME, options, owner, sql};
use crate::postgres::Cluster;
use lockstep_core::{Decider, Epoch, Txid, Vote, Work};
use lockstep_participants::postgres::{Postgres, PostgresMode, PostgresOptions, SslMode};
use lockstep_participants::{ResourceManager, StoreError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;

/// And a hot standby of the same server, which is refused whichever way it is reached.
#[test]
fn tls_is_verified_as_configured_and_a_hot_standby_is_refused() {
    let mut primary = Cluster::start(&["max_prepared_transactions=10"]);
    primary.psql("postgres", "CREATE DATABASE shop");
    a_hot_standby_is_refused(&primary);
    what_is_started_anew_is_looked_at_first(&mut primary);
    tls_is_verified_as_configured(&primary);
}

/// An older copy of it may stand in its place: only a session's beginning would show that (R-STORELOSS).
fn what_is_started_anew_is_looked_at_first(cluster: &mut Cluster) {
    cluster.psql("postgres", "CREATE DATABASE idle");
    let mut store = Postgres::new(options(&cluster.url("idle"), PostgresMode::DatabaseLed));
    store.recover(owner(1), ME).unwrap();
    let work = |n| Work {
        txid: Txid { epoch: Epoch(1), n, decider: Decider::Leader(ME) },
        operations: [sql("SELECT 1")].into(),
        timeout: 20_000_000,
        trace: None,
        shares: false,
    };
    assert!(store.prepare(&[work(1)]).is_ok());
    store.abort(&[work(1).txid]).unwrap();
    cluster.kill();
    cluster.run();
    let error = store.prepare(&[work(2)]).unwrap_err();
    assert!(matches!(&error, StoreError::Broken(why) if why.contains("started anew")), "{error}");
    store.recover(owner(1), ME).unwrap();
    assert!(store.prepare(&[work(3)]).is_ok());
}

fn tls_is_verified_as_configured(cluster: &Cluster) {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.certificate("127.0.0.1");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (right, wrong) = (file("right.pem", &authority.pem), file("wrong.pem", &other.pem));
    let with = |host: &str, mode, ca: Option<&PathBuf>| PostgresOptions {
        ssl_mode: mode,
        ssl_root_cert: ca.cloned(),
        ..options(&format!("host={host} port={} user=postgres dbname=shop", cluster.port()), PostgresMode::TwoPhase)
    };
    let ours = "SELECT count(*) > 0 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity a USING (pid)
        WHERE a.datname = 'shop' AND a.application_name LIKE 'lockstep:%'";
    // Before the server has it.
    let error = Postgres::new(with("127.0.0.1", SslMode::VerifyFull, Some(&right))).recover(owner(2), ME).unwrap_err();
    assert!(matches!(&error, StoreError::Broken(why) if why.contains("TLS")), "{error}");
    cluster.encrypt(&certificate, &key);
    for encrypted in [
        with("127.0.0.1", SslMode::VerifyFull, Some(&right)),
        with("127.0.0.1", SslMode::Require, None),
        with("127.0.0.1", SslMode::Prefer, None),
    ] {
        let mode = encrypted.ssl_mode;
        let mut store = Postgres::new(encrypted);
        store.recover(owner(2), ME).unwrap();
        let work = Work {
            txid: Txid { epoch: Epoch(2), n: 1, decider: Decider::Log },
            operations: [sql("SELECT 1")].into(),
            timeout: 20_000_000,
            trace: None,
            shares: false,
        };
        assert!(matches!(store.prepare(&[work]).unwrap().votes[0].1, Vote::ReadOnly(_)));
        assert_eq!(cluster.psql("postgres", ours), "t", "{mode:?}");
    }
    for refused in [
        with("127.0.0.1", SslMode::VerifyFull, Some(&wrong)),
        // The certificate is another host's.
        with("localhost", SslMode::VerifyFull, Some(&right)),
        // The system's authorities do not know it.
        with("127.0.0.1", SslMode::VerifyFull, None),
    ] {
        let mut store = Postgres::new(refused);
        let error = store.recover(owner(2), ME).unwrap_err().to_string();
        assert!(error.contains("ssl_root_cert") && (error.contains("certificate") || error.contains("authority")), "{error}");
        assert!(store.reader().examine()[0].sentence.contains("ssl_root_cert"));
    }
    let nowhere = with("127.0.0.1", SslMode::VerifyFull, Some(&folder.path().join("nowhere.pem")));
    let error = Postgres::new(nowhere).recover(owner(2), ME).unwrap_err();
    assert!(matches!(&error, StoreError::Refused(why) if why.contains("nowhere.pem")), "{error}");
    let nonsense = with("127.0.0.1", SslMode::VerifyFull, Some(&file("nonsense.pem", "nonsense")));
    let error = Postgres::new(nonsense).recover(owner(2), ME).unwrap_err();
    assert!(matches!(&error, StoreError::Refused(why) if why.contains("certificate authority")), "{error}");
}

fn a_hot_standby_is_refused(primary: &Cluster) {
    // It has followed the primary, our tables included.
    Postgres::new(options(&primary.url("shop"), PostgresMode::TwoPhase)).recover(owner(1), ME).unwrap();
    let standby = primary.standby();
    for mode in [PostgresMode::TwoPhase, PostgresMode::DatabaseLed] {
        let mut store = Postgres::new(options(&standby.url("shop"), mode));
        let error = store.recover(owner(2), ME).unwrap_err();
        assert!(matches!(&error, StoreError::Refused(why) if why.contains("hot standby") && why.contains("primary")), "{error}");
        let told = store.reader().examine();
        assert!(told.iter().any(|finding| finding.problem && finding.sentence.contains("hot standby")), "{told:?}");
    }
    // What the sentence advises.
    let either = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=shop target_session_attrs=read-write",
        standby.port(),
        primary.port()
    );
    Postgres::new(options(&either, PostgresMode::TwoPhase)).recover(owner(2), ME).unwrap();
}

#[test]
fn a_server_that_is_too_old_is_refused_by_its_version() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(old(stream))));
    let url = format!("host=127.0.0.1 port={port} user=postgres dbname=shop");
    let mut store = Postgres::new(options(&url, PostgresMode::TwoPhase));
    for error in [store.owner().unwrap_err(), store.recover(owner(1), ME).unwrap_err()] {
        assert!(error.to_string().contains("the server is PostgreSQL 12; version 13 is the least that can be used"), "{error}");
    }
    assert!(store.reader().examine()[0].sentence.contains("PostgreSQL 12"));
}

/// Answers as a PostgreSQL 12 does to whoever asks it for three columns: process, version and one setting.
fn old(mut stream: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut startup)?;
    send(&mut stream, b'R', &0_i32.to_be_bytes())?;
    send(&mut stream, b'Z', b"I")?;
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4];
        stream.read_exact(&mut body)?;
        match head[0] {
            b'P' => send(&mut stream, b'1', b"")?,
            b'B' => send(&mut stream, b'2', b"")?,
            b'D' => {
                let mut columns = 3_i16.to_be_bytes().to_vec();
                for (name, oid, size) in [("a", 23_i32, 4_i16), ("b", 23, 4), ("c", 25, -1)] {
                    columns.extend([name.as_bytes(), b"\0"].concat());
                    columns.extend(0_i32.to_be_bytes());
                    columns.extend(0_i16.to_be_bytes());
                    columns.extend(oid.to_be_bytes());
                    columns.extend(size.to_be_bytes());
                    columns.extend((-1_i32).to_be_bytes());
                    columns.extend(1_i16.to_be_bytes());
                }
                send(&mut stream, b'T', &columns)?;
            }
            b'E' => {
                let mut row = 3_i16.to_be_bytes().to_vec();
                for value in [&7_i32.to_be_bytes()[..], &120_017_i32.to_be_bytes(), b"on"] {
                    row.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
                    row.extend(value);
                }
                send(&mut stream, b'D', &row)?;
                send(&mut stream, b'C', b"SELECT 1\0")?;
            }
            b'S' => send(&mut stream, b'Z', b"I")?,
            _ => return Ok(()),
        }
    }
}

fn send(stream: &mut TcpStream, kind: u8, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[&[kind], &length[..], body].concat())
}
