//! CloudEvents in the three content modes of the HTTP binding: structured (one JSON object), batch (an array
//! of them) and binary (`ce-*` headers). Reads the attributes that tracing needs and changes extensions
//! where they stand. Never touches `data`, and never decides what an extension should say.

use std::borrow::Cow;

use super::json::{Member, Object, Outline, Scanner, edit_object};
use super::splice::Splices;
use super::{EVENTS_MAX, Edit, Untouched};
use crate::carrier::Carrier;

/// What tracing reads of an event. A value that is not a string is absent; of duplicates, the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventView<'a> {
    /// `id`
    pub id: Option<Cow<'a, str>>,
    /// `source`
    pub source: Option<Cow<'a, str>>,
    /// `type`
    pub event_type: Option<Cow<'a, str>>,
    /// `specversion`
    pub spec_version: Option<Cow<'a, str>>,
    /// `subject`
    pub subject: Option<Cow<'a, str>>,
    /// `traceparent` of the distributed tracing extension.
    pub traceparent: Option<Cow<'a, str>>,
    /// `tracestate` of the distributed tracing extension.
    pub tracestate: Option<Cow<'a, str>>,
    /// `operationname`: the operation, as it travels with the event.
    pub operation_name: Option<Cow<'a, str>>,
    /// `origintraceparent`: the `traceparent` that arrived before a delivery was rewritten.
    pub origin_traceparent: Option<Cow<'a, str>>,
    /// Dapr's `traceid`, a whole `traceparent` in spite of its name.
    pub dapr_trace_id: Option<Cow<'a, str>>,
}

impl<'a> EventView<'a> {
    /// Whether all attributes are there that CloudEvents 1.0 §3.1 requires: what tells an event from a
    /// message that merely has a `ce-` header (HTTP binding §3).
    #[must_use]
    pub fn is_event(&self) -> bool {
        self.id.is_some() && self.source.is_some() && self.event_type.is_some() && self.spec_version.is_some()
    }

    fn place(&mut self, name: &str) -> Option<&mut Option<Cow<'a, str>>> {
        Some(match name {
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.event_type,
            "specversion" => &mut self.spec_version,
            "subject" => &mut self.subject,
            "traceparent" => &mut self.traceparent,
            "tracestate" => &mut self.tracestate,
            "operationname" => &mut self.operation_name,
            "origintraceparent" => &mut self.origin_traceparent,
            "traceid" => &mut self.dapr_trace_id,
            _ => return None,
        })
    }

    /// Takes one attribute in, if tracing reads it.
    pub(super) fn take(&mut self, name: &str, value: impl FnOnce() -> Option<Cow<'a, str>>) {
        if let Some(place) = self.place(name) {
            *place = value();
        }
    }

    pub(super) fn of_members(text: &'a str, members: &[Member]) -> Self {
        let mut view = Self::default();
        for member in members {
            let key = super::json::unescape(member.key.text(text)).unwrap_or_default();
            view.take(&key, || member.string(text));
        }
        view
    }
}

/// The memory of a reading; reusable from body to body.
#[derive(Debug, Default)]
pub struct Scratch {
    outline: Outline,
    events: Vec<Object>,
}

/// The events of one body, found and checked, not yet changed.
#[derive(Debug)]
pub struct Events<'a, 's> {
    text: &'a str,
    scratch: &'s Scratch,
}

impl<'a, 's> Events<'a, 's> {
    /// Reads a body of `application/cloudevents+json`.
    ///
    /// # Errors
    /// Why the body cannot be edited.
    pub fn structured(body: &'a [u8], scratch: &'s mut Scratch) -> Result<Self, Untouched> {
        let mut scanner = Scanner::new(body)?;
        scratch.clear();
        scratch.events.push(scanner.object(&mut scratch.outline)?);
        scanner.finish()?;
        Ok(Self { text: scanner.text(), scratch })
    }

    /// Reads a body of `application/cloudevents-batch+json`. One element that is no object makes the whole
    /// batch unreadable.
    ///
    /// # Errors
    /// Why the body cannot be edited.
    pub fn batch(body: &'a [u8], scratch: &'s mut Scratch) -> Result<Self, Untouched> {
        let mut scanner = Scanner::new(body)?;
        scratch.clear();
        let mut level = scanner.enter_array()?;
        while scanner.next_element(&mut level)? {
            if scratch.events.len() >= EVENTS_MAX {
                return Err(Untouched::TooMany);
            }
            scratch.events.push(scanner.object(&mut scratch.outline)?);
        }
        scanner.finish()?;
        Ok(Self { text: scanner.text(), scratch })
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scratch.events.len()
    }

