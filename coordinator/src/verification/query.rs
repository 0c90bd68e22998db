//! Which queries can be paged by their key: one SELECT that promises nothing about order or number, so that it can stand as a table in
//! `SELECT * FROM (…) WHERE key >= $1 ORDER BY key LIMIT n`. The database then finds each page by its index on the key.

/// Words that, outside of parentheses, make a query something else than a set of rows.
const REFUSED: [&str; 7] = ["ORDER", "LIMIT", "OFFSET", "FETCH", "FOR", "INTO", "RETURNING"];

/// Refuses in a sentence what cannot be paged.
pub fn check(sql: &str) -> Result<(), String> {
    let mut words = Words { rest: sql, depth: 0 };
    match words.next().transpose()? {
        Some((0, word)) if ["SELECT", "WITH", "VALUES"].contains(&word.to_ascii_uppercase().as_str()) => {}
        _ => return Err("it must be one SELECT".into()),
    }
    for word in words {
        let (depth, word) = word?;
        let upper = word.to_ascii_uppercase();
        match word {
            ";" => return Err("it must be one statement, without a semicolon".into()),
            "?" | "$" => return Err("it takes no parameters: pages are taken by its key".into()),
            _ if depth == 0 && REFUSED.contains(&upper.as_str()) => {
                return Err(format!("it must not have {upper} outside of parentheses: pages are taken by its key, in the key's order"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Words outside of strings, quoted names and comments, each with how many parentheses are open; of signs only those that matter.
struct Words<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Iterator for Words<'a> {
    type Item = Result<(usize, &'a str), String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.rest = self.rest.trim_start();
            let first = self.rest.chars().next()?;
            let length = match first {
                '\'' | '"' | '`' => match self.rest[1..].find(first) {
                    Some(end) => end + 2,
                    None => return self.unfinished(&format!("what begins with {first}")),
                },
                '-' if self.rest.starts_with("--") => self.rest.find('\n').unwrap_or(self.rest.len()),
                '/' if self.rest.starts_with("/*") => match self.rest.find("*/") {
                    Some(end) => end + 2,
                    None => return self.unfinished("a comment"),
                },
                '(' => {
                    self.depth += 1;
                    1
                }
                ')' if self.depth == 0 => return Some(Err("it has a parenthesis that closes nothing".into())),
                ')' => {
                    self.depth -= 1;
                    1
                }
                '$' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => return self.take(1),
                ';' | '?' => return self.take(1),
                c if c.is_alphanumeric() || c == '_' => {
                    return self.take(self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(self.rest.len()));
                }
                other => other.len_utf8(),
            };
            self.rest = &self.rest[length..];
        }
    }
}

impl<'a> Words<'a> {
    fn take(&mut self, length: usize) -> Option<Result<(usize, &'a str), String>> {
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(Ok((self.depth, word)))
    }

    fn unfinished(&mut self, what: &str) -> Option<Result<(usize, &'a str), String>> {
        self.rest = "";
        Some(Err(format!("it does not end {what}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_select_can_be_paged() {
        for sql in [
            "SELECT id, title FROM film",
            "select f.id, (select max(y) from z order by y limit 1) as y from film f group by f.id",
            "WITH a AS (SELECT 1 AS id) SELECT * FROM a -- limit 3",
            "SELECT id FROM t WHERE a = 'order by ; ?' AND \"limit\" = 1 /* offset; */",
        ] {
            assert_eq!(check(sql), Ok(()), "{sql}");
        }
        for (sql, words) in [
            ("", "one SELECT"),
            ("DELETE FROM film", "one SELECT"),
            ("(SELECT 1)", "one SELECT"),
            ("SELECT id FROM film ORDER BY id", "ORDER"),
            ("SELECT id FROM film limit 5", "LIMIT"),
            ("SELECT id FROM film FOR UPDATE", "FOR"),
            ("SELECT id FROM film;", "semicolon"),
            ("SELECT id FROM film WHERE id > $1", "parameters"),
            ("SELECT id FROM film WHERE id > ?", "parameters"),
            ("SELECT id FROM film)", "closes nothing"),
            ("SELECT 'open", "does not end"),
            ("SELECT 1 /* open", "does not end"),
        ] {
            let error = check(sql).expect_err(sql);
            assert!(error.contains(words), "{sql}: {error}");
        }
    }
}
