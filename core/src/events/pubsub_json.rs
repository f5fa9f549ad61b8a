//! Pub/Sub messages in JSON: the REST publish body, the pull response, and the wrapped push. Reads each
//! message and changes its attributes, or the structured event in its base64 data. Reads both spellings of
//! a key that protobuf's JSON mapping allows (`messageId`, `message_id`); never rewrites one.

use std::borrow::Cow;

use super::json::{self, Kind, Object, Outline, Scanner, edit_object, write_member};
use super::pubsub::{Attributes, Inside, InsideScratch, MessageEdit, MessageView, unix_ns};
use super::splice::{Span, Splices};
use super::{EDITS_MAX, EVENTS_MAX, Edit, Untouched, additions};

/// The bodies that carry messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `{"messages":[{…}]}`, the body of `:publish`.
    Publish,
    /// `{"receivedMessages":[{"ackId":…,"message":{…},"deliveryAttempt":…}]}`, the answer to `:pull`.
    Pull,
    /// `{"message":{…},"subscription":…}`, the body of a wrapped push.
    Push,
}

#[derive(Clone, Copy, Debug, Default)]
enum AttributesAt {
    #[default]
    Absent,
    Null(Span),
    Object(Object),
    /// No object, or several: not editable.
    Unfit,
}

#[derive(Clone, Copy, Debug, Default)]
struct MessageAt {
    span: Span,
    /// Where a member can be added, and whether one stands before it.
    end: u32,
    has_members: bool,
    attributes: AttributesAt,
    data: Option<Span>,
    /// The data stands there twice: not editable.
    data_again: bool,
    message_id: Option<Span>,
    ordering_key: Option<Span>,
    publish_time: Option<Span>,
    ack_id: Option<Span>,
    delivery_attempt: Option<Span>,
}

/// The memory of a reading; reusable from body to body.
#[derive(Debug, Default)]
pub struct Scratch {
    outline: Outline,
    messages: Vec<MessageAt>,
}

/// The messages of one body, found and checked, not yet changed.
#[derive(Debug)]
pub struct Messages<'a, 's> {
    text: &'a str,
    scratch: &'s Scratch,
    subscription: Option<Span>,
}

impl<'a, 's> Messages<'a, 's> {
    /// Reads a body of the given form. A message that is no object makes the body unreadable; a body without
    /// messages is an empty one, except for a push, which always has one and a subscription.
    ///
    /// # Errors
    /// Why the body cannot be edited.
    pub fn read(body: &'a [u8], form: Form, scratch: &'s mut Scratch) -> Result<Self, Untouched> {
        scratch.outline.clear();
        scratch.messages.clear();
        let mut reader = Reader { scanner: Scanner::new(body)?, scratch };
        let subscription = match form {
            Form::Publish => reader.list("messages", "messages", Reader::message)?,
            Form::Pull => reader.list("receivedMessages", "received_messages", Reader::received)?,
            Form::Push => Some(reader.push()?),
        };
        reader.scanner.finish()?;
        let text = reader.scanner.text();
        Ok(Self { text, scratch, subscription })
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scratch.messages.len()
    }

