//! An `AdminService` with fixed answers, in a thread of its own.

use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use lockstep_proto::v1::plan_request::Order;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// How the daemon does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Well,
    /// A store is down, a transaction is stuck, there is damage.
    Ill,
    /// It is starting: every question is answered "unavailable".
    Starting,
}

/// After so long without a word the peer is pinged; without an answer it is gone.
const PING: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts it on a free port of the loopback interface; it ends with the test's process.
pub fn start(health: Health) -> String {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(format!("http://{}", listener.local_addr().unwrap())).unwrap();
            let server = tonic::transport::Server::builder()
                .http2_keepalive_interval(Some(PING))
                .http2_keepalive_timeout(Some(PATIENCE))
                .add_service(AdminServiceServer::new(Daemon(health)));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

/// Another address of the daemon there, for one connection; and a word for whatever comes from its client, until the connection ends.
pub fn overheard(endpoint: &str) -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, daemon) = (listener.local_addr().unwrap(), endpoint.strip_prefix("http://").unwrap().to_owned());
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let (client, daemon) = (listener.accept().unwrap().0, TcpStream::connect(daemon).unwrap());
        let (from, to) = (daemon.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || pass_on(from, to, || {}));
        pass_on(client, daemon, || {
            let _ = said.send(());
        });
    });
    (format!("http://{address}"), heard)
}

/// Until one of them ends the connection; then both have.
fn pass_on(mut from: TcpStream, mut to: TcpStream, note: impl Fn()) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        note();
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

struct Daemon(Health);

fn skipping() -> v1::Choice {
    let everywhere = |sentence: &str| v1::Harm { participant: String::new(), sentence: sentence.into(), keys: vec![] };
    let at_index = |sentence: &str, key: &str| v1::Harm { participant: "index".into(), sentence: sentence.into(), keys: vec![key.into()] };
    v1::Choice {
        command: "lockstep skip 3-1251 --participant index --reason WHY".into(),
        effect: "Gives up its write at `index`, for ever, so that reads and tokens there go on. The other stores keep it.".into(),
        harms: vec![
            at_index(
                "`index` never gets these documents: each stays there as it was before, or missing, while `db` has the change.",
                "film-42",
            ),
            at_index("`index` goes on finding these documents, which were to be deleted.", "film-7"),
            everywhere("It is recorded as damage with your name and reason, and stays in `lockstep status` until you forget it."),
        ],
        ..v1::Choice::default()
    }
}

fn csn(n: u64) -> u64 {
    3 << 39 | n
}

fn pool((name, limit, lent, waiting): (&str, u32, u32, u32)) -> v1::ConnectionPool {
    v1::ConnectionPool { name: name.into(), limit, open: limit, lent, waiting }
}

impl Daemon {
    fn awake(&self) -> Result<(), Status> {
        match self.0 {
            Health::Well | Health::Ill => Ok(()),
            Health::Starting => Err(Status::unavailable("the daemon is starting: it replays its log")),
        }
    }

    fn ill(&self) -> bool {
        self.0 == Health::Ill
    }

    fn participants(&self) -> Vec<v1::ParticipantStatus> {
        let database = v1::ParticipantStatus {
            name: "db".into(),
            id: 0,
            r#type: if self.ill() { "postgres" } else { "sqlite" }.into(),
            kind: if self.ill() { "preparing" } else { "serial" }.into(),
            session: "up".into(),
            why: String::new(),
            applied_csn: csn(1204),
            durable_csn: csn(1190),
            lag: 0,
            lag_ms: 0,
            stuck: 0,
            prepared: if self.ill() { 2 } else { 0 },
            prepared_ms: if self.ill() { 312_000 } else { 0 },
            unanswered: u64::from(self.ill()),
            forces: 0,
            session_ms: 187_200_000,
            reported_ms: 40,
            pools: if self.ill() { [("branches", 32, 32, 5), ("readers", 4, 0, 0)].map(pool).into() } else { Vec::new() },
        };
        let mut index = v1::ParticipantStatus {
            name: "index".into(),
            id: 1,
            r#type: "tantivy".into(),
            kind: "redo".into(),
            applied_csn: csn(1198),
            durable_csn: csn(1198),
            lag: 6,
            lag_ms: 84,
            prepared: 0,
            prepared_ms: 0,
            unanswered: 0,
            pools: Vec::new(),
            ..database.clone()
        };
        if self.ill() {
            (index.session, index.why) = ("down".into(), "its folder cannot be opened:\nno space left on device".into());
            (index.stuck, index.lag_ms, index.session_ms, index.reported_ms) = (1, 96_000, 95_000, 96_000);
        }
        vec![database, index]
    }

