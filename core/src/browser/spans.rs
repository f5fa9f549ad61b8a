//! What a page tells of its operations, as OTLP in JSON: read where it lies, every field held against a list, and
//! written anew. Nothing of a body gets into a span as it came but ids, times, and texts of the listed kinds; the
//! name is the operation that its requests had. Never builds a tree, never keeps a text longer than its bound.

use std::borrow::Cow;

use super::traces::{Chosen, Traces};
use super::{Sent, Told};
use crate::batch::SpanSink;
use crate::events::json::{Kind as Json, Scanner, unescape};
use crate::exchange::Now;
use crate::ids::{Flags, SpanId, TraceId};
use crate::keep::KeepReason;
use crate::limits::{
    BROWSER_CLOCK_MILLIS_MAX, BROWSER_PATH_BYTES_MAX, BROWSER_SPANS_MAX, BROWSER_TRACE_SECONDS,
};
use crate::metrics::Method;
use crate::names::attribute;
use crate::operation::Operation;
use crate::otlp::{Attributes, Kind, Parent, Span, Status};

/// The gestures that there are.
const EVENTS: &[&str] = &["button_click", "link_click", "form_submit", "route_change", "custom"];
const RESULTS: &[&str] = &["ok", "error", "abandoned"];
const ATTRIBUTIONS: &[&str] = &["explicit", "window"];
/// When the page sent the body, in milliseconds since 1970: how wrong its clock is.
const SENT: &str = "throughline.sent";
const NANOS_PER_MILLI: u64 = 1_000_000;
/// How far in the future a span may end, for clocks that are almost right.
const AHEAD_NANOS: u64 = 2 * BROWSER_CLOCK_MILLIS_MAX * NANOS_PER_MILLI;

/// The attributes that a page may tell.
#[derive(Clone, Default, Debug)]
struct Facts {
    event: Option<&'static str>,
    result: Option<&'static str>,
    attribution: Option<&'static str>,
    path: Option<Box<str>>,
    error: Option<Box<str>>,
    method: Option<Method>,
    status: Option<u16>,
    host: Option<Box<str>>,
    port: Option<u16>,
}

/// A span as it was told.
#[derive(Clone, Default, Debug)]
struct Raw {
    trace_id: Option<TraceId>,
    span_id: Option<SpanId>,
    /// Outer none: no valid id; inner none: no parent.
    parent: Option<Option<SpanId>>,
    name: Option<Operation>,
    kind: u64,
    start: Option<u64>,
    end: Option<u64>,
    failed: bool,
    facts: Facts,
}

/// What one body told.
#[derive(Default, Debug)]
pub(super) struct Reader {
    spans: Vec<Raw>,
    over_limit: u64,
    pub(super) attributes_dropped: u64,
    sent_millis: Option<u64>,
}

/// None anywhere below: no JSON, or another shape than OTLP has.
impl Reader {
    pub(super) fn read(&mut self, body: &[u8]) -> Option<()> {
        let mut json = Scanner::new(body).ok()?;
        object(&mut json, &mut |json, key| match key {
            "resourceSpans" => array(json, &mut |json| self.resource_spans(json)),
            _ => skip(json),
        })?;
        json.finish().ok()
    }

    fn resource_spans(&mut self, json: &mut Scanner<'_>) -> Option<()> {
        object(json, &mut |json, key| match key {
            "resource" => object(json, &mut |json, key| match key {
                "attributes" => attributes(json, &mut |name, value| {
                    // The resource is ours: the body's says nothing but the time.
                    if name == SENT {
                        self.sent_millis = value.int();
                    }
                }),
                _ => skip(json),
            }),
            "scopeSpans" => array(json, &mut |json| {
                object(json, &mut |json, key| match key {
                    "spans" => array(json, &mut |json| self.span(json)),
                    _ => skip(json),
                })
            }),
            _ => skip(json),
        })
    }

    fn span(&mut self, json: &mut Scanner<'_>) -> Option<()> {
        let mut raw = Raw { parent: Some(None), ..Raw::default() };
        let mut dropped = 0;
        object(json, &mut |json, key| {
            match key {
                "traceId" => raw.trace_id = id(&text(json)?).and_then(TraceId::from_bytes),
                "spanId" => raw.span_id = id(&text(json)?).and_then(SpanId::from_bytes),
                "parentSpanId" => {
                    let text = text(json)?;
                    let parent = || id(&text).and_then(SpanId::from_bytes);
                    raw.parent = if text.is_empty() { Some(None) } else { parent().map(Some) };
                }
                "name" => raw.name = Operation::parse(text(json)?.as_bytes()),
                "kind" => raw.kind = number(json)?.unwrap_or(0),
                "startTimeUnixNano" => raw.start = number(json)?,
                "endTimeUnixNano" => raw.end = number(json)?,
                "status" => object(json, &mut |json, key| match key {
                    "code" => {
                        raw.failed = number(json)? == Some(2);
                        Some(())
                    }
                    _ => skip(json),
                })?,
                "attributes" => attributes(json, &mut |name, value| {
                    dropped += u64::from(!raw.facts.take(name, &value));
                })?,
                _ => skip(json)?,
            }
            Some(())
        })?;
        self.attributes_dropped += dropped;
        if self.spans.len() < BROWSER_SPANS_MAX {
            self.spans.push(raw);
        } else {
            self.over_limit += 1;
        }
        Some(())
    }

