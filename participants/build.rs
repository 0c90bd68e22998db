//! Says clearly what is missing where SQLite would be built without its session extension: the linker's `undefined symbol:
//! sqlite3session_create` helps nobody.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBSQLITE3_FLAGS");
    let wanted = std::env::var_os("CARGO_FEATURE_SQLITE").is_some();
    let given =
        std::env::var("LIBSQLITE3_FLAGS").is_ok_and(|flags| flags.contains("ENABLE_SESSION") && flags.contains("ENABLE_PREUPDATE_HOOK"));
    if wanted && !given {
        println!(
            "cargo::error=the feature `sqlite` of lockstep-participants needs SQLite's session extension: build inside the workspace (its \
             .cargo/config.toml sets the flags), or set LIBSQLITE3_FLAGS=\"-DSQLITE_ENABLE_SESSION -DSQLITE_ENABLE_PREUPDATE_HOOK\""
        );
    }
}
