//! The pager process: takes machines from the service and gives each a thread.

use super::error::{PagerError, io};
use super::machine;
use super::message::receive_job;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

/// Most machines of one pager; more are turned away by closing their sockets.
pub const MAX_MACHINES: usize = 128;
/// Of each machine's thread.
const STACK: usize = 256 << 10;

/// Serves machines that come over `socket` until the service closes it. `tell` is given what went
/// wrong with one of them.
///
/// # Errors
/// When the socket fails, or says what nobody says.
pub fn serve(
    socket: impl AsFd,
    tell: impl Fn(&str, &PagerError) + Send + Sync + 'static,
) -> Result<(), PagerError> {
    let (tell, served) = (Arc::new(tell), Arc::new(AtomicUsize::new(0)));
    while let Some(job) = receive_job(&socket)? {
        if served.fetch_add(1, SeqCst) >= MAX_MACHINES {
            served.fetch_sub(1, SeqCst);
            let text = format!("{MAX_MACHINES} machines are served, the most that are possible");
            tell(&job.name, &PagerError::Message(text));
            continue;
        }
        let (tell, served) = (Arc::clone(&tell), Arc::clone(&served));
        let work = move || {
            let name = job.name.clone();
            if let Err(error) = machine::serve(job) {
                tell(&name, &error);
            }
            served.fetch_sub(1, SeqCst);
        };
        let started = thread::Builder::new().stack_size(STACK).spawn(work);
        started.map_err(io("Starting a thread", format!("{STACK} bytes of stack")))?;
    }
    Ok(())
}