    /// What is added to the page's times, in nanoseconds, so that they are of our clock.
    fn skew(&self, now: Now) -> i64 {
        let Some(sent) = self.sent_millis.and_then(|millis| i64::try_from(millis).ok()) else { return 0 };
        let millis = i64::try_from(now.unix_nanos / NANOS_PER_MILLI).unwrap_or(0).saturating_sub(sent);
        if millis.unsigned_abs() <= BROWSER_CLOCK_MILLIS_MAX {
            return 0; // as much as the body may have been under way
        }
        millis.saturating_mul(NANOS_PER_MILLI as i64)
    }
}

impl Facts {
    /// Whether the attribute is on the list, and its value of the kind.
    fn take(&mut self, name: &str, value: &AnyValue<'_>) -> bool {
        let text = || match value {
            AnyValue::Text(text) => text.as_ref(),
            AnyValue::Int(_) | AnyValue::Other => "",
        };
        let one_of = |known: &'static [&'static str]| known.iter().copied().find(|known| *known == text());
        let int = |from: u64, to: u64| {
            let number = value.int().filter(|number| (from..=to).contains(number));
            number.and_then(|number| u16::try_from(number).ok())
        };
        match name {
            "ui.event" => set(&mut self.event, one_of(EVENTS)),
            "ui.result" => set(&mut self.result, one_of(RESULTS)),
            attribute::ATTRIBUTION => set(&mut self.attribution, one_of(ATTRIBUTIONS)),
            attribute::OPERATION => true, // the name says it, and is held against that of the requests
            attribute::URL_PATH => set(&mut self.path, path(text())),
            attribute::ERROR_TYPE => set(&mut self.error, word(text(), b"._", 64)),
            attribute::SERVER_ADDRESS => set(&mut self.host, word(text(), b".-[]:", 253)),
            attribute::SERVER_PORT => set(&mut self.port, int(1, 65_535)),
            attribute::HTTP_REQUEST_METHOD => {
                set(&mut self.method, Some(Method::of(text())).filter(|method| method.is_known()))
            }
            attribute::HTTP_RESPONSE_STATUS_CODE => set(&mut self.status, int(100, 599)),
            _ => false,
        }
    }
}

fn set<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    *place = value;
    place.is_some()
}

/// Letters, digits and some marks.
fn word(text: &str, marks: &[u8], bytes_max: usize) -> Option<Box<str>> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || marks.contains(&byte);
    (!text.is_empty() && text.len() <= bytes_max && text.bytes().all(legal)).then(|| text.into())
}

fn path(text: &str) -> Option<Box<str>> {
    let legal = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    (legal && text.len() <= BROWSER_PATH_BYTES_MAX && !text.contains(['?', '#'])).then(|| text.into())
}

/// A value of an attribute.
enum AnyValue<'a> {
    Text(Cow<'a, str>),
    Int(u64),
    Other,
}

impl AnyValue<'_> {
    fn int(&self) -> Option<u64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Text(_) | Self::Other => None,
        }
    }
}

fn skip(json: &mut Scanner<'_>) -> Option<()> {
    json.skip().ok().map(drop)
}

// By pointer, like those below: each place that reads an object would have a copy of its own.
fn object<'a>(
    json: &mut Scanner<'a>,
    member: &mut dyn FnMut(&mut Scanner<'a>, &str) -> Option<()>,
) -> Option<()> {
    let mut level = json.enter_object().ok()?;
    while let Some(key) = json.next_key(&mut level).ok()? {
        let whole = json.text();
        member(json, key.text(whole))?;
    }
    Some(())
}

fn array<'a>(json: &mut Scanner<'a>, element: &mut dyn FnMut(&mut Scanner<'a>) -> Option<()>) -> Option<()> {
    let mut level = json.enter_array().ok()?;
    while json.next_element(&mut level).ok()? {
        element(json)?;
    }
    Some(())
}

