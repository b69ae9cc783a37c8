//! Where the time of a creation goes: a bar for each scenario and engine, a piece for each step.

use super::plot::escape;
use super::table::FigureTable;
use crate::statistics::Statistic;
use crate::targets::human;
use std::fmt::Write as _;

/// The steps that are known, in the order in which they happen, and their colours.
const STEPS: [(&str, &str); 13] = [
    ("request", "#888"),
    ("wait", "#bbb"),
    ("slot", "#ccc"),
    ("start", "#a33"),
    ("spawn", "#c60"),
    ("configure", "#e90"),
    ("build", "#e90"),
    ("load", "#fc3"),
    ("hello", "#993"),
    ("greet", "#693"),
    ("claim", "#3a6"),
    ("identity", "#06c"),
    ("exec", "#539"),
];
const WIDTH: u64 = 620;
const LEFT: u64 = 260;
const ROW: u64 = 24;

/// One bar: its name, and its pieces' places in [`STEPS`] with their figures.
type PhaseBar = (String, Vec<(usize, u64)>);

/// The bars of a place, as SVG; nothing if no scenario there has steps.
pub(super) fn bars(tables: &[FigureTable], place: &str) -> String {
    let bars: Vec<PhaseBar> = tables
        .iter()
        .filter(|t| t.place == place)
        .filter_map(bar)
        .collect();
    let most = bars
        .iter()
        .map(|(_, p)| p.iter().map(|(_, v)| v).sum::<u64>())
        .max();
    let Some(most) = most.filter(|most| *most > 0) else {
        return String::new();
    };
    let rows = u64::try_from(bars.len()).unwrap_or(0);
    let (wide, tall) = (LEFT + WIDTH + 180, ROW * (rows + 2));
    let mut text = format!(
        "<svg width=\"{wide}\" height=\"{tall}\" font-size=\"12\" role=\"img\" \
         aria-label=\"steps\">"
    );
    let mut top = 0;
    for (name, pieces) in &bars {
        let words = top + 15;
        let _ = write!(text, "<text x=\"0\" y=\"{words}\">{}</text>", escape(name));
        let mut left = LEFT;
        let mut sum = 0;
        for (step, value) in pieces {
            let scaled = u128::from(*value) * u128::from(WIDTH) / u128::from(most);
            let width = u64::try_from(scaled).unwrap_or(WIDTH);
            let (name, colour) = STEPS[*step];
            let _ = write!(
                text,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"18\" \
                 fill=\"{colour}\"><title>{name} {}</title></rect>",
                human(unit(place), *value)
            );
            left += width;
            sum += value;
        }
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{words}\">{}</text>",
            left + 6,
            human(unit(place), sum)
        );
        top += ROW;
    }
    let mut left = 0;
    for (step, (name, colour)) in STEPS.iter().enumerate() {
        if !bars.iter().any(|(_, p)| p.iter().any(|(s, _)| *s == step)) {
            continue;
        }
        let (square, words) = (top + 10, top + 20);
        let _ = write!(
            text,
            "<rect x=\"{left}\" y=\"{square}\" width=\"11\" height=\"11\" \
             fill=\"{colour}\"/><text x=\"{}\" y=\"{words}\">{name}</text>",
            left + 15
        );
        left += 80;
    }
    text.push_str("</svg>\n");
    text
}

fn unit(place: &str) -> &'static str {
    if place == crate::record::COUNTED {
        "_insns"
    } else {
        "_ns"
    }
}

/// A table's medians of its steps, the command last.
fn bar(table: &FigureTable) -> Option<PhaseBar> {
    let unit = unit(&table.place);
    let piece = |(place, (step, _)): (usize, &(&str, &str))| {
        let names = [format!("step_{step}{unit}"), format!("{step}{unit}")];
        let own = |(name, _): &&(String, crate::statistics::Summary)| {
            *name == names[0] || *step == "exec" && *name == names[1]
        };
        let (_, summary) = table.values.iter().find(own)?;
        Some((place, summary.get(Statistic::P50)?))
    };
    let has_steps = table
        .values
        .iter()
        .any(|(name, _)| name.starts_with("step_"));
    let pieces: Vec<_> = STEPS.iter().enumerate().filter_map(piece).collect();
    let name = match table.scenario.as_str() {
        "versus" => table.engine.clone(),
        // With many clients at once a step is mostly a queue.
        scenario if scenario.ends_with("-c1") => scenario.to_owned(),
        _ => return None,
    };
    has_steps.then_some((name, pieces))
}
