//! A transaction on an application's own connection, enlisted: both modes, both drivers, and its end at every step.

use crate::lab::{INDEX, MEND, all_up, database, go_on, launch, mended, wait_until_paused};
use anyhow::{Context, bail, ensure};
use lockstep_client::{Client, CommitError, EnlistError, Enlisted, Receipt, Wait};
use lockstep_servers::postgres::{psql, shared};
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;
use serde_json::json;
use std::path::Path;
use tokio::process::Command;

#[allow(dead_code)] // its main
#[path = "../../../client/examples/enlist.rs"]
mod example;

const MODES: [&str; 2] = ["two-phase", "database-led"];

/// A daemon with a stock of ten.
struct Shop {
    folder: tempfile::TempDir,
    configuration: String,
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
        Ok(Shop { folder, configuration, url, daemon, client })
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

/// Between the decision to commit and the commit, which is the application's to make.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_is_gone_when_it_is_to_decide_has_decided_against_it() -> anyhow::Result<()> {
    let mut shop = Shop::open("database-led", Some("store.db.before_lead:1:pause")).await?;
    let mut own = shop.connect().await?;
    let enlisted = enlist(&shop, &mut own).await?;
    let (told, struck) = tokio::join!(enlisted.commit(), async {
        wait_until_paused(&shop.daemon).await?;
        shop.end_application();
        go_on(&shop.daemon)
    });
    struck?;
    aborted(told)?;
    shop.holds(10, None).await?;
    ensure!(psql(&shop.url, "SELECT count(*) FROM lockstep.marker WHERE csn IS NULL") == "1", "an 'A' stands in its place");
    shop.daemon.kill();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dies_while_an_application_decides() -> anyhow::Result<()> {
    for (mode, place, committed) in [
        ("two-phase", "store.db.before_prepare:1:kill", false),
        ("two-phase", "store.db.before_late_vote:1:kill", false),
        ("two-phase", "store.db.before_commit:1:kill", true),
        ("database-led", "store.db.before_prepare:1:kill", false),
        ("database-led", "store.db.before_late_vote:1:kill", false),
        ("database-led", "store.db.before_lead:1:kill", false),
        ("database-led", "store.db.after_lead:1:kill", true),
        ("database-led", "engine.before_send_commit:1:kill", true),
    ] {
        let lived = async {
            let mut shop = Shop::open(mode, Some(place)).await?;
            let again = launch(shop.folder.path(), None, &shop.configuration)?;
            let mut own = shop.connect().await?;
            let enlisted = enlist(&shop, &mut own).await?;
            let daemon = &mut shop.daemon;
            let (told, started) = tokio::join!(enlisted.commit(), async {
                ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached");
                daemon.relaunch(again).await
            });
            started?;
            match committed {
                true => drop(told?),
                false => drop(aborted(told)?),
            }
            let (n, document) = if committed { (9, Some(9)) } else { (10, None) };
            shop.holds(n, document).await?;
            shop.daemon.kill();
            anyhow::Ok(())
        };
        lived.await.map_err(|error| error.context(format!("{mode}, {place}")))?;
    }
    Ok(())
}

/// Mistakes in the application's own transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_failed_or_ended_is_not_committed() -> anyhow::Result<()> {
    for mode in MODES {
        let mut shop = Shop::open(mode, None).await?;
        let mut own = shop.connect().await?;
        // A statement of it has failed.
        let begun = shop.client.begin().enlisting("db").await?;
        let mine = own.transaction().await?;
        mine.execute("UPDATE stock SET n = n - 1 WHERE id = 1", &[]).await?;
        ensure!(mine.batch_execute("SELECT 1/0").await.is_err());
        ensure!(matches!(begun.enlist("db", mine).await, Err(EnlistError::Own(_))));
        shop.holds(10, None).await?;
        // It was ended behind the driver's back: what it did is its own, and the rest does not follow.
        let begun = shop.client.begin().enlisting("db").await?;
        let mine = own.transaction().await?;
        mine.batch_execute("UPDATE stock SET n = n - 1 WHERE id = 1; ROLLBACK").await?;
        match begun.enlist("db", mine).await {
            Ok(enlisted) => drop(aborted(enlisted.put("index", "1", &json!({ "left": 9 })).commit().await)?),
            Err(EnlistError::Own(_)) => {}
            Err(other) => bail!("{other}"),
        }
        shop.holds(10, None).await?;
        // A constraint that waits for the end.
        psql(&shop.url, "CREATE TABLE child(stock integer REFERENCES stock(id) DEFERRABLE INITIALLY DEFERRED)");
        let begun = shop.client.begin().enlisting("db").await?;
        let mine = own.transaction().await?;
        mine.batch_execute("INSERT INTO child VALUES (77)").await?;
        ensure!(matches!(begun.enlist("db", mine).await, Err(EnlistError::Own(_))));
        // Begun without a word of whose commit decides.
        if mode == "database-led" {
            let begun = shop.client.begin().await?;
            let refused = begun.enlist("db", own.transaction().await?).await;
            ensure!(matches!(refused, Err(EnlistError::Invalid(why)) if why.contains("Begin::enlisting")));
        }
        shop.holds(10, None).await?;
        shop.daemon.kill();
    }
    Ok(())
}

/// With the example as it was built last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "sqlx takes minutes to compile: cargo build -p lockstep-client --example enlist_sqlx --features sqlx, then run this with --ignored"]
async fn the_example_sells_on_a_connection_of_sqlx() -> anyhow::Result<()> {
    let test = std::env::current_exe()?;
    let built = test.parent().and_then(Path::parent).context("target/debug/deps/…")?.join("examples/enlist_sqlx");
    for mode in MODES {
        let mut shop = Shop::open(mode, None).await?;
        let (port, database) = (shared().port(), psql(&shop.url, "SELECT current_database()"));
        let own = format!("postgresql://postgres@127.0.0.1:{port}/{database}?sslmode=disable");
        for left in [9, 8] {
            let sold = Command::new(&built).args([&shop.daemon.url(), &own, "db", "index"]).output().await?;
            ensure!(sold.status.success(), "{}", String::from_utf8_lossy(&sold.stderr));
            ensure!(sold.stdout == format!("{left} left\n").as_bytes());
            shop.holds(left, Some(left)).await?;
        }
        psql(&shop.url, "UPDATE stock SET n = 0");
        let sold_out = Command::new(&built).args([&shop.daemon.url(), &own, "db", "index"]).output().await?;
        ensure!(String::from_utf8_lossy(&sold_out.stderr).contains("sold out"));
        // A constraint that is looked at in the end refuses it.
        psql(
            &shop.url,
            "UPDATE stock SET n = 8; CREATE TABLE never(stock integer REFERENCES stock(id) DEFERRABLE INITIALLY DEFERRED);
            CREATE RULE sold AS ON UPDATE TO stock DO ALSO INSERT INTO never VALUES (77)",
        );
        let refused = Command::new(&built).args([&shop.daemon.url(), &own, "db", "index"]).output().await?;
        ensure!(String::from_utf8_lossy(&refused.stderr).contains("the branch was not enlisted"), "{refused:?}");
        shop.holds(8, Some(8)).await?;
        shop.daemon.kill();
    }
    Ok(())
}
