//! Writes what fuzzing begins with: real records, messages and texts, in the form in which the targets take them.
//!
//! ```sh
//! cargo run -p lockstep-fuzz --example seeds
//! ```

use bytes::Bytes;
use lockstep_core::{CoordId, Csn, Decided, Decider, Epoch, FromParticipant, ParticipantId, Progress, ToParticipant};
use lockstep_core::{Entry, Owner, Txid};
use lockstep_log::Inspection;
use lockstep_log::format::encode;
use lockstep_proto::v1;
use lockstepd::service::participant_messages as wire;
use prost::Message;
use std::collections::BTreeSet;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, seeds) in [
        ("log_records", records(&here.join("../tests/data"))),
        ("log_folder", plays()),
        ("client_messages", client_messages()),
        ("participant_messages", participant_messages()),
        ("coordinator_sessions", plays()),
        ("participant_sessions", plays()),
        ("statements", texts(STATEMENTS)),
        ("documents", texts(DOCUMENTS)),
        ("opensearch_documents", texts(MAPPED)),
        ("postgres_texts", plays()),
        ("postgres_statements", texts(POSTGRES_STATEMENTS)),
        ("configuration", configurations(&here.join(".."))),
        ("command_lines", texts(COMMANDS)),
        ("texts", marked(TEXTS)),
    ] {
        let folder = here.join("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().collect::<BTreeSet<_>>().into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}

/// Records of logs of older formats, one of each kind; those with a payload as format 3 has them too.
fn records(data: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for version in 2..=4u8 {
        let mut kinds = BTreeSet::new();
        let entries = Inspection::of(&data.join(format!("log-format-{version}/log"))).expect("a log of an older format").entries;
        for Entry { record, .. } in entries {
            if !kinds.insert(format!("{record:?}").split([' ', '(']).next().map(str::to_owned)) {
                continue;
            }
            let encoded = encode(&Entry { lsn: lockstep_core::Lsn(7), record }).expect("it was in a log");
            let mut body = encoded.body;
            if version <= 3 {
                // Without its traces.
                body.pop();
            }
            let head = &encoded.head[17..encoded.head.len() - 4];
            let mut seed = vec![0, 7, 2, version];
            let range = (2 + body.len() + head.len()).min(2048) + 1;
            let length = (body.len() as u32).to_be_bytes();
            seed.extend_from_slice(if range > 256 { &length[2..] } else { &length[3..] });
            seed.extend(body);
            seed.extend_from_slice(head);
            seeds.push(seed);
        }
    }
    seeds
}

/// Nothing in particular.
fn plays() -> Vec<Vec<u8>> {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (1..=6).map(|n| (0..n * 80).map(|_| byte()).collect()).collect()
}

fn client_messages() -> Vec<Vec<u8>> {
    use v1::operation::Operation as O;
    let key = || Some(v1::RequestKey { key: Bytes::from_static(b"key"), attempt: 1 });
    let operation = |operation| v1::Operation { operation: Some(operation) };
    let values = [
        v1::value::Value::Integer(-1),
        v1::value::Value::Real(0.5),
        v1::value::Value::Text("t".into()),
        v1::value::Value::Blob(Bytes::from_static(b"b")),
        v1::value::Value::Boolean(true),
    ];
    let parameters = values.map(|value| v1::Value { value: Some(value) }).to_vec();
    let read = parameters.clone();
    let condition = |condition| Some(v1::Condition { condition: Some(condition) });
    let statement = O::Statement(v1::Statement { sql: "SELECT 1".into(), parameters, expect_rows: Some(1) });
    let put = O::Put(v1::Put { key: "k".into(), document: "{}".into(), condition: condition(v1::condition::Condition::IfAbsent(true)) });
    let delete = O::Delete(v1::Delete { key: "k".into(), condition: condition(v1::condition::Condition::IfCsn(9)) });
    let branches = vec![
        v1::Branch { store: "db".into(), operations: vec![operation(statement)] },
        v1::Branch { store: "index".into(), operations: vec![operation(put), operation(delete)] },
        v1::Branch { store: "lite".into(), operations: vec![operation(O::Enlisted(v1::Enlisted { xid: 7 }))] },
        v1::Branch { store: "old".into(), operations: vec![operation(O::Update(v1::Update::default()))] },
    ];
    let position = Some(v1::Position { epoch: 3, n: 1 });
    let traceparent = TEXTS[6].1.to_string();
    let commit = v1::CommitRequest { key: key(), position, branches, wait: 2, timeout_ms: 9, wait_ms: 9, traceparent, new_key: false };
    let begin = v1::BeginRequest { key: key(), position, led_by: "db".into(), timeout_ms: 5 };
    let rollback = v1::RollbackRequest { key: key(), position };
    let inquire = v1::InquireRequest { key: key(), position, wait: 1, wait_ms: 7 };
    let txid = v1::TransactionId { epoch: 3, n: 17, leader: 2 };
    let requests = |id| {
        use v1::transact_request::Request as R;
        let all = [
            R::Commit(commit.clone()),
            R::Begin(begin.clone()),
            R::Inquire(inquire.clone()),
            R::Rollback(rollback.clone()),
            R::Acknowledge(txid),
        ];
        all.map(|request| v1::TransactRequest { id, request: Some(request) }).to_vec()
    };
    let token = || Bytes::from_static(&[1; 24]);
    let query = v1::QueryRequest { store: "db".into(), parameters: read, at_least: token(), ..v1::QueryRequest::default() };
    let search = v1::SearchRequest { store: "index".into(), at_least: token(), ..v1::SearchRequest::default() };
    let get = v1::GetRequest { store: "none".into(), at_least: token(), ..v1::GetRequest::default() };
    let list = v1::ListTransactionsRequest { after: "ended:3-17@p2".into(), ..v1::ListTransactionsRequest::default() };
    let tagged = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    vec![
        tagged(0, commit.encode_to_vec()),
        tagged(1, tagged(0, query.encode_to_vec())),
        tagged(1, tagged(1, search.encode_to_vec())),
        tagged(1, tagged(2, get.encode_to_vec())),
        tagged(1, tagged(3, list.encode_to_vec())),
        tagged(2, begin.encode_to_vec()),
        tagged(3, rollback.encode_to_vec()),
        tagged(4, inquire.encode_to_vec()),
        tagged(5, v1::TransactRequests { requests: requests(1) }.encode_to_vec()),
        tagged(5, v1::TransactRequests { requests: requests(3) }.encode_to_vec()),
        tagged(6, vec![1; 24]),
        tagged(7, txid.encode_to_vec()),
    ]
}

fn participant_messages() -> Vec<Vec<u8>> {
    let txid = Txid { epoch: Epoch(3), n: 17, decider: Decider::Leader(ParticipantId(2)) };
    let csn = Csn::new(Epoch(3), 4);
    let owner = Owner { coord_id: CoordId(1 << 127 | 5), epoch: Epoch(3), incarnation: u64::MAX };
    let from = [
        FromParticipant::Refused(owner),
        FromParticipant::Committed(txid),
        FromParticipant::Progress(Progress { applied: csn, durable: csn }),
        FromParticipant::Stuck(csn, "why".into()),
        FromParticipant::Led(vec![txid]),
        FromParticipant::Resolved { txid, commit: true },
    ];
    let to = [
        ToParticipant::Commit(Decided { csn, txids: vec![txid], redo: Bytes::from_static(b"redo"), trace: None }),
        ToParticipant::Abort(txid),
        ToParticipant::Scan(csn),
        ToParticipant::Close,
    ];
    let from = from.iter().map(|message| [vec![0], wire::from_participant_out(message).encode_to_vec()].concat());
    let to = to.iter().map(|message| [vec![1], wire::to_participant_out(message).encode_to_vec()].concat());
    from.chain(to).collect()
}

fn configurations(root: &Path) -> Vec<Vec<u8>> {
    let mut seeds = texts(CONFIGURATIONS);
    let examples = ["coordinator/lockstepd.example.toml"].iter().filter_map(|name| std::fs::read(root.join(name)).ok());
    seeds.extend(examples.filter(|text| text.len() < 8 << 10));
    seeds
}

fn texts(of: &[&str]) -> Vec<Vec<u8>> {
    of.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn marked(of: &[(u8, &str)]) -> Vec<Vec<u8>> {
    of.iter().map(|(kind, text)| [&[*kind], text.as_bytes()].concat()).collect()
}

const STATEMENTS: &[&str] = &[
    "INSERT INTO item (name, price, stock) VALUES (?, ?, ?) RETURNING id",
    "UPDATE item SET stock = stock - 1, price = price * 1.1 WHERE id = 1!\0DELETE FROM note WHERE key = 'x' AND part = 1",
    "SELECT i.name, count(*) FROM item i LEFT JOIN note n ON n.item = i.id GROUP BY i.name HAVING count(*) > 0 ORDER BY 1 LIMIT 5",
    "INSERT INTO note VALUES ('y', 3, zeroblob(16), NULL) ON CONFLICT (key, part) DO UPDATE SET body = excluded.body",
    "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c WHERE x < 50) INSERT INTO item (name) SELECT 'n' || x FROM c",
    "CREATE TABLE t (a)",
    "BEGIN\0COMMIT",
    "PRAGMA journal_mode = DELETE",
    "ATTACH ':memory:' AS other",
    "SELECT random(), datetime('now'), json_extract('{\"a\":1}', '$.a')",
    "UPDATE item SET id = id + 10\0INSERT INTO item SELECT * FROM cheap\0REPLACE INTO item (id, name) VALUES (1, 'b')",
    "SAVEPOINT s\0ROLLBACK TO s",
];
const POSTGRES_STATEMENTS: &[&str] = &[
    "select 1",
    "WITH a AS (SELECT 1) TABLE a",
    "/* a /* b */ c */ Update x SET y = $1",
    "-- no\nINSERT INTO t VALUES ($1, $2) RETURNING id",
    "/**/Rollback",
    "PREPARE TRANSACTION 'x'",
    "set local x = 1",
    "create table t ()",
    "/* open",
    " (VALUES (1))",
];
const DOCUMENTS: &[&str] = &[
    "{\"title\": \"A film\", \"tag\": [\"a\", \"b\"], \"n\": 7, \"x\": 0.5, \"ok\": true, \"at\": \"2026-01-02T03:04:05Z\", \"more\": {\"a\": {\"b\": null}}}\0k\0title:film AND n:[1 TO 9]",
    "{\"title\": \"\"}\0k\0-tag:a OR (\"a film\"~2^3)",
    "{\"a\": [[1, 2.5, \"x\"], {\"b\": 1e300}], \"\": \"\\u0000\"}\0k\0a:*",
    "[]",
    "{\"title\": \"x\", \"n\": 99999999999999999999}\0k\0n:>1",
    "{\"title\": \"x\", \"at\": \"1500-01-01T00:00:00Z\"}\0k\0at:[1970-01-01T00:00:00Z TO *]",
];
const MAPPED: &[&str] = &[
    "{\"properties\": {\"title\": {\"type\": \"text\", \"fields\": {\"raw\": {\"type\": \"keyword\", \"ignore_above\": 9}}}, \"n\": {\"type\": \"short\"}, \"x\": {\"type\": \"half_float\"}, \"at\": {\"type\": \"date\"}, \"ip\": {\"type\": \"ip\"}, \"o\": {\"type\": \"nested\", \"properties\": {\"b\": {\"type\": \"boolean\"}}}}}\0{\"index.mapping.nested_objects.limit\": \"3\"}\0{\"title\": \"A film\", \"n\": 7, \"x\": 1.5, \"at\": \"2026-01-02\", \"ip\": \"::1\", \"o\": [{\"b\": true}, {\"b\": \"false\"}]}",
    "{\"dynamic\": \"strict\", \"properties\": {\"a\": {\"properties\": {\"b\": {\"type\": \"long\", \"copy_to\": [\"c\"]}}}, \"c\": {\"type\": \"keyword\"}}}\0{}\0{\"a.b\": \"12\", \"a\": {\"b\": [1, null]}}",
    "{\"dynamic\": false, \"dynamic_templates\": [{}]}\0{\"index.mapping.ignore_malformed\": true}\0{\"x\": {\"y\": [[1, \"2026-01-02T03:04:05.123Z\"]]}}",
    "{}\0{}\0{\"x\": 1, \"y\": 1.5, \"z\": \"text\", \"d\": \"2026-01-02\", \"o\": {\"p\": true}}",
];
const CONFIGURATIONS: &[&str] = &[
    "",
    "listen = \"127.0.0.1:0\"\n[limits]\nstreams = 5\n[timeouts]\nprepare_ms = 100\n\0limits.key_bytes=12\nlogging.format=json",
    "[[store]]\ntype = \"postgres\"\nname = \"pg\"\nurl = \"postgresql://user:hunter2@host:5432/db\"\n",
    "[[store]]\ntype = \"postgres\"\nname = \"pg\"\nurl = \"postgresql://user@host:5432/db\"\npassword_env = \"P\"\n[[store]]\ntype = \"tantivy\"\nname = \"index\"\n[[principal]]\nname = \"shop\"\nroles = [\"client\"]\nstores = [\"pg\"]\ntoken_env = \"T\"\n",
    "[[store]]\ntype = \"opensearch\"\nname = \"os\"\nnodes = [\"http://user:hunter2@127.0.0.1:9200\"]\nindex = \"films\"\n",
    "[[store]]\ntype = \"sqlite\"\nname = \"db\"\nmode = \"database-led\"\n[[store]]\ntype = \"remote\"\nname = \"r\"\nrole = \"index\"\nkind = \"redo\"\n[[verify]]\nname = \"films\"\n",
    "\0store=postgresql://user:hunter2@host/db",
    "[traces]\nendpoint = \"http://user:hunter2@127.0.0.1:4317\"\n[security]\ninsecure = true\n[http]\nlisten = \"127.0.0.1:0\"\nhosts = [\"a.example\"]\n[log]\nwrite_ahead_bytes = 65536\nloss_check = \"strict\"",
];
const COMMANDS: &[&str] = &[
    "0status\n--output\njson",
    "0transactions\nlist\n--state\nin-doubt\n--older-than\n30s",
    "0branches\nresolve\n3-17\ndb\n--commit\n--operator\neve\n--reason\nbecause",
    "0wait\n--timeout\n99999999d",
    "0cert\nca\n--days\n9",
    "1serve\n--set\nlimits.streams=5\n--data-dir\n/tmp/x",
    "1check-config\n--config\nx.toml\n--log-level\ndebug",
    "1bench\n--help",
    "1demo\n--stores\nsqlite,tantivy",
];
const TEXTS: &[(u8, &str)] = &[
    (0, "3-17"),
    (0, "3-17@p2"),
    (0, "4294967295-18446744073709551615@p65535"),
    (1, "3.17"),
    (1, "16777215.549755813887"),
    (2, "lockstep:00000000000000000123456789abcdef:2:3-17@p2"),
    (3, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    (3, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff-more"),
];
