//! The console in a real browser: what it shows of a real daemon, what it takes, and what nobody gets it to do.
//!
//! `LOCKSTEP_SCREENSHOTS=FOLDER` keeps pictures of what was seen.

mod browser;
mod lab;

use anyhow::{Context, ensure};
use browser::{Browser, ENTER, ESCAPE, TAB};
use lab::{LIMIT, Lab};
use lockstep_client::Wait;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Does something if it is ever taken for more than text.
const EVIL: &str = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_on_call_uses_the_console() -> anyhow::Result<()> {
    let Some(browser) = Browser::start()? else { return Ok(()) };
    let mut lab = Lab::start().await?;
    for n in 0..20 {
        lab.transaction("UPDATE account SET n = n + 1", &format!("film-{n}")).wait(Wait::Visible).commit().await?;
    }

    it_shows_the_past_and_what_comes(&lab, &browser).await?;
    let stuck = what_users_wrote_is_text(&lab, &browser).await?;
    every_page_is_fit_to_be_used(&lab, &browser, &stuck)?;
    an_order_needs_the_id(&lab, &browser, &stuck).await?;
    a_branch_is_resolved_by_keyboard_alone(&lab, &browser).await?;
    ensure!(browser.run("return window.pwned ?? null")? == Value::Null);
    nothing_was_complained_of(&lab, &browser)?;
    what_is_old_is_called_so(&mut lab, &browser).await
}

async fn it_shows_the_past_and_what_comes(lab: &Lab, browser: &Browser) -> anyhow::Result<()> {
    browser.open(&format!("{}/", lab.console))?;
    browser.until("location.pathname === '/console/' && document.getElementById('phase').textContent === 'serving'")?;
    browser.until_shown("Nothing needs a person")?;
    let before = lab.daemon.status().await?.committed;
    browser.until_shown(&format!("{before} since the start"))?;
    lab.transaction("UPDATE account SET n = n + 1", "film-1").commit().await?;
    browser.until_shown(&format!("{} since the start", before + 1))?;
    browser.until("document.querySelectorAll('#throughput path.line').length === 4")?;
    browser.until("/committed: .* between .* and /.test(document.querySelector('#throughput svg').getAttribute('aria-label'))")?;
    browser.click("#latency summary")?;
    browser.until("document.querySelectorAll('#latency tbody tr').length > 0")?;
    browser.click("#latency summary")?;
    // Opened anew, it shows what was before it.
    browser.open(&format!("{}/console/", lab.console))?;
    browser.until("/p50: .* between/.test(document.querySelector('#latency svg')?.getAttribute('aria-label'))")
}

/// A transaction whose every text is hostile, stuck at the index; its id.
async fn what_users_wrote_is_text(lab: &Lab, browser: &Browser) -> anyhow::Result<String> {
    lab.index.applies.store(false, Ordering::SeqCst);
    let transaction = lab.transaction(&format!("UPDATE film SET title = '{EVIL}'"), EVIL).idempotency_key(&EVIL[..42]);
    let txid = transaction.commit().await?.txid.to_string();
    lab.daemon.wait_for(LIMIT, |status| status.participants.iter().any(|store| store.stuck == 1)).await?;
    browser.open(&format!("{}/console/transactions/{txid}", lab.console))?;
    browser.until_shown(lab::WHY)?;
    for words in [
        &format!("{txid} is committed, at CSN 1.22, and that does not change. It is not finished: `index` has not applied it yet."),
        "It needs a person.",
        "[store index, ",
        "What happens by itself",
        &format!("It writes at `index`: `{EVIL}` (put)."),
        &format!("lockstep skip {txid} --participant index --reason WHY"),
        "`index` never gets these documents",
        "its vote came",
        EVIL,
    ] {
        browser.until_shown(words)?;
    }
    let hostile = "/console/transactions?key=%22%3E%3Cscript%3Ewindow.pwned%3D1%3C/script%3E&state=%3Cb%3E&participant=%3Cb%3E";
    browser.open(&format!("{}{hostile}", lab.console))?;
    browser.until_shown("It could not be asked: states: `<b>` is none of")?;
    // That answer is 400, and the browser says so; nothing else is to be complained of.
    let complaints = browser.complaints()?;
    ensure!(complaints.iter().all(|complaint| complaint.contains("400 (Bad Request)")), "{complaints:?}");
    browser.open(&format!("{}/console/transactions/%3Cscript%3Ewindow.pwned%3D1%3C%2Fscript%3E", lab.console))?;
    browser.until_shown("`<script>window.pwned=1</script>` is no transaction id")?;
    let complaints = browser.complaints()?;
    ensure!(complaints.iter().all(|complaint| complaint.contains("400 (Bad Request)")), "{complaints:?}");
    browser.open(&format!(
        "{}/console/transactions?key={}",
        lab.console, "%3Cimg%20src%3Dx%20onerror%3D%22window.pwned%3D1%22%3E%3Cscript%3Ewindow.pwned%3D1%3C/script%3E"
    ))?;
    browser.until_shown("index")?;
    browser.until(&format!("document.querySelector('tbody th a')?.textContent === '{txid}'"))?;
    ensure!(browser.run("return window.pwned ?? null")? == Value::Null);
    Ok(txid)
}

