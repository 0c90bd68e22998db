//! The daemon, with the places where a test may stop it dead; and, as `torture`, what stops it there; as `participant`,
//! an index in a process of its own.

fn main() -> std::process::ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.peek().is_some_and(|word| word == "torture") {
        return lockstep_tests::torture::run(words);
    }
    if words.next_if(|word| word == lockstep_tests::torture::participant::WORD).is_some() {
        return lockstep_tests::torture::participant::run(words);
    }
    lockstepd::run()
}
