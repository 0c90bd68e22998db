//! lockstepd
fn main() {}
