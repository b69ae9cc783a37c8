//! What was measured, for people: one Markdown page and one HTML page with plots, made of the raw
//! records and nothing else.

mod density;
mod phases;
mod plot;
mod table;

use crate::definition;
use crate::host::{self, HostDescription};
use crate::output::say;
use crate::record::{self, COUNTED, UNCOUNTED};
use crate::statistics::Summary;
use crate::targets::{self, JudgedTarget};
use anyhow::{Context, Result, ensure};
use plot::escape;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::{FigureTable, TableRows, tables};

/// Fewer samples make no curve.
const LEAST_FOR_PLOT: u64 = 20;
/// Bytes of notes that are read.
const MAX_NOTES: u64 = 64 << 10;
/// What whoever reads the figures should know about whoever made them.
const BIAS: [&str; 10] = [
    "We wrote both the program and its benchmark, and looked at these figures while we wrote the \
     program. \
     Scenarios that we did not think of are not here.",
    "Places are never mixed. \"baseline\" is real time of bare guests that run a few instructions \
     on this \
     machine's own KVM: it has no Linux guest, and other load on the machine is in it. \"lab\" \
     counts \
     instructions of an emulated host: an instruction is not a nanosecond, caches and memory do \
     not exist \
     there, and exits cost other amounts than on a processor.",
    "\"lab-wall\" is an ordinary emulated host, 10 to 50 times slower than hardware: its times \
     are shown as \
     ratios to one client's creation and first command from a full pool there, and mean nothing \
     else.",
    "The emulator (QEMU, software) loses a guest now and then, which is a failed sample here. \
     It has one \
     processor where it counts: 50 clients at once queue, so read the work of each, not the \
     latency.",
    "The peers that we run are QEMU 7.2's microvm and Firecracker v1.12.1, the newest that a \
     package registry \
     carries: with our kernel, agent and disk, without its jailer, its memory file in memory. The \
     lab's processor \
     has no XSAVE, so Firecracker's write of XCR0 is answered by a filter. Cloud Hypervisor is \
     not at hand.",
    "A pool moves cost out of sight, not out of the world: what ending a sandbox and building the \
     next warm VM \
     take is in every `-rounds` as `end_and_refill_each`.",
    "Peers' figures in the table of targets are their own publications, on their machines, with \
     their \
     definitions. Only where a scenario names another engine was it run by us, beside ours.",
    "A copy's first command is one that the template's machine had run before it was saved, so its \
     program is in the guest's page cache. A first command that reads new files is slower.",
    "Warm VMs come with what a trial copy wrote. Memory is counted after one command; a sandbox \
     that works \
     has more.",
    "Percentiles are nearest rank: values that were measured. Of ten samples the 99th percentile \
     is the \
     largest. Samples that failed are counted and have no value.",
];

#[derive(clap::Args)]
pub(crate) struct ReportArgs {
    /// The folder with the raw records; the pages are written into it
    #[arg(long)]
    results: PathBuf,
    /// A folder of definitions instead of our own
    #[arg(long)]
    definitions: Option<PathBuf>,
}

