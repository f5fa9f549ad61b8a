//! Draws one trace as a waterfall: spans in, text out. Reads no clock, terminal or environment.

use std::collections::{BTreeSet, HashMap};

use crate::trace::{Kind, Span, SpanId};

const MARGIN: usize = 2;
/// Columns of the axis and the bars: below the smallest nothing can be read from a bar.
const BAR_MIN: usize = 12;
const BAR_MAX: usize = 60;
/// The narrowest first column, for terminals in which it has to give way to the bars.
const LABEL_MIN: usize = 20;
const STATUS: usize = 3;
const DURATION: usize = 8;
/// The longest error type that is shown in full.
const ERROR_MAX: usize = 20;

const DIM: &str = "2";
const BOLD: &str = "1";
const ERROR: &str = "1;31";
/// Colours are for services, and a queue is none.
const QUEUE: &str = BOLD;
/// Colours of services that read well on light and on dark; red is kept for errors.
const PALETTE: [&str; 6] = ["34", "35", "36", "32", "33", "94"];

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    /// Columns of the terminal.
    pub(crate) width: usize,
    pub(crate) color: bool,
    /// Services in the order of their colours.
    pub(crate) services: &'a [&'a str],
    /// Services known to pass on the trace but not the operation: an operation on one of their
    /// client spans was put there by the sidecar.
    pub(crate) forgetful: &'a [&'a str],
}

/// What the marks mean.
const LEGEND: [&str; 8] = [
    "◀ request received",
    "▶ request sent",
    "◁ message received",
    "▷ message sent",
    "█ at work here",
    "░ waiting for the next hop",
    "┄ in the queue",
    "✗ error",
];

/// The lines that explain the marks, for printing once.
pub(crate) fn legend(look: &Look<'_>) -> String {
    let room = look.width.saturating_sub(MARGIN);
    let mut lines = vec![String::new()];
    for mark in LEGEND {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(mark),
            Some(line) if columns_of(line) + 3 + columns_of(mark) <= room => {
                line.push_str("   ");
                line.push_str(mark);
            }
            Some(_) | None => lines.push(mark.to_owned()),
        }
    }
    let margin = " ".repeat(MARGIN);
    lines.iter().map(|line| format!("{margin}{}\n", look.paint(DIM, line))).collect()
}

/// Draws the spans of one trace; no spans, no text.
pub(crate) fn draw(spans: &[Span], look: &Look<'_>) -> String {
    let rows = nested(spans);
    let Some(first) = rows.first() else { return String::new() };
    let begin = spans.iter().map(|span| span.start_ns).min().unwrap_or_default();
    let end = spans.iter().map(|span| span.end_ns).max().unwrap_or_default();
    let scale = Scale { begin, length: end.saturating_sub(begin) };
    let columns = Columns::fitting(&rows, look.width);

    let mut text = heading(first.span, spans, &scale, look);
    text.push_str(&axis(&scale, &columns, look));
    for row in &rows {
        if let Some(queue) = &row.queue {
            text.push_str(&queue_line(queue, &scale, &columns, look));
        }
        text.push_str(&line(row, &scale, &columns, look));
        if row.orphan {
            text.push_str(&note(row, "33", "? the caller's span was not received", look));
        }
        if look.restored(row.span) {
            text.push_str(&note(row, "3;32", &restoration(row.span), look));
        }
    }
    text
}

impl Look<'_> {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color && !text.trim().is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn hue(&self, service: &str) -> &'static str {
        let known = self.services.iter().position(|name| *name == service);
        let place = known.unwrap_or_else(|| service.bytes().map(usize::from).sum());
        PALETTE.get(place % PALETTE.len()).copied().unwrap_or(BOLD)
    }

    fn restored(&self, span: &Span) -> bool {
        let forgot = self.forgetful.contains(&span.service.as_str());
        forgot && span.kind == Kind::Client && span.operation.is_some()
    }
}

/// A span with the tree lines before it.
struct Row<'a> {
    span: &'a Span,
    /// Tree lines of the row itself.
    branch: String,
    /// Tree lines of what stands below it.
    below: String,
    children: Vec<&'a Span>,
    /// Whether it names a parent that is not in the trace.
    orphan: bool,
    /// Where its message was until it came here.
    queue: Option<Queue<'a>>,
}

/// The way of a message from its producer to a consumer. It is no span: nobody was at work.
struct Queue<'a> {
    topic: &'a str,
    /// Tree lines before it.
    tree: String,
    from_ns: u64,
    to_ns: u64,
}