    /// Whether there are none: a pull that found nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scratch.messages.is_empty()
    }

    /// The subscription's full name; only a push carries it.
    #[must_use]
    pub fn subscription(&self) -> Option<Cow<'a, str>> {
        self.string(self.subscription)
    }

    /// What tracing reads of a message; nothing beyond the last one.
    #[must_use]
    pub fn view(&self, index: usize) -> MessageView<'_> {
        let Some(at) = self.scratch.messages.get(index) else {
            return MessageView::default();
        };
        MessageView {
            attributes: self.attributes(at),
            data: at.data,
            message_id: self.string(at.message_id),
            ordering_key: self.string(at.ordering_key).filter(|key| !key.is_empty()),
            publish_time_unix_ns: self.string(at.publish_time).and_then(|time| unix_ns(&time)),
            // Protobuf's JSON mapping reads a number in quotes as well.
            delivery_attempt: at
                .delivery_attempt
                .and_then(|at| at.text(self.text).trim_matches('"').parse().ok()),
            ack_id: self.string(at.ack_id),
        }
    }

    fn attributes(&self, at: &MessageAt) -> Attributes<'_> {
        match &at.attributes {
            AttributesAt::Object(object) => Attributes::Json(self.text, self.scratch.outline.members(object)),
            AttributesAt::Absent | AttributesAt::Null(_) | AttributesAt::Unfit => Attributes::None,
        }
    }

    fn string(&self, place: Option<Span>) -> Option<Cow<'a, str>> {
        json::unescape(place?.text(self.text))
    }

    /// Opens the structured event in a message's data; `None` if its attributes do not announce one.
    ///
    /// # Errors
    /// Why the event cannot be edited; the message's attributes still can.
    pub fn inside<'m>(
        &self,
        index: usize,
        scratch: &'m mut InsideScratch,
    ) -> Result<Option<Inside<'a, 'm>>, Untouched> {
        let Some(at) =
            self.scratch.messages.get(index).filter(|at| self.attributes(at).announce_structured())
        else {
            return Ok(None);
        };
        if at.data_again {
            return Err(Untouched::Shape);
        }
        at.data.map(|data| Inside::base64(data.text(self.text), scratch)).transpose()
    }

    /// Changes one message. Messages are edited front to back, each at most once.
    ///
    /// # Errors
    /// Why the message cannot be edited; it then stays as it was.
    pub fn edit(
        &self,
        index: usize,
        edit: MessageEdit<'_, '_, '_>,
        splices: &mut Splices,
    ) -> Result<(), Untouched> {
        let at = self.scratch.messages.get(index).ok_or(Untouched::Order)?;
        splices.claim(self.text.len(), at.span)?;
        let mark = splices.mark();
        let done = self.edit_parts(at, edit, splices);
        if done.is_err() {
            splices.rollback(mark);
        }
        done
    }

    fn edit_parts(
        &self,
        at: &MessageAt,
        edit: MessageEdit<'_, '_, '_>,
        splices: &mut Splices,
    ) -> Result<(), Untouched> {
        let attributes_first = match at.attributes {
            AttributesAt::Object(object) => at.data.is_none_or(|data| object.span.start() < data.start()),
            AttributesAt::Null(null) => at.data.is_none_or(|data| null.start() < data.start()),
            AttributesAt::Absent | AttributesAt::Unfit => false,
        };
        if attributes_first {
            self.edit_attributes(at, edit.attributes, splices)?;
        }
        if let (Some((inside, edits)), Some(data)) = (edit.event, at.data) {
            inside.edit(data.of(self.text.as_bytes()), data, edits, splices)?;
        }
        if !attributes_first {
            self.edit_attributes(at, edit.attributes, splices)?;
        }
        Ok(())
    }

    fn edit_attributes(
        &self,
        at: &MessageAt,
        edits: &[Edit<'_>],
        splices: &mut Splices,
    ) -> Result<(), Untouched> {
        if edits.len() > EDITS_MAX {
            return Err(Untouched::TooMany);
        }
        if let AttributesAt::Object(object) = &at.attributes {
            return edit_object(self.text, object, self.scratch.outline.members(object), edits, splices);
        }
        let new = || additions(edits, |_| false);
        if new().next().is_none() {
            return Ok(());
        }
        match at.attributes {
            AttributesAt::Null(null) => splices.replace(null, |out| write_object(new(), out)),
            AttributesAt::Absent => {
                splices.replace(Span::new(at.end as usize, at.end as usize), |out| {
                    let comma: &[u8] = if at.has_members { b"," } else { b"" };
                    out.extend_from_slice(comma);
                    out.extend_from_slice(b"\"attributes\":");
                    write_object(new(), out);
                });
            }
            AttributesAt::Unfit | AttributesAt::Object(_) => return Err(Untouched::Shape),
        }
        Ok(())
    }
}

fn write_object<'e>(members: impl Iterator<Item = (&'e str, &'e str)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (name, value)) in members.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_member(name, value, out);
    }
    out.push(b'}');
}

