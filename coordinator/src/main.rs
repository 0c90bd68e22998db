//! `lockstepd`: the daemon, its demo, and a check of its configuration.

fn main() -> std::process::ExitCode {
    lockstepd::run()
}
