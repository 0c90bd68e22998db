//! libFuzzer's way into the targets: `LOCKSTEP_FUZZ_TARGET` names the one that runs.
#![no_main]
#![allow(unsafe_code)]

use libfuzzer_sys::fuzz_target;
use lockstep_fuzz::TARGETS;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, OnceLock};

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
/// What the last panic said.
static SAID: Mutex<String> = Mutex::new(String::new());

fuzz_target!(
    init: {
        let name = std::env::var("LOCKSTEP_FUZZ_TARGET").unwrap_or_default();
        let Some((_, target)) = TARGETS.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("fuzz: LOCKSTEP_FUZZ_TARGET is `{name}`: none of {}", known.join(", "));
            std::process::exit(2);
        };
        let _ = TARGET.set(*target);
        // Not every panic is a finding: the log catches those of its engine, when its files are damaged.
        drop(take_hook());
        set_hook(Box::new(|panic| {
            let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *said = format!("{panic}\n{}", std::backtrace::Backtrace::capture());
        }));
    },
    |data: &[u8]| {
        let target = TARGET.get().expect("chosen at the start");
        if catch_unwind(AssertUnwindSafe(|| target(data))).is_err() {
            eprintln!("{}", SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            std::process::abort();
        }
    }
);
