//! The configuration and the command lines.

use lockstepd::configuration::Source;

/// A password, where people put it.
const SECRET: &str = ":hunter2@";

/// Any text as a configuration file; behind a zero byte, overrides as `--set` takes them, one a line. What is accepted is printed as what is
/// read as the same; an error can be shown to anybody.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (text, set) = text.split_once('\0').unwrap_or((&text, ""));
    let source = Source { set: set.lines().map(str::to_owned).collect(), ..Source::default() };
    match source.apply(text) {
        Ok(configuration) => {
            let _ = configuration.machine(0);
            let printed = toml::to_string(&configuration).expect("a configuration can be printed");
            let again = Source::default().apply(&printed).unwrap_or_else(|error| panic!("{error}\nof\n{printed}"));
            assert_eq!(again, configuration, "what check-config prints means something else");
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.is_empty());
            assert!(!sentence.contains(SECRET), "an error shows a password: {sentence}");
        }
    }
}

/// Any words as a command line of `lockstep` or `lockstepd`, a word a line: understood, or refused in a sentence.
pub fn command_lines(data: &[u8]) {
    let Some((which, words)) = data.split_first() else { return };
    let words = String::from_utf8_lossy(words);
    let words = words.lines().filter(|word| !word.contains('\0'));
    let result = match which % 2 {
        0 => lockstep::understands(["lockstep"].into_iter().chain(words)),
        _ => lockstepd::understands(["lockstepd"].into_iter().chain(words)),
    };
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
}