    /// Whether the batch is empty, which the binding allows (§3.3.2).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scratch.events.is_empty()
    }

    /// What tracing reads of the event; nothing beyond the last one.
    #[must_use]
    pub fn view(&self, index: usize) -> EventView<'a> {
        let event = self.scratch.events.get(index);
        EventView::of_members(self.text, event.map_or(&[], |event| self.scratch.outline.members(event)))
    }

    /// Changes extensions of one event. Events are edited front to back, each at most once.
    ///
    /// # Errors
    /// [`Untouched::Order`] or [`Untouched::TooMany`] edits; the event then stays as it was.
    pub fn edit(&self, index: usize, edits: &[Edit<'_>], splices: &mut Splices) -> Result<(), Untouched> {
        let event = self.scratch.events.get(index).ok_or(Untouched::Order)?;
        splices.claim(self.text.len(), event.span)?;
        edit_object(self.text, event, self.scratch.outline.members(event), edits, splices)
    }
}

impl Scratch {
    fn clear(&mut self) {
        self.outline.clear();
        self.events.clear();
    }
}

/// The extensions that may be written as headers: a carrier knows only names that live as long as the
/// program.
const HEADERS: [(&str, &str); 5] = [
    ("traceparent", "ce-traceparent"),
    ("tracestate", "ce-tracestate"),
    ("operationname", "ce-operationname"),
    ("origintraceparent", "ce-origintraceparent"),
    ("traceid", "ce-traceid"),
];

/// Reads a binary event from its headers (HTTP binding §3.1.3). Of several values of a header, the last
/// counts, as it does in JSON.
#[must_use]
pub fn binary_view(carrier: &(impl Carrier + ?Sized)) -> EventView<'_> {
    let mut view = EventView::default();
    carrier.for_each(&mut |name, value| {
        if let Some(name) = name.strip_prefix("ce-") {
            view.take(name, || header_text(value));
        }
    });
    view
}

/// Changes extensions of a binary event in its headers.
///
/// # Errors
/// [`Untouched::UnknownName`] for an extension that has no header here; nothing is changed then.
pub fn edit_binary(carrier: &mut (impl Carrier + ?Sized), edits: &[Edit<'_>]) -> Result<(), Untouched> {
    let header =
        |edit: &Edit<'_>| HEADERS.iter().find(|(name, _)| *name == edit.name).map(|(_, header)| *header);
    if edits.iter().any(|edit| header(edit).is_none()) {
        return Err(Untouched::UnknownName);
    }
    for (edit, header) in edits.iter().filter_map(|edit| Some((edit, header(edit)?))) {
        match edit.value {
            Some(value) => carrier.set(header, &header_value(value)),
            None => carrier.remove(header),
        }
    }
    Ok(())
}

/// The attribute's value of a header's value: first out of its quotes, then one round of percent-decoding;
/// what is not UTF-8 then is refused (HTTP binding §3.1.3.2).
#[must_use]
pub fn header_text(value: &[u8]) -> Option<Cow<'_, str>> {
    if !value.iter().any(|byte| matches!(byte, b'"' | b'%')) {
        return std::str::from_utf8(value).ok().map(Cow::Borrowed);
    }
    if value.len() > super::UNESCAPED_BYTES_MAX {
        return None;
    }
    percent_decode(&unquote(value)).map(Cow::Owned)
}

/// Takes out the quotes of quoted strings, and the backslashes inside (RFC 9110 §5.6.4).
fn unquote(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(value.len());
    let mut inside = false;
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => inside = !inside,
            b'\\' if inside => text.extend(bytes.next()),
            _ => text.push(byte),
        }
    }
    text
}

/// A `%` that is not followed by two digits stands for itself, as lenient receivers have it.
pub(super) fn percent_decode(value: &[u8]) -> Option<String> {
    let mut text = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [byte, after @ ..] = rest {
        rest = after;
        let pair = if *byte == b'%' { after.first_chunk::<2>() } else { None };
        match pair.and_then(|[high, low]| Some((hex(*high)? << 4) | hex(*low)?)) {
            Some(decoded) => {
                text.push(decoded);
                rest = after.get(2..).unwrap_or_default();
            }
            None => text.push(*byte),
        }
    }
    String::from_utf8(text).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// The header's value of an attribute's value: space, `"`, `%` and all that is not printable ASCII in
/// upper-case percent-encoding (HTTP binding §3.1.3.2).
#[must_use]
pub fn header_value(text: &str) -> Cow<'_, [u8]> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text.as_bytes());
    }
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    let mut value = Vec::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(byte) {
            value.push(byte);
        } else {
            value.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    Cow::Owned(value)
}

#[cfg(test)]
mod tests {
    use super::super::judge::{Json, Seed};
    use super::*;

