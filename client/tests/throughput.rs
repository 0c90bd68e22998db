//! How fast the library is when the coordinator costs next to nothing.

mod fake;

use fake::Fake;
use lockstep_client::{Client, params};
use std::time::Instant;

const CALLERS: usize = 128;
const COMMITS: usize = 400;

#[ignore = "measures: cargo test -p lockstep-client --test throughput -- --ignored --nocapture"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_a_second() {
    let fake = Fake::start().await;
    let client = Client::connect(fake.endpoint()).await.unwrap();
    let begin = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            for n in 0..COMMITS {
                let key = format!("film-{caller}-{n}");
                let write = client.transaction().sql("db", "UPDATE stock SET n = n - 1 WHERE id = ?1", params![n as i64]);
                write.put_raw("index", key, r#"{"title":"Solaris","year":1972}"#).commit().await.unwrap();
            }
        });
    }
    callers.join_all().await;
    let (commits, frames) = (CALLERS * COMMITS, fake.state().frames.len());
    println!("{:.0} commits/s, {:.1} a frame", commits as f64 / begin.elapsed().as_secs_f64(), commits as f64 / frames as f64);
}
