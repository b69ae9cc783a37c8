//! The whole system through its HTTP API, as clients feel it: real servers, real machines, every
//! answer checked. For the lab, in two passes: with a clock that counts instructions, and without.

mod branch;
mod client;
mod context;
mod create;
mod cycles;
mod density;
mod meter;
mod server;

use crate::definition::{self, LabKind, LabScenario};
use crate::output::say;
use crate::record::RecordPrinter;
use crate::{host, record};
use anyhow::{Context as _, Result};
pub(crate) use context::ServiceArgs;
use context::ServiceContext;
use server::{BenchServer, ServerShape};
use std::process::ExitCode;

/// So many failed rounds in a row end a scenario.
const MAX_FAILURES: u32 = 3;

pub(crate) fn run(args: &ServiceArgs) -> Result<ExitCode> {
    let definitions = definition::lab(args.definitions.as_deref())?;
    let mut context = ServiceContext {
        args,
        printer: RecordPrinter::new(args.icount),
    };
    let place = if args.icount {
        record::COUNTED
    } else {
        record::UNCOUNTED
    };
    let machine = host::description(place, &args.dist.join("hatchery"), &args.commit)?;
    say(&format!("machine: {}", serde_json::to_string(&machine)?));
    let rounds = |s: &LabScenario| if args.icount { s.samples } else { s.wall };
    let named = |s: &LabScenario| args.only.contains(&s.name) || args.only.contains(&s.group);
    let wanted = |s: &&LabScenario| rounds(s) > 0 && (args.only.is_empty() || named(s));
    let scenarios: Vec<&LabScenario> = definitions.scenario.iter().filter(wanted).collect();
    for group in scenarios.chunk_by(|a, b| a.group == b.group) {
        let group: Vec<_> = group.iter().map(|s| (*s, rounds(s))).collect();
        run_group(&mut context, &group);
    }
    Ok(ExitCode::SUCCESS)
}

/// A scenario and how it goes.
struct ScenarioTurn<'a> {
    scenario: &'a LabScenario,
    rounds: u32,
    failures: u32,
}

/// Lets scenarios take turns until each has had its rounds.
fn run_group(context: &mut ServiceContext<'_>, group: &[(&LabScenario, u32)]) {
    let turn = |(scenario, rounds): &(&'_ LabScenario, u32)| {
        eprintln!("{}: {} ({rounds} rounds)", scenario.name, scenario.does);
    };
    group.iter().for_each(turn);
    let mut turns: Vec<_> = group
        .iter()
        .map(|(scenario, rounds)| ScenarioTurn {
            scenario,
            rounds: *rounds,
            failures: 0,
        })
        .collect();
    let mut servers = ServerSet::default();
    let most = turns.iter().map(|t| t.rounds).max().unwrap_or(0);
    for round in 0..most {
        for turn in &mut turns {
            if round >= turn.rounds || turn.failures >= MAX_FAILURES {
                continue;
            }
            let scenario = turn.scenario;
            // Some take minutes where instructions are emulated one by one.
            eprintln!("  {}, round {} of {most}", scenario.name, round + 1);
            let done = one_round(context, scenario, &mut servers);
            match done {
                Ok(()) => turn.failures = 0,
                Err(error) => {
                    // What became of the server is not known, so the next round has another.
                    servers.end(scenario.wanted(context.args.stand_ins));
                    turn.failures += 1;
                    context.keep(&scenario.name, Err(error));
                }
            }
        }
    }
}

fn one_round(
    context: &mut ServiceContext<'_>,
    scenario: &LabScenario,
    servers: &mut ServerSet,
) -> Result<()> {
    let wanted = scenario.wanted(context.args.stand_ins);
    let server = servers.get(context, wanted)?;
    let name = &scenario.name;
    match &scenario.kind {
        LabKind::Create { clients, exec } => create::round(context, name, server, *clients, *exec),
        LabKind::Counts => create::counted(context, name, server),
        LabKind::Fork {
            children,
            dirty_mib,
        } => branch::fork(context, name, server, *children, *dirty_mib),
        LabKind::Reset { dirty_mib } => branch::reset(context, name, server, *dirty_mib),
        LabKind::Snapshot { dirty_mib } => branch::snapshot(context, name, server, *dirty_mib),
        LabKind::Touch { mib } => branch::touch(context, name, server, *mib),
        LabKind::Density { steps } => density::ladder(context, name, server, steps),
        LabKind::Cycles { count, clients } => {
            let count = context.args.cycles.unwrap_or(*count);
            cycles::cycles(context, name, server, count, *clients)
        }
    }
}

impl LabScenario {
    /// The server that it asks.
    fn wanted(&self, stand_ins: bool) -> ServerShape {
        ServerShape {
            pool: self.pool,
            machines: self.machines,
            stand_ins,
        }
    }
}

/// The servers of a group.
#[derive(Default)]
struct ServerSet {
    running: Vec<(ServerShape, BenchServer)>,
}

impl ServerSet {
    fn get(&mut self, context: &ServiceContext<'_>, wanted: ServerShape) -> Result<&BenchServer> {
        if !self.running.iter().any(|(w, _)| *w == wanted) {
            eprintln!(
                "  a server with {} warm VMs of {} machines",
                wanted.pool, wanted.machines
            );
            let server = BenchServer::start(&context.args.dist, wanted, context.patience())?;
            self.running.push((wanted, server));
        }
        let found = self.running.iter().find(|(w, _)| *w == wanted);
        found.map(|(_, server)| server).context("No server")
    }

    fn end(&mut self, wanted: ServerShape) {
        self.running.retain(|(w, _)| *w != wanted);
    }
}
