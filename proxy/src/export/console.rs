//! Spans as readable lines on standard output: the exporter for a first look. Reads the encoded spans back, so
//! that they take the same way as to a collector.

use std::fmt::Write as _;
use std::io::Write as _;

use throughline_core::otlp::answer::next_field;

/// Prints each span on a line; says how many were printed.
pub(super) fn print(spans: &[u8]) -> usize {
    let (mut text, mut count, mut rest) = (String::new(), 0, spans);
    while let Some((_, _, Some(span), after)) = next_field(rest) {
        line(span, &mut text);
        count += 1;
        rest = after;
    }
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => count,
        Err(_) => 0,
    }
}

fn line(span: &[u8], text: &mut String) {
    let mut attributes = String::new();
    let (mut trace_id, mut span_id, mut parent) = (String::new(), String::new(), String::from("none"));
    let (mut name, mut kind, mut start, mut end, mut links, mut failed) = (String::new(), "", 0, 0, 0, false);
    let mut rest = span;
    while let Some((number, value, bytes, after)) = next_field(rest) {
        rest = after;
        let bytes = bytes.unwrap_or_default();
        match number {
            1 => trace_id = hex(bytes),
            2 => span_id = hex(bytes),
            4 => parent = hex(bytes),
            5 => name = String::from_utf8_lossy(bytes).into_owned(),
            6 => kind = KINDS.get(usize::try_from(value).unwrap_or(0)).copied().unwrap_or("?"),
            7 => start = value,
            8 => end = value,
            9 => attribute(bytes, &mut attributes),
            13 => links += 1,
            15 => failed = true,
            _ => {}
        }
    }
    let millis = end.saturating_sub(start) as f64 / 1e6;
    let mark = if failed { "error" } else { "ok" };
    let _ = writeln!(
        text,
        "{kind:<8} {name:<32} {millis:>9.3} ms  {mark:<5} trace {trace_id} span {span_id} parent {parent}{}{attributes}",
        if links > 0 { format!(" links {links}") } else { String::new() },
    );
}

const KINDS: [&str; 6] = ["?", "internal", "server", "client", "producer", "consumer"];

/// `KeyValue{key=1, value=2: AnyValue}`.
fn attribute(key_value: &[u8], text: &mut String) {
    let Some((_, _, Some(key), rest)) = next_field(key_value) else { return };
    let Some((_, _, Some(any), _)) = next_field(rest) else { return };
    let _ = write!(text, " {}=", String::from_utf8_lossy(key));
    let _ = match next_field(any) {
        Some((1, _, Some(value), _)) => write!(text, "{:?}", String::from_utf8_lossy(value)),
        Some((5, _, Some(array), _)) => write!(text, "[{} values]", count(array)),
        Some((_, value, _, _)) => write!(text, "{value}"),
        None => Ok(()),
    };
}

fn count(mut array: &[u8]) -> usize {
    let mut values = 0;
    while let Some((_, _, _, after)) = next_field(array) {
        values += 1;
        array = after;
    }
    values
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