    fn headers(list: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_structured_event_is_seen() {
        let body = br#"{"specversion":"1.0","id":"a\/1","source":"/s","type":"t","subject":7,"traceid":"00-x",
            "traceparent":"first","traceparent":"last","tracestate":"x","tracestate":null,"operationname":"op"}"#;
        let mut scratch = Scratch::default();
        let events = Events::structured(body, &mut scratch).unwrap();
        let view = events.view(0);
        assert!(view.is_event());
        assert_eq!(view.id.as_deref(), Some("a/1"));
        assert!(matches!(view.source, Some(Cow::Borrowed("/s"))));
        assert_eq!((view.subject, view.tracestate), (None, None));
        assert_eq!(
            (view.traceparent.as_deref(), view.dapr_trace_id.as_deref()),
            (Some("last"), Some("00-x"))
        );
        assert_eq!((view.operation_name.as_deref(), view.origin_traceparent), (Some("op"), None));
        assert_eq!(events.view(1), EventView::default());
    }

    #[test]
    fn a_traceparent_of_the_same_length_is_replaced_in_place() {
        let mut body = br#"{"id":"1","traceparent":"old","data":[1]}"#.to_vec();
        let mut splices = Splices::new();
        let mut scratch = Scratch::default();
        Events::structured(&body, &mut scratch)
            .unwrap()
            .edit(0, &[Edit::set("traceparent", "new")], &mut splices)
            .unwrap();
        assert!(splices.apply_in_place(&mut body));
        assert_eq!(body, br#"{"id":"1","traceparent":"new","data":[1]}"#);
    }

    #[test]
    fn a_batch_differs_in_the_edited_members_alone() {
        let mut seed = Seed(4);
        let mut scratch = Scratch::default();
        let mut splices = Splices::new();
        for _ in 0..5_000 {
            let mut text = "[".to_owned();
            for i in 0..seed.below(5) {
                text.push_str(if i > 0 { " ,\n" } else { " " });
                seed.object(2, &mut text);
            }
            text.push(']');
            let Some(Json::List(mut model)) = Json::parse(text.as_bytes()) else { panic!("{text}") };
            let events = Events::batch(text.as_bytes(), &mut scratch).unwrap();
            assert_eq!(events.len(), model.len());
            splices.clear();
            for (i, event) in model.iter_mut().enumerate() {
                let edits = seed.edits(&["traceparent", "tracestate", "operationname"]);
                event.edit(&edits);
                let edits: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
                events.edit(i, &edits, &mut splices).unwrap();
            }
            let mut out = Vec::new();
            splices.apply(text.as_bytes(), &mut out).unwrap();
            assert_eq!(Json::parse(&out), Some(Json::List(model)), "{text}");
            assert_eq!(out.len() as i64, text.len() as i64 + splices.grown_bytes());
        }
    }

    #[test]
    fn a_binary_event_is_seen_and_edited_in_its_headers() {
        let mut carrier = headers(&[
            ("ce-id", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("ce-source", "\"a \\\"quoted\\\" %41\""),
            ("ce-type", "t%C0%A0"),
            ("ce-traceparent", "00-a"),
            ("ce-unknown", "x"),
            ("traceparent", "the transport's"),
        ]);
        let view = binary_view(&carrier);
        assert_eq!(view.id.as_deref(), Some("Euro € 😀"));
        assert_eq!(view.source.as_deref(), Some("a \"quoted\" A"));
        assert_eq!(view.event_type, None, "an overlong encoding is refused");
        assert_eq!(view.traceparent.as_deref(), Some("00-a"));
        let edits = [
            Edit::set("traceparent", "00-b"),
            Edit::set("operationname", "pay 100% €"),
            Edit::remove("tracestate"),
        ];
        edit_binary(&mut carrier, &edits).unwrap();
        assert_eq!(Carrier::get(&carrier, "ce-traceparent"), Some(&b"00-b"[..]));
        assert_eq!(Carrier::get(&carrier, "ce-operationname"), Some(&b"pay%20100%25%20%E2%82%AC"[..]));
        assert_eq!(Carrier::get(&carrier, "traceparent"), Some(&b"the transport's"[..]));
        assert_eq!(binary_view(&carrier).operation_name.as_deref(), Some("pay 100% €"));
        let before = carrier.clone();
        assert_eq!(
            edit_binary(&mut carrier, &[edits[2], Edit::set("data", "x")]),
            Err(Untouched::UnknownName)
        );
        assert_eq!(carrier, before);
    }

    #[test]
    fn every_text_survives_a_header() {
        let all: String = (1..0x500).filter_map(char::from_u32).chain("😀".chars()).collect();
        let value = header_value(&all);
        assert!(value.iter().all(u8::is_ascii_graphic));
        assert_eq!(header_text(&value).as_deref(), Some(all.as_str()));
        for (value, text) in
            [("100%", Some("100%")), ("%4", Some("%4")), ("%zz", Some("%zz")), ("%ff", None), ("", Some(""))]
        {
            assert_eq!(header_text(value.as_bytes()).as_deref(), text, "{value}");
        }
        assert_eq!(header_text(b"\xff"), None);
    }
}