/// On a desk and on a phone, in light and dark, with whatever reads it.
fn every_page_is_fit_to_be_used(lab: &Lab, browser: &Browser, txid: &str) -> anyhow::Result<()> {
    let axe = axe()?;
    let transaction = format!("/console/transactions/{txid}");
    let pages = [
        ("overview", "/console/", "The past ten minutes"),
        ("transactions", "/console/transactions", txid),
        ("transaction", &transaction, "What you can do"),
        ("participants", "/console/participants", "Has applied"),
        ("damage", "/console/damage", "No damage is recorded."),
    ];
    for (name, path, words) in pages {
        browser.open(&format!("{}{path}", lab.console))?;
        browser.until_shown(words)?;
        browser.until("document.querySelector('.as-of') !== null")?;
        for dark in [false, true] {
            browser.dark(dark)?;
            if let Some(axe) = &axe {
                let run = "const done = arguments[0]; axe.run().then((found) => done(found.violations.map((violation) => \
                           `${violation.id}: ${violation.nodes.map((node) => `${node.html} ${node.failureSummary}`).join('; ')}`)))";
                browser.run(axe)?;
                let violations = browser.run_async(run)?;
                ensure!(violations.as_array().is_some_and(Vec::is_empty), "{path}, dark {dark}: {violations:#}");
            }
        }
        browser.dark(false)?;
        browser.resize(360, 740)?;
        let width = browser.run("return document.documentElement.scrollWidth")?;
        ensure!(width == 360, "{path} is {width} wide on a screen of 360");
        keep(browser, &format!("{name}-phone"))?;
        browser.resize(1280, 1000)?;
        keep(browser, &format!("{name}-light"))?;
        browser.dark(true)?;
        keep(browser, &format!("{name}-dark"))?;
        browser.dark(false)?;
    }
    Ok(())
}

/// The wrong id does nothing; the right one does it, with name and reason; then it is forgotten.
async fn an_order_needs_the_id(lab: &Lab, browser: &Browser, txid: &str) -> anyhow::Result<()> {
    browser.open(&format!("{}/console/transactions/{txid}", lab.console))?;
    browser.until_shown("What you can do")?;
    browser.click("button[data-order*='skip']")?;
    browser.until("document.querySelector('dialog form') !== null")?;
    let dialog = browser.run("return document.querySelector('dialog').innerText")?;
    let dialog = dialog.as_str().unwrap_or_default();
    ensure!(dialog.contains("It damages, or may damage:") && dialog.contains(EVIL) && dialog.contains(txid), "{dialog}");
    keep(browser, "order-light")?;
    browser.fill("dialog [name=operator]", "ann <b>")?;
    browser.fill("dialog [name=reason]", EVIL)?;
    browser.fill("dialog [name=typed]", "1-999")?;
    browser.click("dialog [type=submit]")?;
    browser.until_shown("Not confirmed, nothing was done: something else was typed.")?;
    ensure!(lab.daemon.status().await?.damage == 0, "something was done");
    // Once a proxy answers in the daemon's stead: it may have been done all the same.
    browser.run(
        "const real = window.fetch; window.fetch = (url, how) => how?.method === 'POST' ? \
         ((window.fetch = real), Promise.resolve(new Response('', { status: 502 }))) : real(url, how)",
    )?;
    browser.fill("dialog [name=typed]", txid)?;
    browser.click("dialog [type=submit]")?;
    browser.until_shown("The daemon answered 502. Whether it was done is not known: look before you order it again.")?;
    browser.click("dialog [type=submit]")?;
    browser.until_shown(&format!("Done: given up at `index`, and recorded as damage: {txid}"))?;
    ensure!(lab.daemon.status().await?.damage == 1);
    browser.press(ENTER)?;
    browser.until("document.querySelector('dialog') === null")?;
    browser.until_shown("but damaged at `index`")?;
    browser.until_shown("By ann <b>.")?;

    browser.open(&format!("{}/console/damage/{txid}", lab.console))?;
    browser.until_shown("read the truth in the database, and put or delete each document anew")?;
    browser.until_shown(EVIL)?;
    keep(browser, "damage-entry-light")?;
    browser.click("button[data-order*='forget']")?;
    browser.until("document.querySelector('dialog form') !== null")?;
    ensure!(browser.run("return document.querySelector('dialog [name=operator]').value")? == "ann <b>", "it remembers who it is");
    // Without a reason it is refused, in the daemon's words.
    browser.fill("dialog [name=typed]", txid)?;
    browser.click("dialog [type=submit]")?;
    browser.until_shown("Reason is empty: it is kept with the command.")?;
    browser.fill("dialog [name=reason]", "mended")?;
    browser.click("dialog [type=submit]")?;
    browser.until_shown("is forgotten")?;
    browser.press(ENTER)?;
    browser.until_shown(&format!("No damage of {txid} is recorded"))
}

