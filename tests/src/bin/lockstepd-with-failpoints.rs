//! The daemon, with the places where a test may stop it dead; and, as `torture`, what stops it there.

fn main() -> std::process::ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.peek().is_some_and(|word| word == "torture") {
        return lockstep_tests::torture::run(words);
    }
    lockstepd::run()
}
