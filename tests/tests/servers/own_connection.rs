//! A transaction on an application's own connection, enlisted: both modes, both drivers, and its end at every step.

use crate::lab::{INDEX, MEND, all_up, database, launch, mended};
use anyhow::{bail, ensure};
use lockstep_client::{Client, CommitError, EnlistError, Enlisted, Receipt, Wait};
use lockstep_servers::postgres::{psql, shared};
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;
use serde_json::json;

#[allow(dead_code)] // its main
#[path = "../../../client/examples/enlist.rs"]
mod example;

const MODES: [&str; 2] = ["two-phase", "database-led"];

/// A daemon with a stock of ten.
struct Shop {
    _folder: tempfile::TempDir,
    url: String,
    daemon: Daemon,
    client: Client,
}

impl Shop {
    async fn open(mode: &str, failpoint: Option<&str>) -> anyhow::Result<Shop> {
        let url = shared().database();
        psql(&url, "CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL); INSERT INTO stock VALUES (1, 10)");
        let folder = tempfile::tempdir()?;
        let configuration = database(&url, mode) + INDEX;
        let daemon = Daemon::start(launch(folder.path(), failpoint, &configuration)?).await?;
        let client = workload::connect(&daemon.url()).await?;
        daemon.wait_for(MEND, all_up).await?;
        Ok(Shop { _folder: folder, url, daemon, client })
    }

    async fn connect(&self) -> anyhow::Result<tokio_postgres::Client> {
        let (own, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        own.batch_execute("SET application_name = 'the application'").await?;
        Ok(own)
    }

    /// Ends the application's backend, as a lost connection does.
    fn end_application(&self) {
        let its = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'the application'";
        psql(&self.url, &format!("SELECT pg_terminate_backend(pid) {its}"));
        while psql(&self.url, &format!("SELECT count(*) {its}")) != "0" {}
    }

    /// What the stores hold: the stock, and the document's idea of it. Nothing is left locked or prepared, and nobody was told of damage.
    async fn holds(&self, n: i64, document: Option<i64>) -> anyhow::Result<()> {
        let status = self.daemon.wait_for(MEND, mended).await?;
        ensure!(status.damage == 0, "I12: {} damages", status.damage);
        // Its lock is free too, or this would end by its time-out.
        let left = psql(&self.url, "SET lock_timeout = '20s'; SELECT n FROM stock WHERE id = 1 FOR UPDATE");
        ensure!(left == n.to_string(), "{left} are in stock, not {n}");
        let found = self.client.get("index", "1").await?.map(|found| found.json::<serde_json::Value>()).transpose()?;
        ensure!(found.as_ref().and_then(|found| found["left"].as_i64()) == document, "{found:?} is the document, not {document:?}");
        let prepared = psql(&self.url, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()");
        ensure!(prepared == "0", "{prepared} branches are left prepared");
        Ok(())
    }
}

/// Takes one from the stock on its own connection, and enlists.
async fn enlist<'a>(shop: &Shop, own: &'a mut tokio_postgres::Client) -> anyhow::Result<Enlisted<tokio_postgres::Transaction<'a>>> {
    let begun = shop.client.begin().enlisting("db").await?;
    let mine = own.transaction().await?;
    mine.execute("UPDATE stock SET n = n - 1 WHERE id = 1", &[]).await?;
    Ok(begun.enlist("db", mine).await?.put("index", "1", &json!({ "left": 9 })).wait(Wait::Visible))
}

fn aborted(told: Result<Receipt, CommitError>) -> anyhow::Result<String> {
    match told {
        Err(CommitError::Aborted(aborted)) => Ok(aborted.message),
        other => bail!("it is told as {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_sells_in_both_modes() -> anyhow::Result<()> {
    for mode in MODES {
        let mut shop = Shop::open(mode, None).await?;
        for left in [9, 8] {
            ensure!(example::sell(&shop.daemon.url(), &shop.url, "db", "index").await? == left);
            shop.holds(left.into(), Some(left.into())).await?;
        }
        psql(&shop.url, "UPDATE stock SET n = 0");
        let sold_out = example::sell(&shop.daemon.url(), &shop.url, "db", "index").await;
        ensure!(sold_out.is_err_and(|error| error.to_string().contains("sold out")));
        shop.holds(0, Some(8)).await?;
        shop.daemon.kill();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_at_any_step_leaves_nothing() -> anyhow::Result<()> {
    for mode in MODES {
        let mut shop = Shop::open(mode, None).await?;
        // Begun, and its statements have run.
        let mut own = shop.connect().await?;
        let begun = shop.client.begin().enlisting("db").await?;
        let mine = own.transaction().await?;
        mine.execute("UPDATE stock SET n = n - 1 WHERE id = 1", &[]).await?;
        shop.end_application();
        ensure!(matches!(begun.enlist("db", mine).await, Err(EnlistError::Own(_))));
        shop.holds(10, None).await?;

        // Enlisted, and given up.
        let mut own = shop.connect().await?;
        drop(enlist(&shop, &mut own).await?);
        shop.holds(10, None).await?;

        // Enlisted, and its connection is lost before the commit: what is prepared is the coordinator's, what is open is gone.
        let mut own = shop.connect().await?;
        let enlisted = enlist(&shop, &mut own).await?;
        shop.end_application();
        let told = enlisted.commit().await;
        match mode {
            "two-phase" => {
                told?;
                shop.holds(9, Some(9)).await?;
            }
            _ => {
                ensure!(aborted(told)?.contains("not open in this database"));
                shop.holds(10, None).await?;
            }
        }
        shop.daemon.kill();
    }
    Ok(())
}