/// A branch is prepared at the ledger, and the index does not vote: somebody rolls it back, without a mouse.
async fn a_branch_is_resolved_by_keyboard_alone(lab: &Lab, browser: &Browser) -> anyhow::Result<()> {
    lab.index.votes.store(false, Ordering::SeqCst);
    let waiting = tokio::spawn(lab.transaction("UPDATE account SET n = 0", "film-7").commit());
    lab.daemon.wait_for(LIMIT, |status| status.active == 1).await?;
    browser.open(&format!("{}/console/transactions?state=preparing", lab.console))?;
    browser.until("document.querySelector('tbody th a') !== null")?;

    // The first stop is the way past the navigation.
    browser.press(TAB)?;
    ensure!(focused(browser)? == "Skip to content");
    browser.press(ENTER)?;
    ensure!(browser.run("return document.activeElement.id")? == "main");
    walk_to(browser, |at| at.contains('-') && at.chars().all(|c| c.is_ascii_digit() || c == '-'))?;
    browser.press(ENTER)?;
    browser.until_shown("is not decided: it waits for the vote of `index`")?;
    let txid = browser.run("return location.pathname.split('/').at(-1)")?.as_str().context("an id")?.to_owned();
    walk_to(browser, |at| at == "Roll back the branch at ledger by hand…")?;
    browser.press(ENTER)?;
    browser.until("document.querySelector('dialog form') !== null && document.activeElement.closest('dialog') !== null")?;
    browser.press(ESCAPE)?;
    browser.until("document.querySelector('dialog') === null")?;
    ensure!(focused(browser)? == "Roll back the branch at ledger by hand…", "the focus is back where it came from");
    browser.press(ENTER)?;
    browser.until("document.querySelector('dialog form') !== null && document.activeElement.name === 'operator'")?;
    browser.press(&format!("{TAB}the ledger is needed{TAB}{txid}{ENTER}"))?;
    browser.until("document.querySelector('dialog .done') !== null")?;
    browser.press(ENTER)?;
    browser.until_shown("ann <b> had its branch at `ledger` rolled back by hand: the ledger is needed.")?;
    lab.index.votes.store(true, Ordering::SeqCst);
    waiting.abort();
    Ok(())
}

fn nothing_was_complained_of(lab: &Lab, browser: &Browser) -> anyhow::Result<()> {
    let bad = |complaint: &String| !complaint.contains("400 (Bad Request)");
    let complaints: Vec<_> = browser.complaints()?.into_iter().filter(bad).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let requests = browser.requests()?;
    // What the browser shows of its own before our first page is not ours.
    let of_its_own = |url: &str| url.starts_with("chrome:") || url.starts_with("data:");
    let elsewhere: Vec<_> = requests.iter().filter(|url| !url.starts_with(&format!("{}/", lab.console)) && !of_its_own(url)).collect();
    ensure!(requests.len() > 50 && elsewhere.is_empty(), "of {} requests: {elsewhere:?}", requests.len());
    Ok(())
}