/// Walks the levels above the attributes.
struct Reader<'a, 's> {
    scanner: Scanner<'a>,
    scratch: &'s mut Scratch,
}

impl<'a> Reader<'a, '_> {
    /// An object with one member that is a list, under either of two names.
    fn list(
        &mut self,
        name: &str,
        other_name: &str,
        item: fn(&mut Self) -> Result<(), Untouched>,
    ) -> Result<Option<Span>, Untouched> {
        let mut level = self.scanner.enter_object()?;
        while let Some(key) = self.scanner.next_key(&mut level)? {
            let key = key.text(self.scanner.text());
            if !(json::is(key, name) || json::is(key, other_name)) || self.scanner.kind() == Kind::Null {
                self.scanner.skip()?;
                continue;
            }
            let mut list = self.scanner.enter_array()?;
            while self.scanner.next_element(&mut list)? {
                item(self)?;
            }
        }
        Ok(None)
    }

    fn received(&mut self) -> Result<(), Untouched> {
        let mut level = self.scanner.enter_object()?;
        let before = self.scratch.messages.len();
        let (mut ack_id, mut delivery_attempt) = (None, None);
        while let Some(key) = self.key(&mut level)? {
            match &*key {
                "message" => self.message()?,
                "ackId" | "ack_id" => ack_id = self.text()?,
                "deliveryAttempt" | "delivery_attempt" => delivery_attempt = Some(self.scanner.skip()?),
                _ => drop(self.scanner.skip()?),
            }
        }
        self.envelop(before, ack_id, delivery_attempt)
    }

    fn push(&mut self) -> Result<Span, Untouched> {
        let mut level = self.scanner.enter_object()?;
        let (mut subscription, mut delivery_attempt) = (None, None);
        while let Some(key) = self.key(&mut level)? {
            match &*key {
                "message" => self.message()?,
                "subscription" => subscription = self.text()?,
                "deliveryAttempt" | "delivery_attempt" => delivery_attempt = Some(self.scanner.skip()?),
                _ => drop(self.scanner.skip()?),
            }
        }
        self.envelop(0, None, delivery_attempt)?;
        if self.scratch.messages.is_empty() {
            Err(Untouched::Shape)
        } else {
            subscription.ok_or(Untouched::Shape)
        }
    }

    /// Notes what stands around a message, of which there may be only one.
    fn envelop(
        &mut self,
        before: usize,
        ack_id: Option<Span>,
        delivery_attempt: Option<Span>,
    ) -> Result<(), Untouched> {
        if self.scratch.messages.len() > before + 1 {
            return Err(Untouched::Shape);
        }
        if let Some(message) = self.scratch.messages.get_mut(before) {
            (message.ack_id, message.delivery_attempt) = (ack_id, delivery_attempt);
        }
        Ok(())
    }

    fn message(&mut self) -> Result<(), Untouched> {
        if self.scratch.messages.len() >= EVENTS_MAX {
            return Err(Untouched::TooMany);
        }
        let mut level = self.scanner.enter_object()?;
        let mut message = MessageAt { end: level.span().end() as u32, ..MessageAt::default() };
        while let Some(key) = self.key(&mut level)? {
            match &*key {
                "attributes" => message.attributes = self.attributes(message.attributes)?,
                "data" => {
                    message.data_again |= message.data.is_some();
                    message.data = self.text()?;
                }
                "messageId" | "message_id" => message.message_id = self.text()?,
                "orderingKey" | "ordering_key" => message.ordering_key = self.text()?,
                "publishTime" | "publish_time" => message.publish_time = self.text()?,
                _ => drop(self.scanner.skip()?),
            }
            message.end = self.scanner.value_end() as u32;
            message.has_members = true;
        }
        message.span = level.span();
        self.scratch.messages.push(message);
        Ok(())
    }

    fn attributes(&mut self, before: AttributesAt) -> Result<AttributesAt, Untouched> {
        let again = !matches!(before, AttributesAt::Absent);
        let attributes = match self.scanner.kind() {
            Kind::Object => AttributesAt::Object(self.scanner.object(&mut self.scratch.outline)?),
            Kind::Null => AttributesAt::Null(self.scanner.skip()?),
            Kind::Array | Kind::Text | Kind::Scalar => {
                self.scanner.skip()?;
                AttributesAt::Unfit
            }
        };
        Ok(if again { AttributesAt::Unfit } else { attributes })
    }

    fn key(&mut self, level: &mut json::Level) -> Result<Option<Cow<'a, str>>, Untouched> {
        let key = self.scanner.next_key(level)?;
        Ok(key.map(|key| json::unescape(key.text(self.scanner.text())).unwrap_or_default()))
    }

    /// The inside of the string ahead; `None`, and past it, if it is something else.
    fn text(&mut self) -> Result<Option<Span>, Untouched> {
        let kind = self.scanner.kind();
        Ok(json::quoted(self.scanner.skip()?, kind))
    }
}