fn attributes<'a>(json: &mut Scanner<'a>, take: &mut dyn FnMut(&str, AnyValue<'a>)) -> Option<()> {
    array(json, &mut |json| {
        let (mut name, mut value) = (Cow::Borrowed(""), AnyValue::Other);
        object(json, &mut |json, key| {
            match key {
                "key" => name = text(json)?,
                "value" => object(json, &mut |json, key| {
                    match key {
                        "stringValue" => value = AnyValue::Text(text(json)?),
                        "intValue" => value = number(json)?.map_or(AnyValue::Other, AnyValue::Int),
                        _ => skip(json)?,
                    }
                    Some(())
                })?,
                _ => skip(json)?,
            }
            Some(())
        })?;
        take(&name, value);
        Some(())
    })
}

/// A text; empty where something else stands.
fn text<'a>(json: &mut Scanner<'a>) -> Option<Cow<'a, str>> {
    let kind = json.kind();
    let whole = json.text();
    let span = json.skip().ok()?.text(whole);
    match kind {
        Json::Text => {
            let bare = span.get(1..span.len().saturating_sub(1)).unwrap_or_default();
            Some(unescape(bare).unwrap_or_default())
        }
        Json::Object | Json::Array | Json::Scalar | Json::Null => Some(Cow::Borrowed("")),
    }
}

/// A number without sign or fraction, which 64-bit fields have as a text; none where something else stands.
fn number(json: &mut Scanner<'_>) -> Option<Option<u64>> {
    let whole = json.text();
    let text = json.skip().ok()?.text(whole).trim_matches('"');
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    Some(if digits { text.parse().ok() } else { None })
}

fn id<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    crate::hex::decode(text.to_ascii_lowercase().as_bytes())
}

/// An operation whose spans go to the collector.
#[derive(Debug)]
pub(super) struct OperationSpans {
    root: Checked,
    children: Vec<Checked>,
    operation: Option<Operation>,
    chosen: Chosen,
}

/// A span that was found right.
#[derive(Clone, Debug)]
struct Checked {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<SpanId>,
    start: u64,
    end: u64,
    raw: Raw,
}

impl Checked {
    fn of(raw: &Raw, skew: i64, now: Now) -> Result<Self, Told> {
        let (Some(trace_id), Some(span_id), Some(parent)) = (raw.trace_id, raw.span_id, raw.parent) else {
            return Err(Told::Shape);
        };
        // The operation itself, or a request of it; what else is there is not for a page to tell.
        if !matches!((raw.kind, parent), (1, None) | (3, Some(_))) || parent == Some(span_id) {
            return Err(Told::Shape);
        }
        let (Some(start), Some(end)) = (raw.start, raw.end) else { return Err(Told::Time) };
        let [start, end] = [start, end].map(|nanos| nanos.saturating_add_signed(skew));
        let longest = BROWSER_TRACE_SECONDS * 1000 * NANOS_PER_MILLI;
        let legal = start <= end
            && end <= now.unix_nanos.saturating_add(AHEAD_NANOS)
            && start >= now.unix_nanos.saturating_sub(longest);
        if !legal {
            return Err(Told::Time);
        }
        Ok(Self { trace_id, span_id, parent, start, end, raw: raw.clone() })
    }
}

/// What goes to the collector, and how many spans there were of each kind of [`Told`].
pub(super) fn judge(
    reader: &mut Reader,
    traces: &mut Traces,
    sent: &Sent<'_>,
) -> (Vec<OperationSpans>, [u64; Told::ALL.len()]) {
    let mut counts = [0; Told::ALL.len()];
    let mut count = |told: Told, spans: usize| {
        if let Some(count) = counts.get_mut(told as usize) {
            *count += spans as u64;
        }
    };
    let over_limit = std::mem::take(&mut reader.over_limit);
    count(Told::OverLimit, usize::try_from(over_limit).unwrap_or(usize::MAX));
    let skew = reader.skew(sent.now);
    let (mut roots, mut children) = (Vec::new(), Vec::new());
    for raw in &reader.spans {
        match Checked::of(raw, skew, sent.now) {
            Ok(checked) if checked.parent.is_none() => roots.push(checked),
            Ok(checked) => children.push(checked),
            Err(told) => count(told, 1),
        }
    }
    let mut operations = Vec::new();
    for root in roots {
        let (mut own, others): (Vec<_>, Vec<_>) = children
            .into_iter()
            .partition(|child| child.trace_id == root.trace_id && child.parent == Some(root.span_id));
        children = others;
        let before = own.len();
        let mut ids = vec![root.span_id];
        own.retain(|child| {
            let fresh = !ids.contains(&child.span_id);
            ids.push(child.span_id);
            fresh
        });
        count(Told::Shape, before - own.len());
        let spans = 1 + own.len();
        match admit(&root, &own, traces, sent) {
            Ok((operation, chosen)) => {
                count(Told::Taken, spans);
                operations.push(OperationSpans { root, children: own, operation, chosen });
            }
            Err(told) => count(told, spans),
        }
    }
    for orphan in children {
        let told = match traces.row(orphan.trace_id, sent.address, sent.now) {
            None => Told::UnknownTrace,
            Some((_, false)) => Told::ForeignTrace,
            Some((_, true)) => Told::Shape,
        };
        count(told, 1);
    }
    (operations, counts)
}