async fn what_is_old_is_called_so(lab: &mut Lab, browser: &Browser) -> anyhow::Result<()> {
    browser.open(&format!("{}/console/", lab.console))?;
    browser.until("document.getElementById('phase').textContent === 'serving'")?;
    lab.daemon.kill();
    browser.until_shown("Not live. The daemon has not been heard since")?;
    browser.until_shown("What stands here is old: each part says from when.")?;
    browser.until("document.getElementById('phase').textContent === 'not heard'")?;
    keep(browser, "stale-light")?;
    lab.daemon.start_again().await?;
    browser.until("document.getElementById('stale').innerText === '' && document.getElementById('phase').textContent !== 'not heard'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes 10,000 transactions; run it after changes of lists, samples or plots"]
async fn ten_thousand_in_doubt_are_looked_at() -> anyhow::Result<()> {
    const MANY: usize = 10_000;
    let Some(browser) = Browser::start()? else { return Ok(()) };
    let lab = Lab::start().await?;
    lab.index.applies.store(false, Ordering::SeqCst);
    let lab = std::sync::Arc::new(lab);
    let mut running = tokio::task::JoinSet::new();
    for client in 0..16 {
        let lab = std::sync::Arc::clone(&lab);
        running.spawn(async move {
            for n in (client..MANY).step_by(16) {
                lab.transaction("UPDATE account SET n = n + 1", &format!("film-{n}")).commit().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    ensure!(lab.daemon.status().await?.in_doubt >= MANY as u64);
    for (path, words) in [
        ("/console/", "In doubt, by age"),
        ("/console/transactions", "100, and there are more"),
        ("/console/transactions?older_than_ms=1000&participant=index&state=committing", "100, and there are more"),
        ("/console/transactions?key=film-9999", "1. Those of earlier starts first"),
        ("/console/transactions/1-5000", "has not applied it yet"),
        ("/console/participants", "What waits for it"),
    ] {
        let began = Instant::now();
        browser.open(&format!("{}{path}", lab.console))?;
        browser.until_shown(words)?;
        println!("{path}: shown after {:?}", began.elapsed());
    }
    browser.open(&format!("{}/console/transactions", lab.console))?;
    let mut seen = std::collections::BTreeSet::new();
    loop {
        browser.until("document.querySelector('tbody th a') !== null")?;
        let page = browser.run("return [...document.querySelectorAll('tbody th a')].map((link) => link.textContent)")?;
        let before = seen.len();
        seen.extend(page.as_array().context("ids")?.iter().map(Value::to_string));
        ensure!(seen.len() > before, "a page has nothing new");
        if browser.run("return document.querySelector('a[rel=next]') === null")? == true {
            break;
        }
        browser.click("a[rel=next]")?;
    }
    ensure!(seen.len() >= MANY, "the pages have {} of them", seen.len());
    browser.open(&format!("{}/console/", lab.console))?;
    browser.until_shown("Stuck").or_else(|_| browser.until_shown("stuck"))?;
    keep(&browser, "many-light")?;
    nothing_was_complained_of(&lab, &browser)
}

/// The browser is asked for a token, keeps it, and shows it with everything that a page asks for, the live stream too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_its_token() -> anyhow::Result<()> {
    let Some(browser) = Browser::start()? else { return Ok(()) };
    let (_guarded, address) = lab::guarded(&[("eye", "viewer"), ("hand", "operator")]).await?;
    let given = "fetch('/console/api/session').then((answer) => answer.json()).then(({ token }) => fetch('/console/api/order', { method: \
                 'POST', headers: { 'Content-Type': 'application/json', 'X-Lockstep-Token': token }, body: '{}' })).then(async (answer) => \
                 arguments[0]([answer.status, await answer.text()]))";
    for (name, status, words) in [("eye", 403, "this needs the role operator"), ("hand", 400, "order")] {
        // The browser takes them from an address once, and keeps them for the others.
        browser.open(&format!("http://{name}:{}@{address}/console/", lab::token(name)))?;
        browser.open(&format!("http://{address}/console/participants"))?;
        browser.until_shown("sqlite")?;
        browser.open(&format!("http://{address}/console/"))?;
        browser.until("document.getElementById('phase').textContent === 'serving'")?;
        browser.until("document.getElementById('stale').innerText === ''")?;
        let answer = browser.run_async(given)?;
        ensure!(answer[0] == status && answer[1].as_str().is_some_and(|text| text.contains(words)), "{name} is told {answer}");
    }
    ensure!(!browser.text()?.contains(&lab::token("hand")), "the page shows a token");
    Ok(())
}

/// The words of what has the focus.
fn focused(browser: &Browser) -> anyhow::Result<String> {
    let words = browser.run("return document.activeElement.innerText || document.activeElement.name || document.activeElement.tagName")?;
    Ok(words.as_str().unwrap_or_default().trim().to_owned())
}

/// Tab, until the focus is there.
fn walk_to(browser: &Browser, wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let mut passed = Vec::new();
    for _ in 0..60 {
        browser.press(TAB)?;
        let at = focused(browser)?;
        if wanted(&at) {
            return Ok(());
        }
        passed.push(at);
    }
    anyhow::bail!("the focus does not come there; it passed {passed:?}")
}

/// A picture of what is seen, if that is wanted.
fn keep(browser: &Browser, name: &str) -> anyhow::Result<()> {
    let Some(folder) = std::env::var_os("LOCKSTEP_SCREENSHOTS").map(PathBuf::from) else { return Ok(()) };
    std::fs::create_dir_all(&folder)?;
    Ok(std::fs::write(folder.join(format!("{name}.png")), browser.screenshot()?)?)
}

/// The rules of accessibility that a program can check, if they are there.
fn axe() -> anyhow::Result<Option<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("node_modules/axe-core/axe.min.js");
    if !path.exists() {
        println!("not checked for accessibility by axe-core: npm install --prefix tests");
        return Ok(None);
    }
    Ok(Some(std::fs::read_to_string(path)?))
}
