//! An `AdminService` with fixed answers, in a thread of its own.

use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use std::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// How the daemon does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Well,
    /// A store is down, a transaction is stuck, there is damage.
    Ill,
    /// It is starting: every question is answered "unavailable".
    Starting,
}

/// Starts it on a free port of the loopback interface; it ends with the test's process.
pub fn start(health: Health) -> String {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(format!("http://{}", listener.local_addr().unwrap())).unwrap();
            let server = tonic::transport::Server::builder().add_service(AdminServiceServer::new(Daemon(health)));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

struct Daemon(Health);

fn csn(n: u64) -> u64 {
    3 << 39 | n
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
            r#type: "sqlite".into(),
            kind: "serial".into(),
            session: "up".into(),
            why: String::new(),
            applied_csn: csn(1204),
            durable_csn: csn(1190),
            lag: 0,
            lag_ms: 0,
            stuck: 0,
            prepared: 0,
            forces: 0,
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
            ..database.clone()
        };
        if self.ill() {
            (index.session, index.why) = ("down".into(), "its folder cannot be opened:\nno space left on device".into());
            (index.stuck, index.lag_ms) = (1, 96_000);
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
        let all = [self.summary(), aborted];
        let old = |summary: &v1::TransactionSummary| summary.age_ms >= request.older_than_ms;
        let mut transactions: Vec<_> = all.into_iter().filter(wanted).filter(old).collect();
        let truncated = transactions.len() > request.limit as usize;
        transactions.truncate(request.limit as usize);
        Ok(Response::new(v1::ListTransactionsReply { transactions, truncated }))
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
}
