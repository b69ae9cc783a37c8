//! What is done in a template's machine before it is saved: what all its clones then have behind
//! them.

use crate::template::Template;
use link::{Link, LinkError, ProcessCommand, ProcessEvent, ProcessStream, end_status};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long one command may take, the template's own among them.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a template's process may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
/// The wait between two questions whether it is.
const READY_PAUSE: Duration = Duration::from_millis(500);
/// What the sandbox's own commands need to be fast: the loader, the shell and its start-up files
/// are in memory then.
const COMMANDS: [&[&str]; 2] = [&["/bin/true"], &["/bin/bash", "-l", "-c", "true"]];

/// Why a machine is not as its clones should be.
#[derive(Debug, thiserror::Error)]
pub enum WarmUpError {
    /// A command left its link in doubt, or was refused.
    #[error("Running {command:?}")]
    Link {
        /// The command.
        command: String,
        /// Why.
        source: LinkError,
    },
    /// A command did not end.
    #[error("{command:?} did not end within {} s", COMMAND_TIMEOUT.as_secs())]
    Slow {
        /// The command.
        command: String,
    },
    /// The template's process ended before it was ready.
    #[error("The template's start_cmd {command:?} ended with {status}")]
    Ended {
        /// The command.
        command: String,
        /// Its exit status, in words.
        status: String,
    },
    /// The template's process did not become ready.
    #[error(
        "The template's ready_cmd {command:?} did not succeed within {} s",
        READY_TIMEOUT.as_secs()
    )]
    NotReady {
        /// The command.
        command: String,
    },
}

/// Runs what every sandbox runs, then starts the template's own process and waits until it is
/// ready.
///
/// # Errors
/// Anything that would be under way, or missing, in every copy.
pub(super) async fn warm(link: &Link, template: &Template) -> Result<(), WarmUpError> {
    read_first(link).await?;
    let user = &template.default_user;
    for command in COMMANDS {
        match run(link, user, command).await {
            // What the guest does not have is left out.
            Err(WarmUpError::Link {
                source: LinkError::Refused(refusal),
                ..
            }) => tracing::debug!(?command, ?refusal, "not warmed"),
            other => drop(other?),
        }
    }
    let Some(start) = &template.start_cmd else {
        return Ok(());
    };
    let process = begin(link, user, &["/bin/bash", "-l", "-c", start]).await?;
    ready(link, template, start, process).await
    // The stream of the process ends here: what it writes from now on is thrown away.
}

/// Has the files that programs begin with come to lie together in the machine's memory
/// ([`wire::PRIMED_FILES`]).
async fn read_first(link: &Link) -> Result<(), WarmUpError> {
    let all = async {
        for (path, bytes) in wire::PRIMED_FILES {
            let failed = |source| failed(&["reading", path], source);
            match link.read_file(path.as_bytes(), 0, bytes).await {
                Ok((_, mut file)) => {
                    while file.next().await.transpose().map_err(failed)?.is_some() {}
                }
                Err(LinkError::Refused(_)) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    };
    let slow = |_| WarmUpError::Slow {
        command: "reading files".into(),
    };
    timeout(COMMAND_TIMEOUT, all).await.map_err(slow)?
}

/// Runs what clients' commands begin with, as a sandbox's first one: a shell that reads its
/// profile, and then a program.
///
/// # Errors
/// As [`warm`].
pub(super) async fn first_command(link: &Link, template: &Template) -> Result<(), WarmUpError> {
    let command = ["/bin/bash", "-l", "-c", "/bin/true"];
    run(link, &template.default_user, &command).await.map(drop)
}

async fn ready(
    link: &Link,
    template: &Template,
    start: &str,
    mut process: ProcessStream,
) -> Result<(), WarmUpError> {
    let Some(ready) = &template.ready_cmd else {
        return Ok(());
    };
    let asked = async {
        while !run(
            link,
            &template.default_user,
            &["/bin/bash", "-l", "-c", ready],
        )
        .await?
        {
            sleep(READY_PAUSE).await;
        }
        Ok(())
    };
    tokio::select! {
        biased;
        error = failure(&mut process, start) => Err(error),
        asked = timeout(READY_TIMEOUT, asked) => asked.unwrap_or_else(|_| {
            Err(WarmUpError::NotReady {
                command: ready.clone(),
            })
        }),
    }
}

/// Completes when the process fails; one that ends well may have left a daemon behind.
async fn failure(process: &mut ProcessStream, start: &str) -> WarmUpError {
    loop {
        match process.next().await {
            Ok(ProcessEvent::Output(..)) => {}
            Ok(ProcessEvent::Exited(end)) if end.exit == wire::ProcessExit::Code(0) => {
                return std::future::pending().await;
            }
            Ok(ProcessEvent::Exited(end)) => {
                return WarmUpError::Ended {
                    command: start.to_owned(),
                    status: end_status(end),
                };
            }
            Err(source) => return failed(&[start], source),
        }
    }
}

/// Runs a command to its end; says whether it succeeded.
async fn run(link: &Link, user: &str, command: &[&str]) -> Result<bool, WarmUpError> {
    let to_the_end = async {
        let mut process = begin(link, user, command).await?;
        loop {
            match process.next().await {
                Ok(ProcessEvent::Output(..)) => {}
                Ok(ProcessEvent::Exited(end)) => {
                    return Ok(end.exit == wire::ProcessExit::Code(0));
                }
                Err(source) => return Err(failed(command, source)),
            }
        }
    };
    let slow = |_| WarmUpError::Slow {
        command: command.join(" "),
    };
    timeout(COMMAND_TIMEOUT, to_the_end).await.map_err(slow)?
}

async fn begin(link: &Link, user: &str, command: &[&str]) -> Result<ProcessStream, WarmUpError> {
    let plan = ProcessCommand {
        argv: command.iter().map(|&word| word.to_owned()).collect(),
        user: user.to_owned(),
        ..ProcessCommand::default()
    };
    let process = link.start(&plan).await;
    process.map_err(|source| failed(command, source))
}

fn failed(command: &[&str], source: LinkError) -> WarmUpError {
    WarmUpError::Link {
        command: command.join(" "),
        source,
    }
}