    fn summary(&self) -> v1::TransactionSummary {
        v1::TransactionSummary {
            txid: "3-1251".into(),
            state: "committing".into(),
            csn: csn(1199),
            age_ms: 96_000,
            participants: vec!["db".into(), "index".into()],
            waiting_for: vec!["index".into()],
            key: "order-17".into(),
            attempt: 1,
        }
    }

    fn order(&self, operator: &str, reason: &str, message: &str) -> Result<Response<v1::AdminReply>, Status> {
        assert_eq!((operator, reason), ("ann", "disk lost"));
        let (done, message) = match self.0 {
            Health::Ill => (true, message.to_owned()),
            _ => (false, "nothing is stuck there".to_owned()),
        };
        Ok(Response::new(v1::AdminReply { done, message }))
    }
}

#[tonic::async_trait]
impl AdminService for Daemon {
    type DumpLogStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::LogRecord, Status>>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.awake()?;
        Ok(Response::new(v1::StatusReply {
            phase: "serving".into(),
            why: String::new(),
            coord_id: "0000000000000000000000000000000a".into(),
            log_id: "0000000000000000000000000000000b".into(),
            epoch: 3,
            version: "0.1.0".into(),
            uptime_ms: 187_200_000,
            in_doubt: if self.ill() { 1 } else { 0 },
            oldest_in_doubt_ms: if self.ill() { 96_000 } else { 0 },
            active: 2,
            committed: 120_400,
            aborted: 17,
            forces: 3010,
            outcomes_kept: 120_417,
            floor: Some(v1::Position { epoch: 1, n: 5 }),
            last_csn: csn(1204),
            log_bytes: 12 << 20,
            log_free_bytes: 20 << 30,
            damage: if self.ill() { 1 } else { 0 },
            participants: self.participants(),
            serving_after_ms: 12,
            mended_after_ms: if self.ill() { 0 } else { 48 },
            last_lsn: 4021,
            deciding: 0,
            log_full: false,
            paused: false,
            unanswered: if self.ill() { 2 } else { 0 },
        }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsReply>, Status> {
        self.awake()?;
        let request = request.into_inner();
        if request.participant == "nowhere" {
            return Err(Status::not_found("participant: there is no store `nowhere`; there are db, index"));
        }
        let aborted = v1::TransactionSummary {
            txid: "3-1252@p0".into(),
            state: "aborted".into(),
            csn: 0,
            age_ms: 4_250,
            waiting_for: vec![],
            key: "7d3e".into(),
            attempt: 2,
            ..self.summary()
        };
        let wanted = |summary: &v1::TransactionSummary| match request.states.is_empty() {
            true => summary.state != "aborted",
            false => request.states.contains(&summary.state),
        };
        let in_doubt = v1::TransactionSummary {
            txid: "2-77@p0".into(),
            state: "in doubt".into(),
            csn: 0,
            age_ms: 61_000,
            participants: vec!["ledger".into()],
            waiting_for: vec!["db".into()],
            key: String::new(),
            attempt: 0,
        };
        let all = [in_doubt, self.summary(), aborted];
        let old = |summary: &v1::TransactionSummary| summary.age_ms >= request.older_than_ms;
        let named = |summary: &v1::TransactionSummary| request.key.is_empty() || summary.key == request.key;
        let mut transactions: Vec<_> = all.into_iter().filter(wanted).filter(old).filter(named).collect();
        let truncated = transactions.len() > request.limit as usize;
        transactions.truncate(request.limit as usize);
        Ok(Response::new(v1::ListTransactionsReply { transactions, truncated, next: String::new() }))
    }

    async fn show_transaction(&self, request: Request<v1::ShowTransactionRequest>) -> Result<Response<v1::TransactionDetail>, Status> {
        if request.get_ref().txid != "3-1251" {
            let sentence = format!("nothing is known of transaction {}: never begun, or no longer kept", request.get_ref().txid);
            return Err(Status::not_found(sentence));
        }
        let branch = |participant: &str, state: &str, vote: &str, keys: &[&str], note: &str| v1::BranchDetail {
            participant: participant.into(),
            state: state.into(),
            vote: vote.into(),
            keys: keys.iter().map(|key| key.to_string()).collect(),
            note: note.into(),
        };
        let moment = |after: u64, sentence: &str, participant: &str, source: &str| v1::Moment {
            at_ms: 1_795_402_665_000 + after,
            sentence: sentence.into(),
            participant: participant.into(),
            source: source.into(),
        };
        Ok(Response::new(v1::TransactionDetail {
            summary: Some(self.summary()),
            branches: vec![
                branch("db", "committed", "in group", &[], ""),
                branch("index", "committing", "redo", &["film-42", "film-7"], "stuck: no space left on device"),
            ],
            explanation: vec![
                "It is decided, at CSN 3.1199: it is committed, and that does not change.".into(),
                "It waits for `index`, which is down; it is applied there as soon as `index` is back.".into(),
            ],
            source: "memory".into(),
            timeline: vec![
                moment(0, "it began", "", "memory"),
                moment(2, "it was asked for its vote", "index", "memory"),
                moment(3, "its vote came", "index", "store index"),
                moment(9, "it was committed, at CSN 3.1199", "", "log, record 4013"),
                moment(14, "it has applied it", "db", "store db"),
                moment(20, "it could not be applied, first: no space\nleft on device", "index", "store index"),
            ],
        }))
    }

    async fn explain_transaction(&self, request: Request<v1::ExplainTransactionRequest>) -> Result<Response<v1::Explanation>, Status> {
        let fact = |sentence: &str, source: &str, age_ms| v1::Fact { sentence: sentence.into(), source: source.into(), age_ms };
        let txid = request.into_inner().txid;
        if txid != "3-1251" {
            return Ok(Response::new(v1::Explanation {
                verdict: format!("{txid} was never begun: this start has not come to that number yet."),
                txid,
                state: "unknown".into(),
                choices: vec![v1::Choice {
                    command: "lockstep tx list".into(),
                    effect: "This lists what there is.".into(),
                    ..v1::Choice::default()
                }],
                ..v1::Explanation::default()
            }));
        }
        Ok(Response::new(v1::Explanation {
            txid,
            state: "committing".into(),
            csn: csn(1199),
            verdict: "3-1251 is committed, at CSN 3.1199, and that does not change. It is not finished: `index` has not applied it yet."
                .into(),
            facts: vec![
                fact("Its Commit record is durable: decided at CSN 3.1199.", "log, record 4013", 96_000),
                fact("`db` has applied it.", "store db", 95_990),
                fact("`index` cannot apply it: no space left on device. It has said so for 1 min.", "store index", 4_100),
                fact("It writes at `index`: `film-42` (put), `film-7` (delete).", "memory", 0),
            ],
            ahead: vec![fact(
                "`index`: tries again by itself; the daemon sends it again within 4 s, for as long as it takes.",
                "memory",
                0,
            )],
            choices: vec![
                v1::Choice {
                    command: "lockstep doctor".into(),
                    effect: "Mend what `index` complains of. It is tried again by itself.".into(),
                    ..v1::Choice::default()
                },
                skipping(),
            ],
            attention: true,
        }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::Choice>, Status> {
        let mut plan = match request.into_inner().order {
            Some(Order::Resolve(resolve)) => v1::Choice {
                effect: format!("{} its branch by hand.", if resolve.commit { "Commits" } else { "Rolls back" }),
                harms: vec![v1::Harm {
                    participant: resolve.participant,
                    sentence: "If it is or will be committed, these rows are missing for ever.".into(),
                    keys: vec!["UPDATE item SET n = n + 1 WHERE name = ?1 (1 row)".into()],
                }],
                ..v1::Choice::default()
            },
            Some(Order::Skip(_)) => skipping(),
            Some(Order::RemoveParticipant(remove)) => v1::Choice {
                effect: format!("Does without `{}`, for ever.", remove.participant),
                harms: vec![v1::Harm {
                    participant: remove.participant,
                    sentence: "`index` never gets these 1 transactions, which the other stores have.".into(),
                    keys: vec!["3-1251: film-42, film-7".into()],
                }],
                ..v1::Choice::default()
            },
            Some(Order::Waive(waive)) if waive.participant == "moving" => {
                static LOOKS: AtomicU64 = AtomicU64::new(1);
                let effect = format!("Goes on without what it may have decided: {} transactions.", LOOKS.fetch_add(1, Relaxed));
                v1::Choice { effect, ..v1::Choice::default() }
            }
            Some(Order::ForgetDamage(_) | Order::Waive(_) | Order::LeaveSafeMode(_)) => {
                v1::Choice { effect: "Goes on without it.".into(), ..v1::Choice::default() }
            }
            None => return Err(Status::invalid_argument("order is missing: name one")),
        };
        if self.0 == Health::Well {
            (plan.refused, plan.harms) = ("nothing is stuck there".into(), Vec::new());
        }
        Ok(Response::new(plan))
    }

    async fn verify_log(&self, _: Request<v1::VerifyLogRequest>) -> Result<Response<v1::LogReport>, Status> {
        if self.ill() {
            let problem = "the decision log in /var/lib/lockstep/log is damaged: record 4012 is missing";
            return Ok(Response::new(v1::LogReport { problems: vec![problem.into()], ..v1::LogReport::default() }));
        }
        Ok(Response::new(v1::LogReport {
            first_lsn: 1,
            last_lsn: 4021,
            records: 4021,
            coord_id: "0000000000000000000000000000000a".into(),
            log_id: "0000000000000000000000000000000b".into(),
            epoch: 3,
            last_csn: csn(1204),
            floor: Some(v1::Position { epoch: 1, n: 5 }),
            commits: 3010,
            transactions: 120_400,
            owed: 1,
            torn_lsn: 0,
            problems: vec![],
            damage: 0,
            owed_transactions: vec![v1::OwedTransaction {
                txid: "3-1251".into(),
                csn: csn(1199),
                participants: vec!["index".into()],
                at_ms: 1_795_402_665_009,
                lsn: 4013,
            }],
        }))
    }

    async fn list_participants(&self, _: Request<v1::ListParticipantsRequest>) -> Result<Response<v1::ListParticipantsReply>, Status> {
        Ok(Response::new(v1::ListParticipantsReply { participants: self.participants() }))
    }

    async fn dump_log(&self, request: Request<v1::DumpLogRequest>) -> Result<Response<Self::DumpLogStream>, Status> {
        let record = |lsn, kind: &str, json: &str| v1::LogRecord { lsn, kind: kind.into(), json: json.into() };
        let records = [
            record(1, "header", r#"{"coord_id":"0a","log_id":"0b"}"#),
            record(2, "participant", r#"{"id":0,"name":"db","kind":"serial"}"#),
            record(3, "epoch", r#"{"epoch":3}"#),
            record(4, "commit", r#"{"entries":[{"txid":"3-1251","csn":"3.1199"}]}"#),
        ];
        let request = request.into_inner();
        let wanted = records.into_iter().filter(|record| record.lsn >= request.from_lsn).take(request.limit as usize).map(Ok);
        Ok(Response::new(tokio_stream::iter(wanted.collect::<Vec<_>>())))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorReply>, Status> {
        let finding = |level: &str, subject: &str, sentence: &str, remedy: &str| v1::Finding {
            level: level.into(),
            subject: subject.into(),
            sentence: sentence.into(),
            remedy: remedy.into(),
        };
        let mut findings = vec![finding("ok", "log", "20.0 GiB are free", "")];
        if self.ill() {
            findings.push(finding("warning", "index", "it lags 96 s behind", "look at the load of its disk"));
            findings.push(finding(
                "problem",
                "index",
                "its folder cannot be opened: no space left on device",
                "make room; it comes back by itself",
            ));
        }
        Ok(Response::new(v1::DoctorReply { findings }))
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let v1::ResolveRequest { txid, participant, commit, operator, reason } = request.into_inner();
        let verb = if commit { "committed" } else { "rolled back" };
        self.order(&operator, &reason, &format!("the branch of {txid} at `{participant}` is {verb} by hand"))
    }

    async fn skip(&self, request: Request<v1::SkipRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let v1::SkipRequest { txid, participant, operator, reason } = request.into_inner();
        self.order(&operator, &reason, &format!("{txid} is given up at `{participant}`"))
    }

    async fn list_damage(&self, _: Request<v1::ListDamageRequest>) -> Result<Response<v1::ListDamageReply>, Status> {
        let entry = v1::DamageEntry {
            txid: "3-900".into(),
            csn: csn(877),
            participant: "index".into(),
            kind: "skipped".into(),
            keys: vec!["film-7".into()],
            operator: "ann".into(),
            reason: "disk lost".into(),
            at_ms: 1_795_402_665_000,
        };
        Ok(Response::new(v1::ListDamageReply { damage: if self.ill() { vec![entry] } else { vec![] } }))
    }

    async fn forget_damage(&self, request: Request<v1::ForgetDamageRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let v1::ForgetDamageRequest { txid, participant, operator, reason } = request.into_inner();
        self.order(&operator, &reason, &format!("the damage of {txid} at `{participant}` is off the record"))
    }

    async fn waive(&self, request: Request<v1::WaiveRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let v1::WaiveRequest { participant, operator, reason } = request.into_inner();
        self.order(&operator, &reason, &format!("the evidence of `{participant}` is not waited for"))
    }

    async fn leave_safe_mode(&self, _: Request<v1::LeaveSafeModeRequest>) -> Result<Response<v1::AdminReply>, Status> {
        Err(Status::failed_precondition("it is not in safe mode"))
    }

    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Result<Response<v1::ListAuditReply>, Status> {
        let entry = |lsn, who: &str, what: &str, refused: &str| v1::AuditEntry {
            lsn,
            at_ms: 1_700_000_000_000 + lsn,
            who: who.into(),
            origin: "10.0.0.7:50000".into(),
            operator: "ada".into(),
            reason: "the index refuses it\nfor ever".into(),
            what: what.into(),
            refused: refused.into(),
        };
        let all = [
            entry(41, "eye", "Skip", "this needs the role operator: principal `eye` has viewer"),
            entry(17, "ops", "skip 3-12 at `index`", ""),
        ];
        let limit = request.get_ref().limit as usize;
        Ok(Response::new(v1::ListAuditReply { truncated: all.len() > limit, entries: all.into_iter().take(limit).collect() }))
    }

    async fn remove_participant(&self, request: Request<v1::RemoveParticipantRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let v1::RemoveParticipantRequest { participant, operator, reason } = request.into_inner();
        self.order(&operator, &reason, &format!("`{participant}` is removed, and 1 transactions that it was owed are recorded as damage"))
    }

    type BackupStream = ReceiverStream<Result<v1::BackupReply, Status>>;

    async fn backup(&self, request: Request<Streaming<v1::BackupRequest>>) -> Result<Response<Self::BackupStream>, Status> {
        use v1::backup_reply::Reply;
        let mut told = request.into_inner();
        let Some(v1::backup_request::Request::Folder(folder)) = told.message().await?.and_then(|request| request.request) else {
            return Err(Status::invalid_argument("folder is missing"));
        };
        if folder.ends_with("occupied") {
            return Err(Status::failed_precondition(format!("folder: {folder} is not empty: it holds `log`")));
        }
        let server = |name: &str, r#type: &str, leads| v1::BackupServer { name: name.into(), r#type: r#type.into(), leads };
        let mut servers = vec![server("pg", "postgres", false)];
        if folder.ends_with("led") {
            servers.push(server("shop", "postgres", true));
        }
        let servers = v1::BackupServers { servers, paused: true };
        let summary = v1::BackupSummary {
            folder,
            coord_id: "0000000000000000000000000000000a".into(),
            log_id: "0000000000000000000000000000000b".into(),
            epoch: 3,
            since_csn: csn(1200),
            last_csn: csn(1204),
            last_lsn: 4021,
            stores: vec!["index".into(), "db".into()],
            servers: if self.ill() { vec!["pg".into()] } else { vec![] },
            files: 17,
            bytes: 3 << 20,
            elapsed_ms: 1_300,
        };
        let (sender, replies) = tokio::sync::mpsc::channel(4);
        let ill = self.ill();
        tokio::spawn(async move {
            let say = async |reply| drop(sender.send(Ok(v1::BackupReply { reply: Some(reply) })).await);
            say(Reply::Progress("store `index` is copied".into())).await;
            if ill {
                say(Reply::Servers(servers)).await;
                let Ok(Some(_)) = told.message().await else { return };
            }
            say(Reply::Summary(summary)).await;
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    type VerifyStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::VerifyReply, Status>>>;

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        if request.get_ref().names.iter().any(|name| name != "films") {
            return Err(Status::not_found("there is no mapping `people`; there are films"));
        }
        Ok(Response::new(tokio_stream::iter(self.verified(request.get_ref().limit as usize))))
    }

    type RepairStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::RepairReply, Status>>>;

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        let reply = |key: String| {
            let (outcome, csn, why) = match key.as_str() {
                "film-7" => ("put", csn(1210), ""),
                "film-8" => ("agrees", 0, ""),
                "film-9" => ("deleted", csn(1211), ""),
                _ => ("left", 0, "store `index` is down"),
            };
            Ok(v1::RepairReply { key, outcome: outcome.into(), csn, why: why.into() })
        };
        let replies: Vec<_> = request.into_inner().keys.into_iter().map(reply).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

impl Daemon {
    fn verified(&self, limit: usize) -> Vec<Result<v1::VerifyReply, Status>> {
        use v1::verify_reply::Reply;
        let finding = |key: &str, what: &str, csn, differences: &[(&str, Option<&str>, Option<&str>)], note: &str| v1::VerifyFinding {
            name: "films".into(),
            key: key.into(),
            what: what.into(),
            csn,
            differences: differences
                .iter()
                .map(|(path, row, document)| v1::FieldDifference {
                    path: path.to_string(),
                    row: row.map(str::to_owned),
                    document: document.map(str::to_owned),
                })
                .collect(),
            note: note.into(),
        };
        let ill = [
            finding("film-7", "missing", 0, &[], ""),
            finding(
                "film-8",
                "different",
                csn(900),
                &[("title", Some("\"Solaris\""), Some("\"Stalker\"")), ("cast.2", None, Some("\"\""))],
                "",
            ),
            finding("film-42", "stale", csn(877), &[("year", Some("1972"), Some("1971"))], "the write of 3-900 (CSN 3.880) was given up"),
            finding("film-9", "extra", csn(12), &[], ""),
            finding("film-10", "moving", 0, &[], "it was written again and again"),
        ];
        let findings = if self.ill() { ill.into() } else { Vec::new() };
        let bad = u64::from(self.ill());
        let counts = v1::VerifyCounts {
            name: "films".into(),
            rows: 36_273,
            documents: 36_273,
            uncovered: 2 * bad,
            pending: 0,
            missing: bad,
            extra: bad,
            stale: bad,
            different: bad,
            moving: bad,
        };
        let progress = v1::VerifyCounts { rows: 500, documents: 0, pending: 3, ..counts.clone() };
        let summary = v1::VerifySummary { counts: Some(counts), database: "db".into(), index: "index".into(), elapsed_ms: 4_200 };
        let said = std::iter::once(Reply::Progress(progress))
            .chain(findings.into_iter().take(limit).map(Reply::Finding))
            .chain([Reply::Summary(summary)]);
        said.map(|reply| Ok(v1::VerifyReply { reply: Some(reply) })).collect()
    }
}
