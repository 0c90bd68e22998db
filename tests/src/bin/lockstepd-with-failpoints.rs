//! The daemon, with the places where a test may stop it dead.

fn main() -> std::process::ExitCode {
    lockstepd::run()
}
