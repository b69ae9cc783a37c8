//! A sandbox's life as one pure table: its state, what is asked of it, and what becomes of both.

use SandboxState::{Absent, Busy, Creating, Paused, Resuming, Running};
use Transition::{Become, Conflict, NotFound, Proceed, ShuttingDown, Wait};

/// What is done to a sandbox's machine while nothing else may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BusyReason {
    /// It is saved, and then it goes.
    Pause,
    /// It is saved, is quiesced meanwhile, and goes on.
    Save,
    /// Another one takes its place.
    Reset,
}

/// A sandbox's state, without what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SandboxState {
    /// There is no such sandbox.
    Absent,
    /// Being made; nobody knows its id yet.
    Creating,
    /// With a machine that runs.
    Running,
    /// With a machine that somebody works at.
    Busy(BusyReason),
    /// Without a machine.
    Paused,
    /// With a machine in the making.
    Resuming,
}

/// What is asked of a sandbox, or has come of what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SandboxRequest {
    /// It is to be listed, or its checkpoints are.
    View,
    /// Its machine is to be asked something.
    Use,
    /// Traffic to one of its ports.
    Traffic,
    /// Its machine is to be worked at.
    Work(BusyReason),
    /// It is to run.
    Resume,
    /// It is to end.
    Kill,
    /// It is made, and is to run.
    Publish,
    /// The work is done or has failed: it goes on, with its machine or another one.
    GoOn,
    /// It is stored.
    FinishPause,
    /// It has a machine.
    FinishResume,
    /// It has none.
    FailResume,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// It may be done; the state stays.
    Proceed,
    /// It may be done; the state is this one from now on.
    Become(SandboxState),
    /// Not now: look again when the state has changed.
    Wait,
    /// Not in this state, which is this.
    Conflict(&'static str),
    /// There is no such sandbox.
    NotFound,
    /// The server is shutting down.
    ShuttingDown,
}

/// What becomes of a request to a sandbox in this state.
pub(super) const fn transition(
    state: SandboxState,
    request: SandboxRequest,
    closing: bool,
) -> Transition {
    match request {
        SandboxRequest::View => match state {
            Absent | Creating => NotFound,
            Running | Busy(_) | Paused | Resuming => Proceed,
        },
        SandboxRequest::Use => match state {
            Absent | Creating | Paused => NotFound,
            Running | Busy(BusyReason::Save) => Proceed,
            Busy(reason) => Conflict(reason.words()),
            Resuming => Conflict("is being resumed"),
        },
        SandboxRequest::Traffic => match state {
            Absent | Creating => NotFound,
            Running => Proceed,
            Busy(BusyReason::Save | BusyReason::Reset) => Wait,
            Busy(BusyReason::Pause) => Conflict(BusyReason::Pause.words()),
            Paused | Resuming => Become(Resuming),
        },
        SandboxRequest::Work(reason) => match state {
            _ if closing => ShuttingDown,
            Absent | Creating => NotFound,
            Running => Become(Busy(reason)),
            Busy(BusyReason::Save | BusyReason::Reset) => Wait,
            Busy(BusyReason::Pause) => Conflict(BusyReason::Pause.words()),
            Paused => Conflict("is paused already"),
            Resuming => Conflict("is being resumed"),
        },
        SandboxRequest::Resume => match state {
            Absent | Creating => NotFound,
            Running => Proceed,
            Busy(_) | Resuming => Wait,
            Paused if closing => ShuttingDown,
            Paused => Become(Resuming),
        },
        SandboxRequest::Kill => match state {
            Absent | Creating => NotFound,
            Running | Busy(_) | Paused | Resuming => Become(Absent),
        },
        SandboxRequest::Publish => match state {
            _ if closing => ShuttingDown,
            Creating => Become(Running),
            Absent | Running | Busy(_) | Paused | Resuming => NotFound,
        },
        SandboxRequest::GoOn => match state {
            Running | Busy(_) => Become(Running),
            Absent | Creating | Paused | Resuming => NotFound,
        },
        SandboxRequest::FinishPause => match state {
            Running | Busy(_) => Become(Paused),
            Absent | Creating | Paused | Resuming => NotFound,
        },
        SandboxRequest::FinishResume => match state {
            Resuming => Become(Running),
            Absent | Creating | Running | Busy(_) | Paused => NotFound,
        },
        SandboxRequest::FailResume => match state {
            Resuming => Become(Paused),
            Absent | Creating | Running | Busy(_) | Paused => NotFound,
        },
    }
}

