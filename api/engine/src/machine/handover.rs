//! How a machine passes from its life-cycle task to whoever resets its sandbox.

use crate::machine::handle::VmProcess;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

/// How whoever resets a sandbox gets its machine from its life-cycle task.
#[derive(Debug)]
pub struct MachineHandover {
    ask: mpsc::Sender<oneshot::Sender<VmProcess>>,
    /// The life-cycle task holds it as long as it has the machine.
    asks: Mutex<mpsc::Receiver<oneshot::Sender<VmProcess>>>,
}

impl Default for MachineHandover {
    fn default() -> Self {
        let (ask, asks) = mpsc::channel(1);
        let asks = Mutex::new(asks);
        Self { ask, asks }
    }
}

/// Who asks for a machine; it is sent there.
pub type MachineRequest = oneshot::Sender<VmProcess>;

impl MachineHandover {
    /// Asks the life-cycle task for the machine; `None`: it has ended.
    pub async fn ask(&self) -> Option<oneshot::Receiver<VmProcess>> {
        let (to, from) = oneshot::channel();
        self.ask.send(to).await.ok()?;
        Some(from)
    }

    /// The requests, for the life-cycle task, as long as it has the machine.
    pub async fn requests(&self) -> MutexGuard<'_, mpsc::Receiver<MachineRequest>> {
        self.asks.lock().await
    }
}