impl<'a> Queue<'a> {
    fn before(consumer: &Span, producer: &'a Span, tree: String) -> Option<Queue<'a>> {
        if (producer.kind, consumer.kind) != (Kind::Producer, Kind::Consumer) {
            return None;
        }
        let topic = producer.topic.as_deref().unwrap_or_default();
        Some(Queue { topic, tree, from_ns: producer.end_ns, to_ns: consumer.start_ns })
    }

    fn label(&self) -> [String; 2] {
        let space = if self.topic.is_empty() { "" } else { " " };
        [self.tree.clone(), format!("queue{space}{} waited", self.topic)]
    }
}

/// Puts every span under its parent, children by their start. Spans whose parent is not there are
/// roots; so is one of each circle of parents, so that no span is lost.
fn nested(spans: &[Span]) -> Vec<Row<'_>> {
    let known: BTreeSet<SpanId> = spans.iter().map(|span| span.id).collect();
    let mut children: HashMap<SpanId, Vec<&Span>> = HashMap::new();
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by_key(|span| (span.start_ns, std::cmp::Reverse(span.end_ns), span.id));
    for span in &ordered {
        if let Some(parent) = span.parent {
            children.entry(parent).or_default().push(span);
        }
    }
    let rootless = |span: &&&Span| span.parent.is_none_or(|parent| !known.contains(&parent));
    let roots = ordered.iter().filter(rootless).chain(ordered.iter());

    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    for root in roots {
        let mut waiting = vec![(*root, String::new(), String::new(), None)];
        while let Some((span, branch, below, queue)) = waiting.pop() {
            if !seen.insert(span.id) {
                continue;
            }
            let children = children.remove(&span.id).unwrap_or_default();
            for (place, child) in children.iter().enumerate().rev() {
                let last = place + 1 == children.len();
                let (turn, pass) = if last { ("└╴", "  ") } else { ("├╴", "│ ") };
                let queue = Queue::before(child, span, format!("{below}┊ "));
                waiting.push((child, format!("{below}{turn}"), format!("{below}{pass}"), queue));
            }
            let orphan = span.parent.is_some_and(|parent| !known.contains(&parent));
            rows.push(Row { span, branch, below, children, orphan, queue });
        }
    }
    rows
}

/// The trace's time, and where a moment stands on it.
struct Scale {
    begin: u64,
    length: u64,
}

impl Scale {
    /// The column of `moment`, of `columns`.
    fn column(&self, moment: u64, columns: usize) -> usize {
        let passed = u128::from(moment.saturating_sub(self.begin).min(self.length));
        usize::try_from(passed * columns as u128 / u128::from(self.length.max(1))).unwrap_or(columns)
    }

    /// The moment in the middle of a column.
    fn middle(&self, column: usize, columns: usize) -> u64 {
        let passed = u128::from(self.length) * (2 * column as u128 + 1) / (2 * columns.max(1) as u128);
        self.begin.saturating_add(u64::try_from(passed).unwrap_or(self.length))
    }
}

/// Widths of the columns that differ between traces.
struct Columns {
    label: usize,
    bar: usize,
    error: usize,
}