/// What tracing reads of a body of `:acknowledge` or `:modifyAckDeadline`: how many deliveries it settles.
///
/// # Errors
/// Why the body cannot be read.
pub fn ack_ids(body: &[u8]) -> Result<usize, Untouched> {
    let mut count = 0;
    texts(body, &["ackIds", "ack_ids"], &mut |_| count += 1)?;
    Ok(count)
}

/// The ids of a publish's answer, in the order of its messages.
///
/// # Errors
/// Why the body cannot be read; ids up to there have been visited.
pub fn message_ids(body: &[u8], visit: &mut dyn FnMut(&str)) -> Result<(), Untouched> {
    texts(body, &["messageIds", "message_ids"], visit)
}

/// The texts of a list that is a member of the body's object.
fn texts(body: &[u8], names: &[&str], visit: &mut dyn FnMut(&str)) -> Result<(), Untouched> {
    let mut scanner = Scanner::new(body)?;
    let text = scanner.text();
    let mut level = scanner.enter_object()?;
    while let Some(key) = scanner.next_key(&mut level)? {
        if !names.iter().any(|name| json::is(key.text(text), name)) || scanner.kind() != Kind::Array {
            scanner.skip()?;
            continue;
        }
        let mut list = scanner.enter_array()?;
        while scanner.next_element(&mut list)? {
            let kind = scanner.kind();
            let inside = json::quoted(scanner.skip()?, kind);
            visit(&inside.and_then(|inside| json::unescape(inside.text(text))).unwrap_or_default());
        }
    }
    scanner.finish()
}

#[cfg(test)]
mod tests {
    use super::super::judge::{Json, Seed, utf16};
    use super::*;

