//! The connection to the daemon, and what its errors mean here.

use crate::{Exit, Failure};
use lockstep_client::{AuthorizedChannel, Credentials, with_scheme};
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tonic::{Code, Response, Status};

/// The longest time that any answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// After so long without a word the daemon is asked whether it is there; long answers come in a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(crate) struct Daemon {
    pub service: AdminServiceClient<AuthorizedChannel>,
    pub endpoint: String,
}

impl Daemon {
    pub(crate) async fn connect(endpoint: &str, credentials: &Credentials) -> Result<Daemon, Failure> {
        let text = with_scheme(endpoint);
        let usage = |message: String| Failure {
            exit: Exit::Usage,
            message: format!("`{endpoint}` cannot be used: {message}"),
            hint: "give --endpoint or LOCKSTEP_ENDPOINT as for example http://127.0.0.1:7117, unix:///run/lockstep/lockstepd.sock, \
                   or https://… with --ca-file and --token-file"
                .into(),
        };
        let address = credentials.endpoint(&text).map_err(usage)?;
        let authorization = credentials.authorization().map_err(usage)?;
        let address = address.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(PATIENCE);
        match tokio::time::timeout(PATIENCE, address.connect()).await {
            Ok(Ok(channel)) => {
                let service = AdminServiceClient::with_interceptor(channel, authorization).max_decoding_message_size(64 << 20);
                Ok(Daemon { service, endpoint: text })
            }
            Ok(Err(error)) => Err(not_connected(&text, root_cause(&error))),
            Err(_) => Err(unreachable(&text, &format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// Waits for an answer, and says what to do if it is an error.
    pub(crate) async fn answer<T>(endpoint: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(endpoint, &status)),
            Err(_) => Err(silent(endpoint, &format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// The same of an order. Without an answer it may have been carried out, or be carried out yet.
    pub(crate) async fn carried_out<T>(endpoint: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        Daemon::answer(endpoint, call).await.map_err(|failure| match failure.exit {
            Exit::Unreachable => Failure {
                exit: Exit::Failed,
                hint: "it may have been carried out all the same: `lockstep audit list` shows whether it was ordered, `lockstep tx explain` and \
                       `lockstep damage list` what came of it; look before you repeat it"
                    .into(),
                ..failure
            },
            Exit::Ok | Exit::Failed | Exit::Usage | Exit::Refused | Exit::Attention => failure,
        })
    }
}

pub(crate) fn failure(endpoint: &str, status: &Status) -> Failure {
    let message = status.message().to_owned();
    let (exit, hint) = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => return silent(endpoint, &message),
        Code::InvalidArgument | Code::OutOfRange => (Exit::Usage, "mend the command line; `lockstep --help` shows it"),
        Code::Unauthenticated => (Exit::Refused, "--token-file FILE (or LOCKSTEP_TOKEN), or --cert-file and --key-file, say who you are"),
        Code::PermissionDenied => (Exit::Refused, "ask whoever runs the daemon for that role ([[principal]] in its configuration)"),
        Code::ResourceExhausted => (Exit::Failed, "wait a moment, and try again"),
        Code::FailedPrecondition | Code::Aborted => {
            (Exit::Refused, "`lockstep status` and `lockstep doctor` say what has to be mended first")
        }
        Code::NotFound | Code::AlreadyExists => (Exit::Failed, "`lockstep tx list` and `lockstep participants` show what there is"),
        Code::Unimplemented => (Exit::Failed, "the daemon is of another version than this program: update the older one"),
        Code::Ok | Code::Internal | Code::DataLoss => (Exit::Failed, "look at the daemon's own log"),
    };
    Failure { exit, message, hint: hint.into() }
}

/// The last of the causes says most.
fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last
}

fn not_connected(endpoint: &str, cause: &(dyn Error + 'static)) -> Failure {
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(ErrorKind::PermissionDenied) => Failure {
            hint: "the socket is for the daemon's user and its group (mode 660): be of that group, or use the port".into(),
            ..unreachable(endpoint, &cause.to_string())
        },
        Some(ErrorKind::ConnectionRefused) => unreachable(endpoint, "nobody listens there"),
        Some(_) | None => unreachable(endpoint, &cause.to_string()),
    }
}

fn unreachable(endpoint: &str, why: &str) -> Failure {
    Failure {
        exit: Exit::Unreachable,
        message: format!("no daemon answers at {endpoint}: {why}"),
        hint: "start lockstepd, or say where it is with --endpoint or LOCKSTEP_ENDPOINT".into(),
    }
}

/// Somebody listens, but gives no answer now.
fn silent(endpoint: &str, why: &str) -> Failure {
    Failure {
        exit: Exit::Unreachable,
        message: format!("the daemon at {endpoint} gives no answer now: {why}"),
        hint: "try again in a moment; if it stays so, look at the daemon's own log".into(),
    }
}