impl Columns {
    fn fitting(rows: &[Row<'_>], width: usize) -> Columns {
        let error = rows.iter().filter_map(|row| row.span.error.as_deref()).map(columns_of).max();
        let error = error.map_or(0, |longest| longest.min(ERROR_MAX) + 4);
        let fixed = MARGIN + 2 + STATUS + 2 + 1 + DURATION + error;
        let free = width.saturating_sub(fixed);
        let queues = rows.iter().filter_map(|row| row.queue.as_ref()).map(|queue| queue.label().concat());
        let labels = rows.iter().map(|row| label(row).concat()).chain(queues);
        let longest = labels.map(|label| columns_of(&label)).max().unwrap_or(0);
        let label = longest.min(free.saturating_sub(BAR_MIN).max(LABEL_MIN));
        Columns { label, bar: free.saturating_sub(label).clamp(BAR_MIN, BAR_MAX), error }
    }
}

fn columns_of(text: &str) -> usize {
    text.chars().count()
}

/// `text` in exactly `columns` columns.
fn fitted(text: &str, columns: usize) -> String {
    if columns_of(text) <= columns {
        return format!("{text:<columns$}");
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn heading(root: &Span, spans: &[Span], scale: &Scale, look: &Look<'_>) -> String {
    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    let errors = spans.iter().filter(|span| span.error.is_some()).count();
    let mark = if errors > 0 { look.paint(ERROR, "✗") } else { look.paint("32", "●") };
    let operation = spans.iter().find_map(|span| span.operation.as_deref());
    let facts = [
        duration(scale.length),
        count(services.len(), "service"),
        count(spans.len(), "span"),
        if errors > 0 { count(errors, "error") } else { "no errors".to_owned() },
    ];
    let facts = facts.join(" · ");
    let name = operation.unwrap_or("no operation");
    let trace = format!("trace {}", root.trace);
    let used = MARGIN + columns_of(name) + 2 + columns_of(&facts);
    let name = look.paint(BOLD, name);
    let separator = if used + 2 + columns_of(&trace) <= look.width { "  " } else { "\n  " };
    format!("{mark} {name}  {facts}{separator}{}\n", look.paint(DIM, &trace))
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The times at the left end, the middle and the right end of the bars.
fn axis(scale: &Scale, columns: &Columns, look: &Look<'_>) -> String {
    let (middle, right) = (duration(scale.length / 2), duration(scale.length));
    let half = columns.bar / 2;
    let room = columns.bar.saturating_sub(half + columns_of(&middle) + columns_of(&right));
    let ticks = if room > 0 {
        format!("{:<half$}{middle}{}{right}", "0", " ".repeat(room))
    } else {
        format!("0{right:>width$}", width = columns.bar.saturating_sub(1))
    };
    let before = " ".repeat(MARGIN + columns.label + 2 + STATUS + 2);
    format!("{before}{}\n", look.paint(DIM, &ticks))
}

/// Tree lines, service, and kind with name: the parts of the first column.
fn label(row: &Row<'_>) -> [String; 3] {
    let mark = match row.span.kind {
        Kind::Server => "◀",
        Kind::Client => "▶",
        Kind::Producer => "▷",
        Kind::Consumer => "◁",
        Kind::Other => "·",
    };
    [row.branch.clone(), row.span.service.clone(), format!(" {mark} {}", row.span.name)]
}

fn line(row: &Row<'_>, scale: &Scale, columns: &Columns, look: &Look<'_>) -> String {
    let span = row.span;
    let failed = span.error.is_some();
    let hue = if failed { ERROR } else { look.hue(&span.service) };
    let status = span.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
    let mut text = " ".repeat(MARGIN);
    text.push_str(&painted_label(row, columns, look));
    text.push_str("  ");
    text.push_str(&look.paint(if failed { ERROR } else { DIM }, &format!("{status:>STATUS$}")));
    text.push_str("  ");
    text.push_str(&look.paint(hue, &bar(row, scale, columns.bar)));
    text.push(' ');
    text.push_str(&format!("{:>DURATION$}", duration(span.end_ns.saturating_sub(span.start_ns))));
    if let Some(error) = &span.error {
        let width = columns.error.saturating_sub(4).min(columns_of(error));
        text.push_str("  ");
        text.push_str(&look.paint(ERROR, &format!("✗ {}", fitted(error, width))));
    }
    text.push('\n');
    text
}

/// The message's wait as a row of its own, between its producer and its consumer.
fn queue_line(queue: &Queue<'_>, scale: &Scale, columns: &Columns, look: &Look<'_>) -> String {
    let [tree, rest] = queue.label();
    let tree = fitted(&tree, columns_of(&tree).min(columns.label));
    let rest = fitted(&rest, columns.label.saturating_sub(columns_of(&tree)));
    let first = scale.column(queue.from_ns, columns.bar);
    let after = scale.column(queue.to_ns, columns.bar).max(first);
    let dots = format!("{}{}", " ".repeat(first), "┄".repeat(after - first));
    format!(
        "{margin}{tree}{rest}  {none:STATUS$}  {dots} {wait:>DURATION$}\n",
        margin = " ".repeat(MARGIN),
        tree = look.paint(DIM, &tree),
        rest = look.paint(QUEUE, &rest),
        none = "",
        dots = look.paint(QUEUE, &fitted(&dots, columns.bar)),
        wait = duration(queue.to_ns.saturating_sub(queue.from_ns)),
    )
}

/// The first column; when it is cut, the cut falls where the text is longest: at the end.
fn painted_label(row: &Row<'_>, columns: &Columns, look: &Look<'_>) -> String {
    let [branch, service, rest] = label(row);
    let mut left = columns.label;
    let mut part = |text: &str, last: bool| {
        let width = if last { left } else { columns_of(text).min(left) };
        left -= width;
        fitted(text, width)
    };
    let (branch, service, rest) = (part(&branch, false), part(&service, false), part(&rest, true));
    let hue = look.hue(&row.span.service);
    format!("{}{}{rest}", look.paint(DIM, &branch), look.paint(hue, &service))
}

/// The span on the time scale: full where it works itself, light where a child of it runs.
fn bar(row: &Row<'_>, scale: &Scale, columns: usize) -> String {
    let first = scale.column(row.span.start_ns, columns).min(columns.saturating_sub(1));
    let after = scale.column(row.span.end_ns, columns).max(first + 1);
    let cell = |column: usize| {
        let moment = scale.middle(column, columns);
        let waits = row.children.iter().any(|child| child.start_ns <= moment && moment < child.end_ns);
        match (column >= first && column < after, waits) {
            (false, _) => ' ',
            (true, true) => '░',
            (true, false) => '█',
        }
    };
    (0..columns).map(cell).collect()
}

fn restoration(span: &Span) -> String {
    let operation = span.operation.as_deref().unwrap_or_default();
    format!("↺ operation {operation} restored by the sidecar: {} passed on only traceparent", span.service)
}

/// A line of text under a row, within its tree.
fn note(row: &Row<'_>, color: &str, text: &str, look: &Look<'_>) -> String {
    let tree = format!("{}{}", row.below, if row.children.is_empty() { "  " } else { "│ " });
    let room = look.width.saturating_sub(MARGIN + columns_of(&tree));
    let text = fitted(text, room.min(columns_of(text)));
    format!("{}{}{}\n", " ".repeat(MARGIN), look.paint(DIM, &tree), look.paint(color, &text))
}

/// Nanoseconds with three digits or so, in the unit that suits them.
fn duration(ns: u64) -> String {
    let (whole, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let amount = ns as f64 / whole as f64;
    if amount < 10.0 && unit != "µs" {
        format!("{amount:.2} {unit}")
    } else if amount < 100.0 && unit != "µs" {
        format!("{amount:.1} {unit}")
    } else {
        format!("{amount:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceId;

    const LOOK: Look<'_> =
        Look { width: 100, color: false, services: &["web", "stock"], forgetful: &["stock"] };

    /// A span of `from..to` milliseconds.
    fn span(id: u8, parent: u8, service: &str, kind: Kind, name: &str, time_ms: (u64, u64)) -> Span {
        Span {
            trace: TraceId::parse("4bf92f3577b34da6a3ce929d0e0e4736").unwrap(),
            id: SpanId([id; 8]),
            parent: (parent != 0).then_some(SpanId([parent; 8])),
            service: service.to_owned(),
            kind,
            name: name.to_owned(),
            operation: Some("browse".to_owned()),
            topic: (kind == Kind::Producer).then(|| "order.placed".to_owned()),
            status: Some(200),
            error: None,
            start_ns: time_ms.0 * 1_000_000,
            end_ns: time_ms.1 * 1_000_000,
        }
    }

    fn browse() -> Vec<Span> {
        // In the order of arrival: callees first.
        vec![
            span(5, 4, "warehouse", Kind::Server, "GET /prices", (24, 36)),
            span(3, 2, "stock", Kind::Server, "GET /items", (10, 40)),
            span(4, 3, "stock", Kind::Client, "GET", (20, 38)),
            span(1, 0, "web", Kind::Server, "GET /products", (0, 50)),
            span(2, 1, "web", Kind::Client, "GET", (8, 44)),
        ]
    }

    #[track_caller]
    fn drawn(spans: &[Span], look: &Look<'_>, expected: &str) {
        let text = draw(spans, look);
        let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(trimmed.join("\n"), expected.trim_start_matches('\n').trim_end(), "\n{text}");
    }

    #[test]
    fn spans_are_nested_and_stand_on_one_time_scale() {
        drawn(
            &browse(),
            &LOOK,
            "
● browse  50.0 ms · 3 services · 5 spans · no errors  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                        0                        25.0 ms            50.0 ms
  web ◀ GET /products              200  ████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░██████  50.0 ms
  └╴web ▶ GET                      200          ██░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░███         36.0 ms
    └╴stock ◀ GET /items           200            ██████████░░░░░░░░░░░░░░░░░░░█             30.0 ms
      └╴stock ▶ GET                200                      ████░░░░░░░░░░░░░█               18.0 ms
        │ ↺ operation browse restored by the sidecar: stock passed on only traceparent
        └╴warehouse ◀ GET /prices  200                          ████████████                 12.0 ms
",
        );
    }

    #[test]
    fn errors_are_marked_with_their_type() {
        let mut spans = browse();
        spans[0].status = Some(503);
        spans[0].error = Some("503".to_owned());
        spans[2].status = None;
        spans[2].error = Some("connection_refused".to_owned());
        drawn(
            &spans,
            &LOOK,
            "
✗ browse  50.0 ms · 3 services · 5 spans · 2 errors  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                        0             25.0 ms 50.0 ms
  web ◀ GET /products              200  █████░░░░░░░░░░░░░░░░░░░░░███  50.0 ms
  └╴web ▶ GET                      200      ██░░░░░░░░░░░░░░░░░██      36.0 ms
    └╴stock ◀ GET /items           200       ███████░░░░░░░░░░█        30.0 ms
      └╴stock ▶ GET                  -             ███░░░░░░░█         18.0 ms  ✗ connection_refused
        │ ↺ operation browse restored by the sidecar: stock passed on only traceparent
        └╴warehouse ◀ GET /prices  503               ███████           12.0 ms  ✗ 503
",
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_names_and_keeps_bars() {
        drawn(
            &browse(),
            &Look { width: 60, ..LOOK },
            "
● browse  50.0 ms · 3 services · 5 spans · no errors
  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                       0    50.0 ms
  web ◀ GET /products             200  ██░░░░░░░░░█  50.0 ms
  └╴web ▶ GET                     200   █░░░░░░░░    36.0 ms
    └╴stock ◀ GET /items          200    ███░░░░     30.0 ms
      └╴stock ▶ GET               200      ██░░░     18.0 ms
        │ ↺ operation browse restored by the sidecar: stock…
        └╴warehouse ◀ GET /pric…  200       ███      12.0 ms
",
        );
    }

    #[test]
    fn siblings_and_spans_without_their_parent_are_all_there() {
        let mut spans = vec![
            span(1, 0, "web", Kind::Server, "POST /checkout", (0, 20)),
            span(2, 1, "web", Kind::Client, "POST", (2, 8)),
            span(3, 1, "web", Kind::Client, "POST", (9, 18)),
            span(4, 2, "stock", Kind::Server, "POST /reservations", (3, 7)),
            span(9, 8, "payments", Kind::Server, "POST /payments", (10, 17)),
        ];
        spans.iter_mut().for_each(|span| span.operation = None);
        drawn(
            &spans,
            &LOOK,
            "
● no operation  20.0 ms · 3 services · 5 spans · no errors  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                       0                         10.0 ms            20.0 ms
  web ◀ POST /checkout            200  █████░░░░░░░░░░░░░░░░██░░░░░░░░░░░░░░░░░░░░░░░░█████  20.0 ms
  ├╴web ▶ POST                    200       ███░░░░░░░░░░██                                  6.00 ms
  │ └╴stock ◀ POST /reservations  200         ███████████                                    4.00 ms
  └╴web ▶ POST                    200                         ███████████████████████        9.00 ms
  payments ◀ POST /payments       200                            ██████████████████          7.00 ms
    ? the caller's span was not received
",
        );
    }

    /// A message that lay in the queue from 12 to 30 ms.
    fn queued() -> Vec<Span> {
        vec![
            span(1, 0, "web", Kind::Server, "POST /checkout", (0, 14)),
            span(2, 1, "web", Kind::Producer, "order.placed publish", (10, 12)),
            span(3, 2, "shipping", Kind::Consumer, "shipping process", (30, 50)),
            span(4, 3, "shipping", Kind::Client, "POST", (40, 46)),
        ]
    }

    #[test]
    fn a_message_in_the_queue_is_part_of_the_trace() {
        drawn(
            &queued(),
            &LOOK,
            "
● browse  50.0 ms · 2 services · 4 spans · no errors  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                        0                        25.0 ms            50.0 ms
  web ◀ POST /checkout             200  ██████████░░██                                       14.0 ms
  └╴web ▷ order.placed publish     200            ██                                         2.00 ms
    ┊ queue order.placed waited                     ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄                       18.0 ms
    └╴shipping ◁ shipping process  200                                ███████████░░░░░░████  20.0 ms
      └╴shipping ▶ POST            200                                          ██████       6.00 ms
",
        );
    }

    #[test]
    fn every_delivery_of_a_message_has_a_wait_of_its_own() {
        let mut spans = queued();
        spans[2].error = Some("503".to_owned());
        spans[2].status = Some(503);
        spans[2].end_ns = spans[2].start_ns;
        spans[3] = span(5, 2, "shipping", Kind::Consumer, "shipping process", (40, 50));
        drawn(
            &spans,
            &LOOK,
            "
✗ browse  50.0 ms · 2 services · 4 spans · 1 error  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                        0                     25.0 ms        50.0 ms
  web ◀ POST /checkout             200  █████████░░█                                  14.0 ms
  └╴web ▷ order.placed publish     200          ██                                    2.00 ms
    ┊ queue order.placed waited                   ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄                    18.0 ms
    ├╴shipping ◁ shipping process  503                            █                      0 ns  ✗ 503
    ┊ queue order.placed waited                   ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄           28.0 ms
    └╴shipping ◁ shipping process  200                                     █████████  10.0 ms
",
        );
    }

    #[test]
    fn a_push_that_overtakes_the_publishers_answer_did_not_wait() {
        let mut spans = queued();
        spans[1].end_ns = spans[2].start_ns + 1;
        let text = draw(&spans, &LOOK);
        let row = text.lines().find(|line| line.contains("queue order.placed")).unwrap();
        assert_eq!(
            row.split_whitespace().collect::<Vec<_>>(),
            ["┊", "queue", "order.placed", "waited", "0", "ns"]
        );
    }

    #[test]
    fn a_narrow_terminal_keeps_the_wait() {
        drawn(
            &queued(),
            &Look { width: 60, ..LOOK },
            "
● browse  50.0 ms · 2 services · 4 spans · no errors
  trace 4bf92f3577b34da6a3ce929d0e0e4736
                                       0    50.0 ms
  web ◀ POST /checkout            200  ██░           14.0 ms
  └╴web ▷ order.placed publish    200    █           2.00 ms
    ┊ queue order.placed waited          ┄┄┄┄┄       18.0 ms
    └╴shipping ◁ shipping proce…  200         ███░█  20.0 ms
      └╴shipping ▶ POST           200           ██   6.00 ms
",
        );
    }

    #[test]
    fn the_legend_explains_every_mark_in_any_width() {
        assert_eq!(
            legend(&LOOK),
            "  ◀ request received   ▶ request sent   ◁ message received   ▷ message sent   █ at work here\n  \
             ░ waiting for the next hop   ┄ in the queue   ✗ error\n"
        );
        assert!(legend(&Look { width: 60, ..LOOK }).lines().all(|line| columns_of(line) <= 60));
    }

    #[test]
    fn a_circle_of_parents_is_drawn_once() {
        let circle = [
            span(1, 2, "web", Kind::Server, "GET /a", (0, 10)),
            span(2, 1, "web", Kind::Client, "GET", (2, 8)),
        ];
        assert_eq!(nested(&circle).len(), 2);
    }

    #[test]
    fn a_trace_that_took_no_time_is_drawn_and_no_spans_are_no_text() {
        drawn(
            &[span(1, 0, "web", Kind::Server, "GET /", (5, 5))],
            &LOOK,
            "
● browse  0 ns · 1 service · 1 span · no errors  trace 4bf92f3577b34da6a3ce929d0e0e4736
                    0                             0 ns                      0 ns
  web ◀ GET /  200  █                                                                0 ns
",
        );
        assert_eq!(draw(&[], &LOOK), "");
    }

    #[test]
    fn colours_change_no_column() {
        let mut spans = browse();
        spans.extend(queued().into_iter().skip(1).map(|span| Span {
            id: SpanId([span.id.0[0] + 10; 8]),
            parent: span.parent.map(|id| SpanId([id.0[0] + 10; 8])),
            ..span
        }));
        spans[0].error = Some("503".to_owned());
        let coloured = draw(&spans, &Look { color: true, ..LOOK });
        assert!(coloured.contains("\x1b[34mweb\x1b[0m"), "{coloured}");
        let mut plain = String::new();
        for (place, piece) in coloured.split("\x1b[").enumerate() {
            plain.push_str(if place == 0 { piece } else { piece.split_once('m').unwrap().1 });
        }
        assert_eq!(plain, draw(&spans, &LOOK));
    }

    #[test]
    fn durations_have_the_unit_that_suits_them() {
        for (ns, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (420_000, "420 µs"),
            (1_234_567, "1.23 ms"),
            (41_800_000, "41.8 ms"),
            (420_000_000, "420 ms"),
            (1_500_000_000, "1.50 s"),
        ] {
            assert_eq!(duration(ns), expected);
        }
    }
}
