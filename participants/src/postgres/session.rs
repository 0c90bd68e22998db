//! A session: who leads, and the connections that belong to it.

use super::branch::Naming;
use super::connection::{Connector, Lent, Pool, Purpose, Started, lend, lend_at_once};
use super::failure::Failure;
use super::turns::Turns;
use super::work::UnderWay;
use super::{PostgresOptions, branch};
use lockstep_core::gid::Gid;
use lockstep_core::{CoordId, Owner, ParticipantId, Txid};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// How long a backend that was told to end may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether it is gone.
const LOOK: Duration = Duration::from_millis(10);
/// How long one connection that is opened ahead may take: others are held back meanwhile.
const AHEAD: Duration = Duration::from_secs(1);

/// One session's connections. They carry its tag, so that the next session finds and ends their backends.
pub struct Session {
    /// Whom it serves.
    pub owner: Owner,
    /// The number that the owner knows this database by.
    pub me: ParticipantId,
    /// What their `application_name` says.
    pub tag: String,
    /// For branches: each is one's own until its vote, or until the end of what it leads.
    pub branches: Pool,
    /// For phase two and questions: branches never wait for these, nor these for branches.
    pub finishers: Pool,
    /// At which server it has begun.
    pub started: Arc<Started>,
    connector: Connector,
    under_way: Mutex<UnderWay>,
    turns: Mutex<Turns>,
    /// Branches' own tasks, and what goes before them; `None`: the session has ended.
    tasks: Mutex<Option<JoinSet<()>>>,
    runtime: Handle,
}

impl Session {
    /// No connection is open yet. Within the runtime that its tasks are to run on.
    pub fn new(connector: &Connector, options: &PostgresOptions, owner: Owner, me: ParticipantId) -> Session {
        // Drawn afresh: two sessions of one owner are told apart too.
        let nonce = std::hash::RandomState::new().hash_one(Instant::now()) as u32;
        let tag = format!("{}{nonce:08x}", tag_prefix(owner.coord_id, me));
        let started = Arc::<Started>::default();
        let connector = connector.of_session(&tag, &started);
        Session {
            owner,
            me,
            tag,
            branches: connector.meant_for(Purpose::Branches).pool(options.pool_size),
            finishers: connector.meant_for(Purpose::PhaseTwo).pool(options.finishers),
            started,
            connector,
            under_way: Mutex::default(),
            turns: Mutex::new(Turns::new(options.pool_size)),
            tasks: Mutex::new(Some(JoinSet::new())),
            runtime: Handle::current(),
        }
    }

    /// What is under way in it. Never held across an await.
    pub fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().expect("no holder panics")
    }

    /// Who runs next, where it decides. Never held across an await.
    pub fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().expect("no holder panics")
    }

    /// Begins a task that ends with the session.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *self.tasks.lock().expect("no holder panics") {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, &self.runtime);
        }
    }

    /// Ends its tasks, and begins no more.
    pub fn end(&self) {
        let tasks = self.tasks.lock().expect("no holder panics").take();
        drop(tasks);
    }

    /// The name of a branch here.
    pub fn gid(&self, txid: Txid) -> Gid {
        Gid { coord_id: self.owner.coord_id, participant: self.me, txid }
    }

    /// How those are prepared that are one branch: under the name of the first.
    pub fn naming<'a>(&self, txids: &'a [Txid]) -> Naming<'a> {
        Naming { owner: self.owner, gid: self.gid(txids[0]), txids }
    }

    /// Opens connections for branches before they are needed, one after another, until all are open or a branch comes: it would wait for
    /// those that are held here. What goes wrong is told to branches.
    pub async fn open_ahead(&self) {
        let mut held = Vec::new();
        while nobody_else(&self.branches, held.len()) {
            let opened = async {
                let mut connection = lend_at_once(&self.branches).await?;
                branch::compile_ahead(&mut connection).await.ok()?;
                Some(connection)
            };
            match tokio::time::timeout(AHEAD, opened).await {
                Ok(Some(connection)) => held.push(connection),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// A connection for phase two.
    pub async fn finisher(&self) -> Result<Lent, Failure> {
        lend(&self.finishers).await
    }

    /// Ends this session's own backend, and waits until it is gone: nothing that was sent on it can happen any more. On a connection of its
    /// own: those that are there may be as dead as the one that this is about, and what is asked next is not asked on them either.
    pub async fn end_backend(&self, pid: i32) -> Result<(), Failure> {
        self.finishers.retain(|_, _| false);
        let connection = self.connector.connect().await.map_err(Failure::Lost)?;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND application_name = $2";
        connection.client.query(sql, &[&pid, &self.tag]).await?;
        wait_until_gone(&connection, &[pid]).await
    }
}

/// Whether there is room in the pool, and nobody but who holds these makes use of it.
fn nobody_else(pool: &Pool, held: usize) -> bool {
    let status = pool.status();
    held < status.max_size && status.size == held && status.waiting == 0
}

/// What the tags of all sessions of this coordinator at this participant begin with. With a nonce it is shorter than the server's 63 bytes.
pub fn tag_prefix(coord_id: CoordId, me: ParticipantId) -> String {
    format!("lockstep:{coord_id}:{}:", me.0)
}

/// Waits until none of these backends is there any more.
pub async fn wait_until_gone(connection: &super::connection::Connection, pids: &[i32]) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
        let left: i64 = connection.client.query_one(sql, &[&pids]).await?.get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Failure::Lost(format!("{left} backends of an older session did not end within {PATIENCE:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
