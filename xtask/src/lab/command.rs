//! `cargo xtask lab …`.

use super::bochs::MAX_MEMORY_MIB;
use super::client::{CommandControl, OutputStream};
use super::intel_model::IntelModel;
use super::package::{AMD, LabKernel};
use super::qemu_program::QemuProgram;
use super::state::LabPlace;
use super::{Lab, LabOptions, agent, bring, emulator, keeper};
use crate::dist::Dist;
use crate::service;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::io::{IsTerminal, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Instant;

/// Arguments of `lab`.
#[derive(clap::Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    verb: LabVerb,
}

#[derive(Subcommand)]
enum LabVerb {
    /// Fetch the lab's kernel and its emulator, so that starting is quick
    Build,
    /// Start the lab in the background; it keeps running until `stop`
    Start(StartArgs),
    /// Run a command in the lab: input, output, signals and exit status are passed through
    Exec(ExecArgs),
    /// Open a shell in the lab
    Shell(LabName),
    /// Copy files into the lab; a DEST that ends in `/` is a folder
    Push(PushArgs),
    /// Build the programs and copy them to `/opt/hatchery` in the lab
    Install(LabName),
    /// Say whether the lab runs, and with what
    Status(LabName),
    /// Print the lab's console and its kernel's messages
    Logs(LabName),
    /// End the lab
    Stop(LabName),
    /// Forward the lab's ports and keep its clock, for as long as it runs (started with it)
    #[command(hide = true)]
    Keep(LabName),
    /// Serve commands (inside the lab)
    #[command(hide = true)]
    Agent,
    /// Copy the ranges of a file that standard input lists (inside the lab)
    #[command(hide = true)]
    Copy {
        /// The file
        from: PathBuf,
        /// The copy
        to: PathBuf,
    },
}

#[derive(clap::Args)]
struct LabName {
    /// Which lab
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(clap::Args)]
struct StartArgs {
    /// Which lab; `icount` with --icount, `intel` with --intel, else `lab`
    #[arg(long)]
    name: Option<String>,
    /// One processor whose clock counts instructions (1 ns each), and idle time is skipped
    #[arg(long)]
    icount: bool,
    /// An Intel processor, emulated by Bochs: slower, one at a time, at most 2048 MiB
    #[arg(
        long,
        value_enum,
        value_name = "MODEL",
        num_args = 0..=1,
        default_missing_value = "icelake",
        conflicts_with = "icount",
    )]
    intel: Option<IntelModel>,
    /// Memory, in MiB: 8192, or 2048 with --intel
    #[arg(long, value_parser = clap::value_parser!(u32).range(512..))]
    memory: Option<u32>,
    /// Forward a port of 127.0.0.1 to a port of the lab
    #[arg(long, value_name = "HOST:LAB", value_parser = forward)]
    forward: Vec<(u16, u16)>,
}

#[derive(clap::Args)]
struct ExecArgs {
    #[command(flatten)]
    name: LabName,
    /// Set a variable
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Working directory
    #[arg(long)]
    cwd: Option<String>,
    /// Program and arguments
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    argv: Vec<String>,
}

#[derive(clap::Args)]
struct PushArgs {
    #[command(flatten)]
    name: LabName,
    /// Files, then the place for them in the lab
    #[arg(required = true, num_args = 2.., value_name = "FILE… DEST")]
    paths: Vec<PathBuf>,
}

