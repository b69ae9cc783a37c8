//! What every round of every scenario needs.

use super::server::ClientPatience;
use crate::record::{RecordPrinter, Sample};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

const ENGINE: &str = "hatchery";

#[derive(clap::Args)]
pub(crate) struct ServiceArgs {
    /// Folder with hatchery, hatchery-vmm, hatchery-agent, vmlinux and base.ext4
    #[arg(long)]
    pub(super) dist: PathBuf,
    /// The clock counts instructions (the host runs under QEMU's -icount)
    #[arg(long)]
    pub(super) icount: bool,
    /// A folder of definitions instead of our own
    #[arg(long)]
    pub(super) definitions: Option<PathBuf>,
    /// Only scenarios of these groups or names
    #[arg(long, value_delimiter = ',')]
    pub(super) only: Vec<String>,
    /// Lives of the scenarios that look for growth, instead of the definition's number
    #[arg(long)]
    pub(super) cycles: Option<u32>,
    /// The machines are stand-ins (for a test of this program)
    #[arg(long)]
    pub(super) stand_ins: bool,
    /// The commit that is measured, for the description of the run
    #[arg(long, default_value = "unknown")]
    pub(super) commit: String,
}

/// What every round needs.
pub(super) struct ServiceContext<'a> {
    pub(super) args: &'a ServiceArgs,
    pub(super) printer: RecordPrinter,
}

impl ServiceContext<'_> {
    /// Keeps a sample of ours.
    pub(super) fn keep(&mut self, scenario: &str, sample: Result<Sample>) {
        self.printer.sample(scenario, ENGINE, sample);
    }

    /// How long clients wait for bytes, by the measured machine's clock: where instructions are
    /// counted a second is a billion of them, of which the dearest of quick requests needs a
    /// fiftieth. A guest that the emulator has lost spins meanwhile.
    pub(super) fn patience(&self) -> ClientPatience {
        let ms = |counted, uncounted| {
            Duration::from_millis(if self.args.icount { counted } else { uncounted })
        };
        ClientPatience {
            quick: ms(1_500, 60_000),
            slow: ms(10_000, 120_000),
        }
    }
}
