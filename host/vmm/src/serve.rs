//! The start of one VM process: it waits for [`Request::Configure`], builds the machine, and hands
//! it to its supervisor.

use crate::assemble::assemble;
use crate::confine::{self, OwnFiles};
use crate::error::{SuperviseError, chain};
use crate::log::SandboxLog;
use crate::parts::Machine;
use crate::prepared::PreparedHost;
use crate::supervise::Supervisor;
use crate::trace::Trace;
use control::{Configured, Event, JailMode, Request, VmSpec};
use machine::monotonic_ns;
use std::os::fd::{AsFd, OwnedFd};

/// Serves one sandbox over `control` until it ends. What is not `prepared` is made first, for a
/// process that has no zygote, and so not all walls. The process is confined before it is told
/// anything.
pub(crate) fn serve(
    control: OwnedFd,
    prepared: Option<PreparedHost>,
    console_live: bool,
) -> Result<(), SuperviseError> {
    let confined = prepared
        .map_or_else(|| PreparedHost::new(JailMode::Degraded), Ok)
        .and_then(|prepared| Ok((confine::process(prepared.mode)?, prepared)));
    let Some((request, fds)) = control::recv::<Request>(&control)? else {
        return Ok(());
    };
    let Request::Configure(spec) = request else {
        return refuse(
            &control,
            SuperviseError::OutOfTurn(format!("{request:?} before Configure")),
        );
    };
    match configure(confined, &spec, fds, &control, console_live) {
        Ok((machine, log, build_ns)) => {
            control::send(&control, &Event::Configured(Configured { build_ns }), &[])?;
            Supervisor::new(control, machine, log).run()
        }
        Err(error) => refuse(&control, error),
    }
}

fn refuse(control: &OwnedFd, error: SuperviseError) -> Result<(), SuperviseError> {
    control::send(
        control,
        &Event::Failed {
            message: chain(&error),
        },
        &[],
    )?;
    Err(error)
}

type Built = (Machine, SandboxLog, u64);

fn configure(
    confined: anyhow::Result<(OwnFiles, PreparedHost)>,
    spec: &VmSpec,
    fds: Vec<OwnedFd>,
    control: &OwnedFd,
    console_live: bool,
) -> Result<Built, SuperviseError> {
    let start = monotonic_ns();
    let build = |error: &dyn std::error::Error| SuperviseError::Build(chain(error));
    spec.check(fds.len()).map_err(|e| build(&e))?;
    let log = SandboxLog::new(&spec.sandbox_id, console_live);
    Trace::install(log.clone());
    let confined = confined.map_err(|e| SuperviseError::Build(format!("{e:#}")))?;
    confine::files(spec).map_err(|e| build(&e))?;
    let machine = assemble(confined, spec, fds, control.as_fd(), &log).map_err(|e| build(&e))?;
    Ok((machine, log, monotonic_ns() - start))
}
