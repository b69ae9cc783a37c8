//! What each of many sandboxes takes, over how many there are.

use super::table::FigureTable;
use crate::statistics::Statistic;
use crate::targets::human;
use std::fmt::Write as _;

const WIDTH: u64 = 480;
const HEIGHT: u64 = 180;
const LEFT: u64 = 75;

/// The curve of a place, as SVG; nothing with fewer than two numbers of sandboxes.
pub(super) fn curve(tables: &[FigureTable], place: &str) -> String {
    let get = |table: &FigureTable, name: &str| {
        let found = table.values.iter().find(|(n, _)| n == name);
        found.and_then(|(_, summary)| summary.get(Statistic::P50))
    };
    let ladder = tables
        .iter()
        .filter(|t| t.place == place && t.scenario.starts_with("density-"));
    let mut points: Vec<_> = ladder
        .filter_map(|t| Some((get(t, "clones")?, get(t, "clone_kib")?)))
        .collect();
    points.sort_unstable();
    let [(_, _), .., (widest, _)] = points[..] else {
        return String::new();
    };
    let tallest = points.iter().map(|(_, kib)| *kib).max().unwrap_or(0);
    let most = tallest.max(3_072) * 5 / 4;
    let x = |count: u64| LEFT + count * WIDTH / widest.max(1);
    let y = |kib: u64| HEIGHT + 10 - kib * HEIGHT / most;
    let (wide, tall, end) = (LEFT + WIDTH + 40, HEIGHT + 45, LEFT + WIDTH);
    let mut text = format!(
        "<svg width=\"{wide}\" height=\"{tall}\" font-size=\"12\" role=\"img\" \
         aria-label=\"density\">"
    );
    for (kib, colour) in [(0, "#888"), (3_072, "#c33")] {
        let (line, words) = (y(kib), y(kib) + 4);
        let _ = write!(
            text,
            "<path d=\"M{LEFT},{line} H{end}\" stroke=\"{colour}\"/><text x=\"0\" \
             y=\"{words}\">{}</text>",
            human("_kib", kib)
        );
    }
    let mut path = String::new();
    for (number, (count, kib)) in points.iter().enumerate() {
        let (x, y) = (x(*count), y(*kib));
        let _ = write!(path, "{}{x},{y} ", if number == 0 { "M" } else { "L" });
        let _ = write!(
            text,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"#06c\"/><text x=\"{}\" \
             y=\"{}\">{count}</text>",
            x - 8,
            HEIGHT + 28
        );
    }
    let _ = writeln!(
        text,
        "<path d=\"{path}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/><text x=\"{}\" \
         y=\"{}\">sandboxes at once; MemAvailable of each, and the target</text></svg>",
        LEFT,
        HEIGHT + 42
    );
    text
}