impl BusyReason {
    /// Why something else cannot be done.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Pause => "is being paused",
            Self::Save => "is being saved",
            Self::Reset => "is being reset",
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const STATES: [SandboxState; 8] = [
        Absent,
        Creating,
        Running,
        Busy(BusyReason::Save),
        Busy(BusyReason::Reset),
        Busy(BusyReason::Pause),
        Paused,
        Resuming,
    ];
    const REQUESTS: [SandboxRequest; 11] = [
        SandboxRequest::View,
        SandboxRequest::Use,
        SandboxRequest::Traffic,
        SandboxRequest::Work(BusyReason::Save),
        SandboxRequest::Resume,
        SandboxRequest::Kill,
        SandboxRequest::Publish,
        SandboxRequest::GoOn,
        SandboxRequest::FinishPause,
        SandboxRequest::FinishResume,
        SandboxRequest::FailResume,
    ];

    /// A column a state in the order of [`STATES`]: `ok` it is done and the state stays, a state's
    /// name it is done and that is the state, `wait`, `409`, `404`, `503`.
    const MATRIX: &str = "
        View         404 404 ok      ok      ok      ok      ok       ok
        Use          404 404 ok      ok      409     409     404      409
        Traffic      404 404 ok      wait    wait    409     Resuming Resuming
        Work(Save)   404 404 Busy    wait    wait    409     409      409
        Resume       404 404 ok      wait    wait    wait    Resuming wait
        Kill         404 404 Absent  Absent  Absent  Absent  Absent   Absent
        Publish      404 Running 404 404     404     404     404      404
        GoOn         404 404 Running Running Running Running 404      404
        FinishPause  404 404 Paused  Paused  Paused  Paused  404      404
        FinishResume 404 404 404     404     404     404     404      Running
        FailResume   404 404 404     404     404     404     404      Paused
    ";
    /// The same while the server shuts down, where it differs.
    const CLOSING: &str = "
        Work(Save)   503 503 503     503     503     503     503      503
        Resume       404 404 ok      wait    wait    wait    503      wait
        Publish      503 503 503     503     503     503     503      503
    ";

    fn word(transition: Transition) -> String {
        match transition {
            Proceed => "ok".into(),
            Become(Busy(_)) => "Busy".into(),
            Become(state) => format!("{state:?}"),
            Wait => "wait".into(),
            Conflict(_) => "409".into(),
            NotFound => "404".into(),
            ShuttingDown => "503".into(),
        }
    }

    fn rows(text: &str) -> Vec<Vec<&str>> {
        let lines = text.lines().map(|line| line.split_whitespace().collect());
        lines.filter(|row: &Vec<_>| !row.is_empty()).collect()
    }

    #[test]
    fn every_state_meets_every_request() {
        let table = rows(MATRIX);
        assert_eq!(table.len(), REQUESTS.len());
        for (request, row) in REQUESTS.into_iter().zip(table) {
            assert_eq!(row[0], format!("{request:?}"));
            let found: Vec<_> = STATES.map(|s| word(transition(s, request, false))).into();
            assert_eq!(found, row[1..], "{request:?}");
            let name = format!("{request:?}");
            let closing = rows(CLOSING).into_iter().find(|row| row[0] == name);
            let wanted = closing.map_or(found, |row| {
                row[1..].iter().map(|&word| word.to_owned()).collect()
            });
            let found: Vec<_> = STATES.map(|s| word(transition(s, request, true))).into();
            assert_eq!(found, wanted, "{request:?} while closing");
        }
    }

    #[test]
    fn work_of_each_kind_is_told_apart() {
        for reason in [BusyReason::Pause, BusyReason::Save, BusyReason::Reset] {
            let begun = transition(Running, SandboxRequest::Work(reason), false);
            assert_eq!(begun, Become(Busy(reason)));
        }
        let used = transition(Busy(BusyReason::Reset), SandboxRequest::Use, false);
        assert_eq!(used, Conflict("is being reset"));
    }
}