/// Runs a subcommand.
pub(crate) fn run(args: &LabArgs) -> Result<ExitCode> {
    match &args.verb {
        LabVerb::Build => build()?,
        LabVerb::Start(args) => start(args)?,
        LabVerb::Exec(args) => return exec(args),
        LabVerb::Shell(name) => return shell(name),
        LabVerb::Push(args) => push(args)?,
        LabVerb::Install(name) => install(name)?,
        LabVerb::Status(name) => return status(name),
        LabVerb::Logs(name) => return logs(name),
        LabVerb::Stop(name) => stop(name)?,
        LabVerb::Keep(name) => keeper::keep(&name.name)?,
        LabVerb::Agent => agent::serve()?,
        LabVerb::Copy { from, to } => bring::copy(from, to, std::io::stdin().lock())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn build() -> Result<()> {
    let kernel = LabKernel::ensure(AMD)?;
    QemuProgram::ensure()?;
    eprintln!("lab: kernel {} is ready", kernel.release);
    Ok(())
}

fn start(args: &StartArgs) -> Result<()> {
    let begin = Instant::now();
    let mut options = match args.intel {
        Some(model) => LabOptions::intel(model),
        None if args.icount => LabOptions::counting(),
        None => LabOptions::default(),
    };
    if args.intel.is_some() && args.memory.is_some_and(|memory| memory > MAX_MEMORY_MIB) {
        bail!("Bochs gives a machine at most {MAX_MEMORY_MIB} MiB");
    }
    options.name = args.name.clone().unwrap_or(options.name);
    options.memory_mib = args.memory.unwrap_or(options.memory_mib);
    options.forwards.clone_from(&args.forward);
    let lab = Lab::ensure(&options)?;
    if lab.fresh {
        eprintln!(
            "lab: {:?} is up after {:.1} s",
            options.name,
            begin.elapsed().as_secs_f64()
        );
    } else {
        eprintln!("lab: {:?} runs already", options.name);
    }
    Ok(())
}

fn find(name: &LabName) -> Result<Lab> {
    Lab::running(&name.name)?.with_context(|| {
        format!(
            "No lab {:?} runs: start it with `cargo xtask lab start`",
            name.name
        )
    })
}

fn exec(args: &ExecArgs) -> Result<ExitCode> {
    let lab = find(&args.name)?;
    let argv: Vec<_> = args.argv.iter().map(String::as_str).collect();
    let mut request = lab.request(&argv);
    request.env.clone_from(&args.env);
    request.cwd.clone_from(&args.cwd);
    let running = lab.start(&request)?;
    let control = running.control();
    pass_signals(&control)?;
    std::thread::spawn(move || control.feed(std::io::stdin().lock()));
    running.wait(pass_output).map(exit_code)
}

fn shell(name: &LabName) -> Result<ExitCode> {
    let lab = find(name)?;
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("`lab shell` needs a terminal; use `lab exec -- sh` for scripts");
    }
    let mut request = lab.request(&["/bin/sh", "-l"]);
    let size = rustix::termios::tcgetwinsize(&stdin)?;
    request.terminal = Some((size.ws_row, size.ws_col));
    let term = std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned());
    request.env = vec![
        ("TERM".to_owned(), term),
        ("PS1".to_owned(), "lab:\\w# ".to_owned()),
    ];
    let running = lab.start(&request)?;
    let control = running.control();
    let raw = RawTerminal::enter()?;
    pass_sizes(&control)?;
    std::thread::spawn(move || control.feed(std::io::stdin().lock()));
    let status = running.wait(pass_output);
    drop(raw);
    status.map(exit_code)
}

/// The terminal in raw mode; as it was when dropped.
struct RawTerminal(rustix::termios::Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = rustix::termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let now = rustix::termios::OptionalActions::Now;
        let _ = rustix::termios::tcsetattr(std::io::stdin(), now, &self.0);
    }
}

/// Hands the usual ending signals on to the command instead of ending this program.
fn pass_signals(control: &CommandControl) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let control = control.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let _ = u8::try_from(signal).map(|number| control.signal(number));
        }
    });
    Ok(())
}

/// Hands changes of the terminal's size on.
fn pass_sizes(control: &CommandControl) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGWINCH])?;
    let control = control.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
                let _ = control.resize(size.ws_row, size.ws_col);
            }
        }
    });
    Ok(())
}

/// Writes a command's output to this program's.
fn pass_output(stream: OutputStream, bytes: &[u8]) -> Result<()> {
    fn put(mut to: impl Write, bytes: &[u8]) -> std::io::Result<()> {
        to.write_all(bytes)?;
        to.flush()
    }
    match stream {
        OutputStream::Stdout => put(std::io::stdout().lock(), bytes),
        OutputStream::Stderr => put(std::io::stderr().lock(), bytes),
    }
    .context("Passing on output of the lab")
}

/// As a shell reports it: 128 and the number for a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(u8::MAX),
    )
}

fn push(args: &PushArgs) -> Result<()> {
    let lab = find(&args.name)?;
    let Some((dest, files)) = args.paths.split_last() else {
        bail!("Nothing to copy")
    };
    let dest = dest.to_str().context("DEST must be plain text")?;
    let folder = dest.ends_with('/');
    if files.len() > 1 && !folder {
        bail!("Several files need a folder: end {dest} with a `/`");
    }
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no plain name", file.display()))?;
        let to = if folder {
            format!("{dest}{name}")
        } else {
            dest.to_owned()
        };
        copy(&lab, file, &to)?;
    }
    Ok(())
}

