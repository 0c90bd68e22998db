//! Several statements in one message, and how far the server came with them.

use futures_util::StreamExt;
use std::pin::pin;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// What the server said of a script.
pub struct Played {
    /// How many of its statements were carried out. The one behind them failed if there is an error, and what stands behind that one was
    /// not begun.
    pub done: usize,
    /// The first column of each row, with the number of the statement that returned it, from 0. Bounded by the script's own statements.
    pub rows: Vec<(usize, Option<String>)>,
    /// Why it went no further.
    pub error: Option<Error>,
}

impl Played {
    /// The first value that this statement returned.
    pub fn value(&self, statement: usize) -> Option<&str> {
        self.rows.iter().find(|(of, _)| *of == statement).and_then(|(_, value)| value.as_deref())
    }
}

/// Sends the script, on the first poll, and reads all that is said of it.
pub async fn play(client: &Client, script: &str) -> Played {
    let mut played = Played { done: 0, rows: Vec::new(), error: None };
    let answers = match client.simple_query_raw(script).await {
        Ok(answers) => answers,
        Err(error) => return Played { error: Some(error), ..played },
    };
    let mut answers = pin!(answers);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(SimpleQueryMessage::CommandComplete(_)) => played.done += 1,
            Ok(SimpleQueryMessage::Row(row)) => {
                let value = row.try_get(0).ok().flatten().map(str::to_owned);
                played.rows.push((played.done, value));
            }
            Ok(_) => {}
            Err(error) => {
                played.error = Some(error);
                break;
            }
        }
    }
    played
}
