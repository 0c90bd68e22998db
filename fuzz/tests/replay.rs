//! Everything that was kept is played again: the corpora, and whatever once broke something.

use lockstep_fuzz::TARGETS;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

fn files(kind: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

fn replay(target: &str) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).expect("a target").1;
    let plain = [vec![], vec![0; 300], vec![0xff; 300], (0..=255).collect(), b"{}".to_vec()];
    plain.iter().for_each(|input| run(input));
    let kept = files("corpus", target);
    assert!(!kept.is_empty(), "{target} has no corpus");
    for file in kept.into_iter().chain(files("findings", target)) {
        let input = std::fs::read(&file).expect("a readable file");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&input))) {
            eprintln!("that was {}", file.display());
            resume_unwind(panic);
        }
    }
}

macro_rules! replayed {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn every_target_is_replayed_and_every_folder_is_of_a_target() {
            let names: BTreeSet<_> = TARGETS.iter().map(|(name, _)| name.to_string()).collect();
            assert_eq!(names, [$(stringify!($target).to_string()),*].into());
            for kind in ["corpus", "findings"] {
                let Ok(folders) = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)) else { continue };
                for folder in folders {
                    let name = folder.expect("a folder").file_name().into_string().expect("a name");
                    assert!(names.contains(&name), "{kind}/{name} is of no target");
                }
            }
        }
    };
}

replayed! {
    log_records log_folder client_messages participant_messages coordinator_sessions participant_sessions statements documents
    opensearch_documents postgres_texts postgres_statements configuration command_lines texts
}
