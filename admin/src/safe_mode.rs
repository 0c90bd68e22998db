//! Safe mode: what a person decides after the log has lost records (R-LOGLOSS).

use crate::arguments::Order;
use crate::confirm;
use crate::daemon::Daemon;
use crate::output::Output;
use crate::{Exit, Failure, Io};
use lockstep_proto::v1;

pub(crate) async fn waive(
    participant: String,
    order: Order,
    daemon: &mut Daemon,
    output: &Output,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let breaks = format!(
        "Goes on without the evidence of store `{participant}`. If the log has lost a commit that only `{participant}` knows of, the \
         other stores will roll it back, and the stores disagree for ever."
    );
    confirm::ask(io, &breaks, &participant, order.yes)?;
    let request = v1::WaiveRequest { participant, operator: order.operator, reason: order.reason };
    confirm::report(Daemon::answer(&daemon.endpoint, daemon.service.waive(request)).await?, output, io)
}

pub(crate) async fn leave(order: Order, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let breaks = "Leaves safe mode. Every transaction that is in doubt and that the log does not know is given up as aborted, also if a lost \
                  record had committed it. Tokens given so far are no longer accepted.";
    confirm::ask(io, breaks, "leave safe mode", order.yes)?;
    let request = v1::LeaveSafeModeRequest { operator: order.operator, reason: order.reason };
    confirm::report(Daemon::answer(&daemon.endpoint, daemon.service.leave_safe_mode(request)).await?, output, io)
}
