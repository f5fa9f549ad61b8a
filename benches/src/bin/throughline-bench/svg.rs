//! Plots as SVG: bars of medians with whiskers from the least to the most, readable on light and dark pages.

use crate::report::Spread;

/// What a bar stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Floor,
    Peer,
}

/// One bar.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) label: &'static str,
    pub(crate) kind: Kind,
    pub(crate) spread: Spread,
    pub(crate) digits: usize,
}

/// Bars on one scale.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) bars: Vec<Bar>,
}

const WIDTH: f64 = 840.0;
const LABELS: f64 = 290.0;
const NUMBERS: f64 = 70.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 34.0;

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#1f2328}\
.title{font-weight:600;font-size:15px}.panel{font-weight:600}.quiet{fill:#59636e}.number{font-variant-numeric:tabular-nums}\
.ours{fill:#0f7b6c}.floor{fill:#8c959f}.peer{fill:#6e8fc9}.whisker{stroke:#1f2328;stroke-width:1.2;fill:none}.axis{stroke:#d1d9e0}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.ours{fill:#3fc7b0}.floor{fill:#6e7681}\
.peer{fill:#5478b8}.whisker{stroke:#e6edf3}.axis{stroke:#3d444d}}";

/// A plot of panels below each other, each with a scale of its own that begins at zero.
pub(crate) fn plot(title: &str, panels: &[Panel]) -> String {
    let rows: usize = panels.iter().map(|panel| panel.bars.len()).sum();
    let height = 40.0 + panels.len() as f64 * (HEAD + 8.0) + rows as f64 * ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n"
    );
    out += &format!("<text class=\"title\" x=\"12\" y=\"24\">{title}</text>\n");
    let mut y = 40.0;
    for one in panels {
        y = panel(&mut out, one, y);
    }
    out + "</svg>\n"
}

fn panel(out: &mut String, panel: &Panel, top: f64) -> f64 {
    let most = panel.bars.iter().map(|bar| bar.spread.median).fold(0.0, f64::max) * 1.15;
    let scale = (WIDTH - LABELS - NUMBERS) / if most > 0.0 { most } else { 1.0 };
    // One wild round shall not flatten all bars: a whisker that does not fit ends with the plot.
    let at = |value: f64| LABELS + value.min(most) * scale;
    *out += &format!("<text class=\"panel\" x=\"12\" y=\"{:.1}\">{}</text>\n", top + 22.0, panel.title);
    let mut y = top + HEAD;
    *out += &format!(
        "<line class=\"axis\" x1=\"{LABELS}\" x2=\"{LABELS}\" y1=\"{y:.1}\" y2=\"{:.1}\"/>\n",
        y + panel.bars.len() as f64 * ROW
    );
    for bar in &panel.bars {
        let class = match bar.kind {
            Kind::Ours => "ours",
            Kind::Floor => "floor",
            Kind::Peer => "peer",
        };
        let Spread { least, median, most, .. } = bar.spread;
        let middle = y + ROW / 2.0;
        *out += &format!(
            "<text class=\"quiet\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LABELS - 8.0,
            middle + 4.5,
            bar.label
        );
        *out += &format!(
            "<rect class=\"{class}\" x=\"{LABELS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" rx=\"2\"/>\n",
            middle - 7.0,
            at(median) - LABELS
        );
        *out += &format!(
            "<path class=\"whisker\" d=\"M{:.1} {middle:.1}H{:.1}M{:.1} {:.1}v6M{:.1} {:.1}v6\"/>\n",
            at(least),
            at(most),
            at(least),
            middle - 3.0,
            at(most),
            middle - 3.0
        );
        *out += &format!(
            "<text class=\"number\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.*}</text>\n",
            WIDTH - 12.0,
            middle + 4.5,
            bar.digits,
            median
        );
        y += ROW;
    }
    y + 8.0
}
