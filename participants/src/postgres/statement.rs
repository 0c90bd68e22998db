//! What a client's statement may be. The extended protocol sees to it that it is one; its first word says which.

use super::failure::Failure;
use lockstep_core::RefusalKind;

/// First words of statements that work inside a branch.
const ALLOWED: [&str; 14] =
    ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "CALL", "DO", "LOCK", "TRUNCATE", "EXPLAIN", "SHOW"];

/// First words that would begin, end or split the transaction.
const TRANSACTION: [&str; 10] = ["BEGIN", "START", "COMMIT", "END", "ABORT", "ROLLBACK", "SAVEPOINT", "RELEASE", "PREPARE", "EXECUTE"];

/// First words of statements that outlive the transaction, or never reach it.
const SESSION: [&str; 13] =
    ["SET", "RESET", "DISCARD", "LISTEN", "UNLISTEN", "NOTIFY", "LOAD", "DEALLOCATE", "DECLARE", "FETCH", "MOVE", "CLOSE", "COPY"];

/// Refuses in a sentence what cannot be a part of a transaction.
pub fn check(sql: &str, limit: usize) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure::refused(RefusalKind::Invalid, message));
    if sql.len() > limit {
        return refuse(format!("the statement has {} bytes; the limit (statement_bytes) is {limit}", sql.len()));
    }
    if sql.contains('\0') {
        return refuse("the statement contains a NUL character, which PostgreSQL cannot take".into());
    }
    let word = first_word(sql).to_ascii_uppercase();
    match word.as_str() {
        "" => refuse("the statement is empty".into()),
        word if ALLOWED.contains(&word) => Ok(()),
        word if TRANSACTION.contains(&word) => refuse(format!(
            "{word} is not allowed: the transaction is begun, prepared and ended by Lockstep; leave transaction control out"
        )),
        word if SESSION.contains(&word) => {
            refuse(format!("{word} is not allowed: its effect belongs to a session, not to the transaction"))
        }
        word => refuse(format!(
            "a statement that begins with {word} is not allowed in a transaction; to change the schema use `lockstep migrate`"
        )),
    }
}

/// Whether a statement that returns rows does nothing else, by its first word.
pub fn only_returns(sql: &str) -> bool {
    let word = first_word(sql).to_ascii_uppercase();
    ["SELECT", "VALUES", "TABLE", "EXPLAIN", "SHOW", "CALL"].contains(&word.as_str())
}

/// Whether a statement is there to write, by its first word. (One that begins otherwise may write, too.)
pub fn writes(sql: &str) -> bool {
    let word = first_word(sql).to_ascii_uppercase();
    ["INSERT", "UPDATE", "DELETE", "MERGE"].contains(&word.as_str())
}

/// Whether a statement reads and writes rows and does nothing else by itself, by its first word.
pub fn touches_rows_only(sql: &str) -> bool {
    let word = first_word(sql).to_ascii_uppercase();
    ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE"].contains(&word.as_str())
}

/// The first word behind blanks, comments and opening parentheses.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ';' || c == '\u{feff}');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.find('\n').map_or("", |end| &comment[end..]);
        } else if rest.starts_with("/*") {
            rest = behind_comment(rest);
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            // Something that is no word is the server's to refuse, by its first character.
            let end = if end == 0 { rest.chars().next().map_or(0, char::len_utf8) } else { end };
            return &rest[..end];
        }
    }
}

/// Comments nest in PostgreSQL.
fn behind_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0usize, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return &text[at..];
                }
            }
            _ => at += 1,
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_decides() {
        let ok = [
            "select 1",
            " (SELECT 1)",
            "/* a /* b */ c */ Update x set y = 1",
            "-- no\nINSERT INTO t VALUES (1)",
            "with a as (select 1) table a",
        ];
        for sql in ok {
            assert!(check(sql, 1000).is_ok(), "{sql}");
        }
        let bad = [
            ("", "is empty"),
            ("-- nothing", "is empty"),
            ("/* open", "is empty"),
            (";", "is empty"),
            ("commit", "COMMIT is not allowed"),
            ("/**/Rollback", "ROLLBACK is not allowed"),
            ("prepare transaction 'x'", "PREPARE is not allowed"),
            ("end", "END is not allowed"),
            ("set local x = 1", "SET is not allowed"),
            ("listen x", "LISTEN is not allowed"),
            ("create table t()", "lockstep migrate"),
            ("select '\0'", "NUL"),
            ("\u{feff}commit", "COMMIT is not allowed"),
        ];
        for (sql, part) in bad {
            let refusal = check(sql, 1000).unwrap_err().refusal();
            assert!(refusal.message.contains(part), "{sql}: {}", refusal.message);
        }
        assert!(check("select 1", 3).unwrap_err().refusal().message.contains("statement_bytes"));
    }
}