pub(crate) fn run(args: &ReportArgs) -> Result<ExitCode> {
    let records = record::read_folder(&args.results)?;
    let folder = args.results.display();
    ensure!(
        !records.is_empty(),
        "There are no records in {folder}: run a bench first"
    );
    let targets = definition::targets(args.definitions.as_deref())?;
    let judged = targets::judge(&targets.target, &records);
    let page = ReportPage {
        machines: host::descriptions(&args.results)?,
        summary: targets::summary(&judged, &records),
        notes: notes(&args.results)?,
        targets: judged,
        tables: tables(&records),
    };
    for (name, text) in [("report.md", page.markdown()), ("report.html", page.html())] {
        let path = args.results.join(name);
        std::fs::write(&path, text).with_context(|| format!("Writing {}", path.display()))?;
        say(&format!("wrote {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What whoever ran it says about the run, such as parts that were run again; a line each.
fn notes(results: &Path) -> Result<Vec<String>> {
    let path = results.join("notes.txt");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut text = String::new();
    let file = File::open(&path).with_context(|| format!("Opening {}", path.display()))?;
    file.take(MAX_NOTES).read_to_string(&mut text)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A report's parts, before they are text of one kind.
struct ReportPage {
    machines: Vec<HostDescription>,
    targets: Vec<JudgedTarget>,
    /// How many targets are met, and which are not.
    summary: Vec<String>,
    notes: Vec<String>,
    tables: Vec<FigureTable>,
}

impl ReportPage {
    fn machine_rows(&self) -> TableRows {
        let row = |m: &HostDescription| {
            let virtualization = if m.hardware_virtualization {
                "hardware"
            } else {
                "software"
            };
            vec![
                m.place.clone(),
                m.date.clone(),
                m.commit.clone(),
                format!("{} × {}", m.cpus, m.cpu),
                format!("{} MiB", m.memory_kib >> 10),
                m.kernel.clone(),
                virtualization.into(),
                m.load.clone(),
            ]
        };
        self.machines.iter().map(row).collect()
    }

    fn target_rows(&self) -> TableRows {
        let row = |judged: &JudgedTarget| {
            let target = &judged.target;
            let relation = if target.at_least { "≥" } else { "≤" };
            vec![
                target.place.clone(),
                target.what.clone(),
                judged.figure(),
                format!("{relation} {}", judged.limit()),
                judged.ratio().unwrap_or_default(),
                judged.word(),
                target.peer.clone(),
            ]
        };
        self.targets.iter().map(row).collect()
    }

    fn markdown(&self) -> String {
        let mut text = String::from("# What was measured\n\n");
        text.push_str(&markdown_table(&MACHINE, &self.machine_rows()));
        text.push_str("\n## Targets\n\n");
        text.push_str(&markdown_table(&TARGET, &self.target_rows()));
        for line in &self.summary {
            let _ = write!(text, "\n{line}\n");
        }
        if !self.notes.is_empty() {
            text.push_str("\n## Notes\n\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text.push_str("\n## Figures\n");
        for table in &self.tables {
            let _ = write!(text, "\n### {}\n\n", table.title());
            text.push_str(&markdown_table(&VALUE, &table.rows()));
        }
        text.push_str("\n## Our bias\n\n");
        for word in BIAS {
            let _ = writeln!(text, "- {word}");
        }
        text
    }

    fn html(&self) -> String {
        let mut text = String::from(HEAD);
        text.push_str("<h1>What was measured</h1>\n");
        text.push_str(&html_table(&MACHINE, &self.machine_rows()));
        text.push_str("<h2>Targets</h2>\n");
        text.push_str(&html_table(&TARGET, &self.target_rows()));
        for line in &self.summary {
            let _ = writeln!(text, "<p>{}</p>", escape(line));
        }
        if !self.notes.is_empty() {
            text.push_str("<h2>Notes</h2>\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "<p>{}</p>", escape(note));
        }
        for (title, plot) in [
            (
                "Steps of a creation, medians, counted",
                phases::bars(&self.tables, COUNTED),
            ),
            ("Memory of many", density::curve(&self.tables, UNCOUNTED)),
        ] {
            if !plot.is_empty() {
                let _ = writeln!(text, "<h2>{title}</h2>\n{plot}");
            }
        }
        text.push_str("<h2>Figures</h2>\n");
        for table in &self.tables {
            let _ = writeln!(text, "<h3>{}</h3>", escape(&table.title()));
            text.push_str(&html_table(&VALUE, &table.rows()));
            let timed = |(name, s): &&(String, Summary)| {
                let unit = name.ends_with("_ns") || name.ends_with("_insns");
                unit && !name.starts_with("step_")
                    && table.place != UNCOUNTED
                    && s.count() >= LEAST_FOR_PLOT
            };
            for (name, summary) in table.values.iter().filter(timed) {
                text.push_str(&plot::distribution(name, summary));
            }
        }
        text.push_str("<h2>Our bias</h2>\n<ul>\n");
        for word in BIAS {
            let _ = writeln!(text, "<li>{}</li>", escape(word));
        }
        text.push_str("</ul>\n");
        text
    }
}

const MACHINE: [&str; 8] = [
    "place",
    "date",
    "commit",
    "processors",
    "memory",
    "kernel",
    "virtualization",
    "load",
];
const TARGET: [&str; 7] = [
    "place",
    "what",
    "figure",
    "target",
    "ratio",
    "",
    "best peer",
];
const VALUE: [&str; 8] = [
    "value",
    "good/tried",
    "min",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
];
const HEAD: &str = "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Hatchery: what was \
    measured</title>\n\
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.2em .7em;\
text-align:left;vertical-align:top}svg{margin:.5em 1em .5em 0}</style>\n";

fn markdown_table(head: &[&str], rows: &TableRows) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head.iter().map(|c| (*c).to_owned()).collect());
    text.push_str(&line(vec!["---".into(); head.len()]));
    for row in rows {
        text.push_str(&line(row.iter().map(|c| c.replace('|', "\\|")).collect()));
    }
    text
}

fn html_table(head: &[&str], rows: &TableRows) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        let cell = |c: &String| format!("<{tag}>{}</{tag}>", escape(c));
        cells.iter().map(cell).collect()
    };
    let head: Vec<_> = head.iter().map(|c| (*c).to_owned()).collect();
    let mut text = format!("<table><tr>{}</tr>\n", cells("th", &head));
    for row in rows {
        let _ = writeln!(text, "<tr>{}</tr>", cells("td", row));
    }
    text.push_str("</table>\n");
    text
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::record::{BASELINE, RecordFile, Sample};
    use crate::targets::human;

    #[test]
    fn both_pages_say_what_the_records_say() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = RecordFile::create(folder.path(), "baseline", BASELINE).unwrap();
        for n in 1..=30 {
            let sample = Sample::new("x", &[("claim_ns", n * 1000), ("a<b", n)]);
            recorder.keep("claim", "hatchery", Ok(sample)).unwrap();
        }
        let failed = Err(anyhow::anyhow!("no"));
        recorder.keep("claim", "hatchery", failed).unwrap();
        let note = "wall-idle: run again, because its lab failed: a<c";
        std::fs::write(folder.path().join("notes.txt"), note).unwrap();
        let args = ReportArgs {
            results: folder.path().into(),
            definitions: None,
        };
        run(&args).unwrap();
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let (markdown, html) = (read("report.md"), read("report.html"));
        let p50 = human("claim_ns", 15_000);
        for text in [&markdown, &html] {
            assert!(text.contains("30/31") && text.contains(&p50), "{text}");
            assert!(
                text.contains("not measured"),
                "targets without figures are in it"
            );
            let lost = "failed samples: baseline claim (hatchery) 1 of 31";
            assert!(text.contains(lost), "{text}");
        }
        assert!(html.contains("<svg") && html.contains("a&lt;b") && !html.contains("a<b"));
        assert!(markdown.contains(note) && html.contains("lab failed: a&lt;c"));
    }

    #[test]
    fn an_ordinary_labs_times_are_ratios_and_steps_and_density_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let mut wall = RecordFile::create(folder.path(), "wall", UNCOUNTED).unwrap();
        let base = Sample::new("x", &[("first_exec_ns", 2_000)]);
        wall.keep("create-warm-c1", "hatchery", Ok(base)).unwrap();
        let other = Sample::new("x", &[("fork_ns", 5_000)]);
        wall.keep("fork-1", "hatchery", Ok(other)).unwrap();
        let mut lab = RecordFile::create(folder.path(), "lab", COUNTED).unwrap();
        let steps = [("step_claim_insns", 7_000_000), ("exec_insns", 3_000_000)];
        let sample = Sample::new("x", &steps);
        lab.keep("create-warm-c1", "hatchery", Ok(sample)).unwrap();
        for clones in [50, 100] {
            let sample = Sample::new("x", &[("clones", clones), ("clone_kib", 2_048)]);
            let name = format!("density-{clones}");
            wall.keep(&name, "hatchery", Ok(sample)).unwrap();
        }
        let args = ReportArgs {
            results: folder.path().into(),
            definitions: None,
        };
        run(&args).unwrap();
        let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(
            html.contains("2.500 ×") && !html.contains("0.005 ms"),
            "{html}"
        );
        assert!(html.contains("claim 7.000 M instructions"), "{html}");
        assert!(html.contains("aria-label=\"density\""), "{html}");
    }

    #[test]
    fn without_records_there_is_no_report() {
        let folder = tempfile::tempdir().unwrap();
        let args = ReportArgs {
            results: folder.path().into(),
            definitions: None,
        };
        run(&args).unwrap_err();
    }
}
