//! Prometheus' two formats, the text of version 0.0.4 and OpenMetrics 1.0, written line by line. Labels come from the
//! [`table`], so no series can have one that the reference page lacks. Must never decide what is counted.

pub mod table;

use std::fmt::Write as _;

use crate::ids::{SpanId, TraceId};
use crate::metrics::{Bounds, Histogram};
use table::{Metric, Type};

/// Which of the two formats.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Form {
    /// `text/plain; version=0.0.4`.
    #[default]
    Text,
    /// `application/openmetrics-text; version=1.0.0`, which has exemplars.
    OpenMetrics,
}

impl Form {
    /// The value of `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a scraper's `Accept` asks for: OpenMetrics only where it is named, in a version that we speak, and liked
    /// no less than text.
    #[must_use]
    pub fn asked(accept: &str) -> Self {
        let (mut open_metrics, mut text) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0, None);
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                match key.trim() {
                    "q" => quality = crate::decimal::parse(value.trim()).unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let liked = match kind {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0" | "0.0.1")) => {
                    &mut open_metrics
                }
                "text/plain" if matches!(version, None | Some("0.0.4")) => &mut text,
                _ => continue,
            };
            *liked = quality.max(*liked);
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }
}

/// One exchange as an example of what a bucket holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exemplar {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) nanos: u64,
    pub(crate) unix_nanos: u64,
}

/// Text under way.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    form: Form,
}

impl Text {
    /// Nothing yet.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { out: String::new(), form }
    }

    /// Bytes that wait to be taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// What was written since the last time.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// What a metric is; its series follow.
    pub fn head(&mut self, metric: &Metric) {
        let (name, kind) = match (self.form, metric.kind) {
            (Form::Text, Type::Info) => (metric.name, "gauge"),
            (Form::OpenMetrics, Type::Info) => (metric.name.trim_end_matches("_info"), "info"),
            (Form::OpenMetrics, Type::Counter) => (metric.name.trim_end_matches("_total"), "counter"),
            (_, kind) => (metric.name, kind.as_str()),
        };
        let help = metric.help.trim_end_matches('.');
        let _ = writeln!(self.out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    /// One series: the values of the labels in the table's order, empty ones left out.
    pub fn value(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        let labels = label_text(metric, labels);
        self.line(metric.name, "", &labels, value);
    }

    /// One series whose value is no whole number.
    pub fn fraction(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let labels = label_text(metric, labels);
        self.line(metric.name, "", &labels, value);
    }

    /// A metric with one series.
    pub fn single(&mut self, metric: &Metric, value: u64) {
        self.head(metric);
        self.value(metric, &[], value);
    }

    /// The end of everything.
    pub fn end(&mut self) {
        if self.form == Form::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
    }

    pub(crate) fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        bounds: &Bounds,
        histogram: &Histogram,
        exemplar: Option<&Exemplar>,
    ) {
        let exemplar = exemplar.filter(|_| self.form == Form::OpenMetrics);
        let at = exemplar.map(|exemplar| bounds.bucket(exemplar.nanos));
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (place, (count, le)) in
            histogram.buckets.iter().zip(bounds.le.iter().chain([&"+Inf"])).enumerate()
        {
            below += count;
            for part in [name, "_bucket{", labels, comma, "le=\"", le, "\"} "] {
                self.out.push_str(part);
            }
            let _ = write!(self.out, "{below}");
            if let Some(exemplar) = exemplar.filter(|_| at == Some(place)) {
                let Exemplar { trace_id, span_id, nanos, unix_nanos } = exemplar;
                let (seconds, millis) = (unix_nanos / 1_000_000_000, unix_nanos / 1_000_000 % 1000);
                let took = *nanos as f64 / 1e9;
                let _ = write!(
                    self.out,
                    " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {took} {seconds}.{millis:03}"
                );
            }
            self.out.push('\n');
        }
        self.line(name, "_sum", labels, histogram.sum_seconds());
        self.line(name, "_count", labels, below);
    }

    pub(crate) fn line(&mut self, name: &str, end: &str, labels: &str, value: impl std::fmt::Display) {
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        for part in [name, end, open, labels, close] {
            self.out.push_str(part);
        }
        let _ = writeln!(self.out, " {value}");
    }
}

fn label_text(metric: &Metric, values: &[&str]) -> String {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let mut text = String::new();
    for (key, value) in metric.labels.iter().zip(values) {
        label(&mut text, key, value);
    }
    text
}

/// Adds a label, if it has a value. An attribute's key becomes a label's as Prometheus has it: dots become
/// underscores.
pub(crate) fn label(text: &mut String, key: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    if !text.is_empty() {
        text.push(',');
    }
    text.extend(key.chars().map(|c| if matches!(c, '.' | '-') { '_' } else { c }));
    text.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
            q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, expected) in [
            ("", Form::Text),
            ("*/*", Form::Text),
            ("text/html", Form::Text),
            (prometheus, Form::OpenMetrics),
            ("application/openmetrics-text", Form::OpenMetrics),
            ("application/openmetrics-text; version=2.0.0", Form::Text),
            ("application/openmetrics-text;q=0", Form::Text),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.3", Form::Text),
        ] {
            assert_eq!(Form::asked(accept), expected, "{accept}");
        }
    }

    #[test]
    fn label_values_are_escaped_and_empty_ones_left_out() {
        let mut text = String::new();
        for (key, value) in [("a.b", "x\"y\\z\nw"), ("c", ""), ("d", "1")] {
            label(&mut text, key, value);
        }
        assert_eq!(text, "a_b=\"x\\\"y\\\\z\\nw\",d=\"1\"");
    }
}