    #[test]
    fn a_push_is_seen_in_any_order_and_spelling() {
        let body = br#"{"deliveryAttempt":3,"message":{"publish_time":"1970-01-01T00:00:01Z","ordering_key":"o",
            "message_id":"7","data":"Zm9v","attributes":{"k":"v\/w","k2":null}},"subscription":"projects\/p\/subscriptions\/s"}"#;
        let mut scratch = Scratch::default();
        let messages = Messages::read(body, Form::Push, &mut scratch).unwrap();
        assert_eq!(
            (messages.len(), messages.subscription().as_deref()),
            (1, Some("projects/p/subscriptions/s"))
        );
        let view = messages.view(0);
        assert_eq!(view.data.unwrap().of(body), b"Zm9v");
        assert_eq!((view.message_id.as_deref(), view.ordering_key.as_deref()), (Some("7"), Some("o")));
        assert_eq!((view.publish_time_unix_ns, view.delivery_attempt), (Some(1_000_000_000), Some(3)));
        assert_eq!((view.attributes.get("k").as_deref(), view.attributes.get("k2")), (Some("v/w"), None));
        assert_eq!((view.attributes.len(), view.ack_id), (2, None));
    }

    #[test]
    fn a_pull_is_seen() {
        let body = br#"{"receivedMessages":[{"ackId":"A","message":{"messageId":"1","orderingKey":""},"deliveryAttempt":"2"},{"ackId":"B"}]}"#;
        let mut scratch = Scratch::default();
        let messages = Messages::read(body, Form::Pull, &mut scratch).unwrap();
        let view = messages.view(0);
        assert_eq!((messages.len(), view.ack_id.as_deref(), view.delivery_attempt), (1, Some("A"), Some(2)));
        assert_eq!((view.ordering_key, view.data, view.attributes.is_empty()), (None, None, true));
    }

    #[test]
    fn an_event_in_attributes_or_in_the_data_is_seen() {
        let body = br#"{"messages":[
            {"attributes":{"ce-id":"1","ce-source":"s","ce-type":"t","ce-specversion":"1.0","ce-traceparent":"T"}},
            {"attributes":{"ce-id":"1"}},
            {"attributes":{"content-type":"application/cloudevents+json"},"data":"eyJpZCI6IjEifQ"}]}"#;
        let (mut scratch, mut inside) = (Scratch::default(), InsideScratch::default());
        let messages = Messages::read(body, Form::Publish, &mut scratch).unwrap();
        let event = messages.view(0).attributes.binary_event().unwrap();
        assert_eq!((event.id.as_deref(), event.traceparent.as_deref()), (Some("1"), Some("T")));
        assert_eq!(messages.view(1).attributes.binary_event(), None);
        assert!(messages.inside(1, &mut inside).unwrap().is_none());
        assert_eq!(messages.inside(2, &mut inside).unwrap().unwrap().view().id.as_deref(), Some("1"));
    }

    #[test]
    fn an_event_of_another_message_is_refused() {
        let body =
            br#"{"messages":[{"attributes":{"content-type":"application/cloudevents+json"},"data":"e30="},
            {"attributes":{},"data":"e30="}]}"#;
        let (mut scratch, mut inside) = (Scratch::default(), InsideScratch::default());
        let messages = Messages::read(body, Form::Publish, &mut scratch).unwrap();
        let event = messages.inside(0, &mut inside).unwrap().unwrap();
        let mut splices = Splices::new();
        let edits = [Edit::set("traceparent", "X")];
        let edit = MessageEdit { attributes: &edits, event: Some((event, &edits)) };
        assert_eq!(messages.edit(1, edit, &mut splices), Err(Untouched::Order));
        assert!(splices.is_empty(), "a failed edit leaves nothing behind");
    }

    #[test]
    fn settled_and_published_ids_are_counted() {
        assert_eq!(ack_ids(br#"{"ackIds":["a","b"],"ackDeadlineSeconds":0}"#), Ok(2));
        assert_eq!(ack_ids(br#"{"ack_ids":null}"#), Ok(0));
        assert_eq!(ack_ids(b"["), Err(Untouched::Shape));
        let mut ids = Vec::new();
        message_ids(br#"{"messageIds":["1","2\/3"]}"#, &mut |id| ids.push(id.to_owned())).unwrap();
        assert_eq!(ids, ["1", "2/3"]);
    }

    fn base64(seed: &mut Seed, text: &str) -> String {
        let alphabet: &[u8] = match seed.below(2) {
            0 => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
            _ => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
        };
        let mut digits = String::new();
        for chunk in text.as_bytes().chunks(3) {
            let bits = chunk.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte))
                << (8 * (3 - chunk.len()));
            (0..=chunk.len()).for_each(|i| digits.push(char::from(alphabet[bits >> (18 - 6 * i) & 63])));
        }
        if seed.one_in(2) {
            digits.push_str(&"=".repeat((4 - digits.len() % 4) % 4));
        }
        if seed.one_in(2) { digits.replace('/', "\\/") } else { digits }
    }

    fn bytes_of(digits: &str) -> Vec<u8> {
        let values = digits.trim_end_matches('=').bytes().map(|digit| match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => panic!("{digits}"),
        });
        let bits: Vec<u8> = values.flat_map(|value| (0..6).rev().map(move |bit| value >> bit & 1)).collect();
        bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
    }

    #[test]
    fn an_edit_changes_the_attributes_and_the_event_alone() {
        let mut seed = Seed(5);
        let (mut scratch, mut inside, mut splices) =
            (Scratch::default(), InsideScratch::default(), Splices::new());
        for _ in 0..5_000 {
            let mut event = String::new();
            seed.object(2, &mut event);
            let data = base64(&mut seed, &event);
            let attributes = r#""attributes" : {"content-type":"application/cloudevents+json", "k":"v"}"#;
            let (first, second) = (format!("\"data\":\"{data}\""), attributes.to_owned());
            let (first, second) = if seed.one_in(2) { (first, second) } else { (second, first) };
            let text = format!("{{\"messages\":[{{{first} ,{second}}}], \"x\":1.0}}");
            let (edits, event_edits) =
                (seed.edits(&["traceparent", "k"]), seed.edits(&["traceparent", "id"]));
            let list = |edits: &[(&'static str, Option<&'static str>)]| -> Vec<Edit<'static>> {
                edits.iter().map(|(name, value)| Edit { name, value: *value }).collect()
            };
            let messages = Messages::read(text.as_bytes(), Form::Publish, &mut scratch).unwrap();
            let opened = messages.inside(0, &mut inside).unwrap().unwrap();
            splices.clear();
            let (a, e) = (list(&edits), list(&event_edits));
            messages
                .edit(0, MessageEdit { attributes: &a, event: Some((opened, &e)) }, &mut splices)
                .unwrap();
            let mut out = Vec::new();
            splices.apply(text.as_bytes(), &mut out).unwrap();

            let mut model = Json::parse(text.as_bytes()).unwrap();
            let mut judged = Json::parse(&out).unwrap_or_else(|| panic!("{text}\n{}", out.escape_ascii()));
            let old = part(&mut model, &edits);
            let new = part(&mut judged, &[]);
            assert_eq!(model, judged, "{text}\n{}", out.escape_ascii());
            assert_eq!(bytes_of(&old), event.as_bytes());
            let mut event_model = Json::parse(event.as_bytes()).unwrap();
            event_model.edit(&event_edits);
            assert_eq!(Json::parse(&bytes_of(&new)), Some(event_model), "{text}\n{}", out.escape_ascii());
            if event_edits.is_empty() {
                assert_eq!(old, new);
            }
        }
    }

    /// Edits the first message's attributes, and takes its data out.
    fn part(body: &mut Json, edits: &[(&str, Option<&str>)]) -> String {
        let messages = &mut body.members().unwrap()[0].1;
        let Json::List(messages) = messages else { panic!() };
        let mut taken = String::new();
        for (key, value) in messages[0].members().unwrap() {
            if *key == utf16("attributes") {
                value.edit(edits);
            }
            if let (true, Json::Text(data)) = (*key == utf16("data"), &mut *value) {
                taken = String::from_utf16(&std::mem::take(data)).unwrap();
            }
        }
        taken
    }

    #[test]
    fn damaged_bodies_pass_or_are_refused_but_never_break() {
        let mut seed = Seed(6);
        let (mut scratch, mut inside, mut splices) =
            (Scratch::default(), InsideScratch::default(), Splices::new());
        for _ in 0..20_000 {
            let mut body = br#"{"messages":[{"data":"eyJpZCI6IjEifQ==","attributes":{"content-type":"application/cloudevents+json"}},{"orderingKey":"\u0041"}]}"#.to_vec();
            seed.damage(&mut body);
            splices.clear();
            let Ok(messages) = Messages::read(&body, Form::Publish, &mut scratch) else { continue };
            let edits = [Edit::set("traceparent", "X")];
            for i in 0..messages.len() {
                let event = messages.inside(i, &mut inside).ok().flatten().map(|event| (event, &edits[..]));
                let _ = messages.edit(i, MessageEdit { attributes: &edits, event }, &mut splices);
            }
            let mut out = Vec::new();
            splices.apply(&body, &mut out).unwrap();
            assert!(Json::parse(&out).is_some(), "{} {}", body.escape_ascii(), out.escape_ascii());
        }
    }
}