/// Whether an operation and its requests are told of by the page that made them.
fn admit(
    root: &Checked,
    children: &[Checked],
    traces: &mut Traces,
    sent: &Sent<'_>,
) -> Result<(Option<Operation>, Chosen), Told> {
    let Some((row, own)) = traces.row(root.trace_id, sent.address, sent.now) else {
        return Err(Told::UnknownTrace);
    };
    if !own {
        return Err(Told::ForeignTrace);
    }
    if row.told {
        return Err(Told::Repeated);
    }
    // Whoever made the first request knows its span.
    let knows =
        root.span_id == row.first_parent || children.iter().any(|child| child.span_id == row.first_parent);
    let named = root.raw.name.is_some() && (row.operation.is_none() || root.raw.name == row.operation);
    if !knows || !named {
        return Err(Told::Shape);
    }
    let chosen = row.chosen.ok_or(Told::Unsampled)?;
    row.told = true;
    Ok((row.operation, chosen))
}

impl OperationSpans {
    pub(super) fn hand_out(&self, sent: &Sent<'_>, text_bytes_max: Option<usize>, sink: &mut impl SpanSink) {
        let mut encoded = Vec::new();
        let Checked { raw: Raw { facts, .. }, start, .. } = &self.root;
        let mut attributes = Attributes::of_span(&mut encoded).within(text_bytes_max);
        let event = facts.event.unwrap_or("custom");
        attributes.text(attribute::UI_EVENT, event.as_bytes());
        attributes.int(attribute::UI_TIMESTAMP, start / NANOS_PER_MILLI);
        attributes.text(attribute::UI_RESULT, facts.result.unwrap_or("ok").as_bytes());
        let operation = self.operation.as_ref().map(Operation::as_str);
        let optional = [
            (attribute::OPERATION, operation.map(str::as_bytes)),
            (attribute::ATTRIBUTION, facts.attribution.map(str::as_bytes)),
            (attribute::URL_PATH, facts.path.as_deref().map(str::as_bytes)),
            (attribute::ERROR_TYPE, facts.error.as_deref().map(str::as_bytes)),
            (attribute::USER_AGENT_ORIGINAL, sent.agent),
        ];
        for (key, value) in optional {
            value.into_iter().for_each(|value| attributes.text(key, value));
        }
        match self.chosen {
            Chosen::Sampled(by) => attributes.text(attribute::SAMPLED_BY, by.as_bytes()),
            Chosen::Kept => {
                attributes.text(attribute::KEEP_REASON, KeepReason::Downstream.as_str().as_bytes());
            }
        }
        self.span(&self.root, operation.unwrap_or("ui"), Kind::Internal, &encoded, sent.now, sink);
        for child in &self.children {
            encoded.clear();
            let facts = &child.raw.facts;
            let mut attributes = Attributes::of_span(&mut encoded).within(text_bytes_max);
            let method = facts.method.map(Method::as_str);
            let optional = [
                (attribute::HTTP_REQUEST_METHOD, method),
                (attribute::OPERATION, operation),
                (attribute::URL_PATH, facts.path.as_deref()),
                (attribute::SERVER_ADDRESS, facts.host.as_deref()),
                (attribute::ERROR_TYPE, facts.error.as_deref()),
            ];
            for (key, value) in optional {
                value.into_iter().for_each(|value| attributes.text(key, value.as_bytes()));
            }
            let numbers =
                [(attribute::SERVER_PORT, facts.port), (attribute::HTTP_RESPONSE_STATUS_CODE, facts.status)];
            for (key, value) in numbers {
                value.into_iter().for_each(|value| attributes.int(key, u64::from(value)));
            }
            self.span(child, method.unwrap_or("HTTP"), Kind::Client, &encoded, sent.now, sink);
        }
    }

    fn span(
        &self,
        checked: &Checked,
        name: &str,
        kind: Kind,
        attributes: &[u8],
        now: Now,
        sink: &mut impl SpanSink,
    ) {
        let failed = checked.raw.failed || checked.raw.facts.error.is_some();
        let span = Span {
            trace_id: checked.trace_id,
            span_id: checked.span_id,
            flags: Flags::default().with_sampled(matches!(self.chosen, Chosen::Sampled(_))),
            parent: checked.parent.map(|span_id| Parent { span_id, remote: false }),
            trace_state: b"",
            name: &[name],
            kind,
            start_unix_nanos: checked.start,
            end_unix_nanos: checked.end,
            attributes,
            links: b"",
            status: if failed { Status::Error } else { Status::Unset },
        };
        sink.span(&span, now);
    }
}
