//! A little of each kind of torture that takes servers; more of it: `torture --servers`.

use anyhow::ensure;
use lockstep_servers::opensearch;
use lockstep_tests::disk_faults::{self, Ailment, Call};
use lockstep_tests::proxy::Fault;
use lockstep_tests::torture::disks::{self, When};
use lockstep_tests::torture::lab::Lab;
use lockstep_tests::torture::schedule::{Link, Mix, Schedule, Setting, Step, Who};
use lockstep_tests::torture::steps;
use std::path::PathBuf;

/// Links that fail, servers that stand still; then the daemon is killed before messages to each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_stand_still_and_messages_that_are_not_sent() -> anyhow::Result<()> {
    if let Err(why) = opensearch::programs() {
        eprintln!("SKIPPED: {why}; tests/run installs them");
        return Ok(());
    }
    let mut lab = Lab::new(PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints")));
    lab.start_servers()?;
    for setting in [Setting::ServersTwoPhase, Setting::ServersLed] {
        play(&mut lab, setting, true, links()).await?;
        let reached = play(&mut lab, setting, false, deaths()).await?;
        ensure!(reached >= 3, "{setting:?}: it died before {reached} kinds of messages only");
    }
    Ok(())
}

fn links() -> Vec<Step> {
    let link = |link, fault, ms| [Step::Link { link, fault, ms }, Step::Run { ms: 100 }];
    let mut steps = Vec::new();
    for fault in [Fault::Mute, Fault::HalfOpen, Fault::PartitionBack, Fault::Partition] {
        // Who takes new connections and does not answer is only seen by who makes one.
        steps.extend([Link::Database, Link::Index].into_iter().flat_map(|which| [link(which, Fault::Cut, 20), link(which, fault, 300)]));
    }
    let stand = |who| [Step::Stand { who, ms: 2_500 }, Step::Run { ms: 200 }];
    let stood = [Who::Database, Who::Index, Who::Daemon].map(stand);
    steps.into_iter().chain(stood).flatten().collect()
}

fn deaths() -> Vec<Step> {
    let mut steps = vec![Step::Run { ms: 200 }];
    for (when, peer, first) in [
        (When::Load, "database", 3),
        (When::Load, "search", 2),
        (When::Start, "database", 4),
        (When::Start, "search", 3),
        (When::Load, "database", 20),
        (When::Load, "clients", 9),
    ] {
        let fault = disk_faults::Fault { files: vec![peer.into()], calls: vec![Call::Send], ailment: Ailment::Kill, first, count: None };
        steps.extend([steps::death(when, fault), Step::Run { ms: 200 }]);
    }
    steps
}

/// How many kinds of messages it died before.
async fn play(lab: &mut Lab, setting: Setting, proxied: bool, steps: Vec<Step>) -> anyhow::Result<usize> {
    let mix = Mix { impatient: 20, ..disks::counting(1, setting).mix };
    let schedule = Schedule { seed: 1, setting, clients: 5, mix, in_memory: true, proxied, steps };
    let played = lab.play(&schedule).await?;
    ensure!(played.findings.is_empty(), "{schedule:?}: {:#?}\n{:#?}", played.findings, played.transcript);
    ensure!(played.transactions > 0, "{setting:?}: nothing was committed");
    Ok(played.observed.failed.len())
}