/// Copies one file with its permissions; whoever runs the old one keeps it.
fn copy(lab: &Lab, file: &Path, to: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    const SCRIPT: &str = r#"mkdir -p "$(dirname "$2")" && cat > "$2.new" && chmod "$1" "$2.new" && mv "$2.new" "$2""#;
    let content =
        std::fs::File::open(file).with_context(|| format!("Opening {}", file.display()))?;
    let metadata = content.metadata()?;
    if !metadata.is_file() {
        bail!(
            "{} is not a plain file; pack a folder with `tar` first",
            file.display()
        );
    }
    let mode = format!("{:o}", metadata.permissions().mode() & 0o777);
    let running = lab.spawn(&["sh", "-c", SCRIPT, "push", &mode, to])?;
    let control = running.control();
    let feeder = std::thread::spawn(move || control.feed(content));
    let mut said = Vec::new();
    let status = running.wait(|_, bytes| {
        said.extend_from_slice(bytes);
        Ok(())
    })?;
    let fed = feeder
        .join()
        .ok()
        .context("The thread that reads the file panicked")?;
    if !status.success() {
        bail!(
            "Copying {} to {to}: {}",
            file.display(),
            String::from_utf8_lossy(&said).trim()
        );
    }
    fed.with_context(|| format!("Copying {}", file.display()))
}

fn install(name: &LabName) -> Result<()> {
    let lab = find(name)?;
    let dist = Dist::ensure()?;
    let place = service::install_in_lab(&lab, &dist)?;
    if lab.intel_model().is_some() {
        // Its disk is as it was when the lab started.
        for program in service::PROGRAMS {
            copy(
                &lab,
                &dist.dir.join(program),
                &format!("{}/{program}", place.display()),
            )?;
        }
    }
    eprintln!("lab: the programs are in {}", place.display());
    Ok(())
}

fn status(name: &LabName) -> Result<ExitCode> {
    let Some(lab) = Lab::running(&name.name)? else {
        println(&format!("{}: not running", name.name))?;
        return Ok(ExitCode::FAILURE);
    };
    let pid = lab.process.as_raw_nonzero();
    let mode = if lab.state.icount {
        "counting instructions"
    } else {
        "in real time"
    };
    let processor = lab.state.intel.map_or("AMD".into(), |m| m.to_string());
    println(&format!(
        "{}: running, process {pid}, {processor}, {mode}, {} MiB",
        name.name, lab.state.memory_mib
    ))?;
    if !lab.state.icount {
        let clock = keeper::look(&lab.agent()?)?;
        let ms = |ns: i64| std::time::Duration::from_nanos(ns.unsigned_abs()).as_secs_f64() * 1e3;
        let sign = if clock.offset_ns < 0 { '-' } else { '+' };
        println(&format!(
            "  its clock beside this machine's: {sign}{:.1} ms, give or take {:.1} ms",
            ms(clock.offset_ns),
            ms(clock.error_ns)
        ))?;
    }
    for forward in &lab.state.forwards {
        println(&format!(
            "  127.0.0.1:{} -> lab port {}",
            forward.host, forward.lab
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(name: &LabName) -> Result<ExitCode> {
    println(&LabPlace::new(&name.name)?.console_tail(usize::MAX))?;
    if let Some(lab) = Lab::running(&name.name)? {
        println(&String::from_utf8_lossy(&lab.exec(&["dmesg"])?.stdout))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stop(name: &LabName) -> Result<()> {
    let place = LabPlace::new(&name.name)?;
    if emulator::process(&place).is_none() {
        eprintln!("lab: {:?} does not run", name.name);
        return Ok(());
    }
    let _guard = place.lock()?;
    emulator::stop(&place)
}

fn println(line: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", line.trim_end()).context("Writing to standard output")
}

fn forward(text: &str) -> Result<(u16, u16), String> {
    let parse = |(host, lab): (&str, &str)| Some((host.parse().ok()?, lab.parse().ok()?));
    let pair = text
        .split_once(':')
        .and_then(parse)
        .filter(|(host, lab)| *host > 0 && *lab > 0);
    pair.ok_or_else(|| "expected two port numbers, as in 3000:3000".to_owned())
}

fn variable(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
