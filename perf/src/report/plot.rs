//! A distribution as a picture: how many samples took at most how long.

use crate::statistics::Summary;
use crate::targets::human;
use std::fmt::Write as _;

const WIDTH: u64 = 480;
const HEIGHT: u64 = 180;
/// Room for words on the left and below.
const LEFT: u64 = 45;
const BELOW: u64 = 40;
/// Most points of a curve.
const POINTS: u64 = 400;

/// The cumulative distribution from 0 to the 99th percentile, as SVG; what is above is in the
/// table.
pub(super) fn distribution(name: &str, summary: &Summary) -> String {
    let count = summary.count();
    let shown = (count * 99).div_ceil(100).max(1);
    let at = |rank: u64| {
        let index = usize::try_from(rank.saturating_sub(1)).unwrap_or(0);
        summary.sorted.get(index).copied().unwrap_or(0)
    };
    let most = at(shown).max(1);
    let x = |value: u64| {
        let scaled = u128::from(value) * u128::from(WIDTH) / u128::from(most);
        LEFT + u64::try_from(scaled).unwrap_or(WIDTH)
    };
    let y = |rank: u64| HEIGHT - rank * HEIGHT / count.max(1) + 10;
    let steps = shown.min(POINTS);
    let mut curve = format!("M{LEFT},{}", y(0));
    for step in 1..=steps {
        let rank = shown * step / steps;
        let _ = write!(curve, " L{},{}", x(at(rank)), y(rank));
    }
    let (total, tall) = (WIDTH + LEFT + 70, HEIGHT + BELOW);
    let (end, bottom, words) = (LEFT + WIDTH, y(0), y(0) + 18);
    let mut text = format!(
        "<svg width=\"{total}\" height=\"{tall}\" font-size=\"12\" role=\"img\" \
         aria-label=\"{name}\">"
    );
    for (rank, label) in [(0, "0 %"), (count / 2, "50 %"), (count, "100 %")] {
        let y = y(rank);
        let _ = write!(
            text,
            "<path d=\"M{LEFT},{y} H{end}\" stroke=\"#ddd\"/><text x=\"0\" y=\"{}\">{label}</text>",
            y + 4
        );
    }
    let _ = writeln!(
        text,
        "<path d=\"{curve}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>\
         <text x=\"{LEFT}\" y=\"{words}\">0</text>\
         <text x=\"{}\" y=\"{words}\">{name}</text>\
         <text x=\"{end}\" y=\"{words}\" text-anchor=\"middle\">{}</text>\
         <path d=\"M{LEFT},{bottom} H{end}\" stroke=\"#888\"/></svg>",
        LEFT + WIDTH / 2 - 30,
        human(name, most)
    );
    text
}

/// Text that is none of HTML's own.
pub(super) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}
