//! Pub/Sub messages in protobuf (`google.pubsub.v1`), as gRPC carries them. Reads each message and changes
//! its attributes, or the structured event in its data; lengths around a change follow it. Field order,
//! unknown fields and the spelling of untouched lengths stay.

use std::borrow::Cow;

use super::protobuf::{Delimited, Entry, Field, Fields, MapEdit, Resized, Value, text};
use super::pubsub::{Attributes, Inside, InsideScratch, MessageEdit, MessageView};
use super::splice::{Span, Splices};
use super::{EVENTS_MAX, MEMBERS_MAX, MEMBERS_TOTAL_MAX, Untouched};

/// The messages of the API that carry Pub/Sub messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `PublishRequest { topic = 1, messages = 2 }`
    PublishRequest,
    /// `PullResponse` and `StreamingPullResponse { received_messages = 1 }`
    PullResponse,
}

#[derive(Clone, Copy, Debug)]
struct MessageAt {
    /// The `ReceivedMessage` around it.
    received: Option<Delimited>,
    message: Delimited,
    first_entry: u32,
    entries: u32,
    data: Option<Delimited>,
    message_id: Option<Span>,
    ordering_key: Option<Span>,
    publish_time_unix_ns: Option<u64>,
    ack_id: Option<Span>,
    delivery_attempt: Option<u32>,
}

/// The memory of a reading; reusable from body to body.
#[derive(Debug, Default)]
pub struct Scratch {
    entries: Vec<Entry>,
    messages: Vec<MessageAt>,
}

/// The messages of one protobuf body, found and checked, not yet changed.
#[derive(Debug)]
pub struct Messages<'a, 's> {
    body: &'a [u8],
    scratch: &'s Scratch,
    topic: Option<Span>,
}

// Field numbers of google/pubsub/v1/pubsub.proto.
const ATTRIBUTES: u32 = 2;

impl<'a, 's> Messages<'a, 's> {
    /// Reads one protobuf message, without gRPC's five bytes before it.
    ///
    /// # Errors
    /// Why it cannot be edited.
    pub fn read(body: &'a [u8], form: Form, scratch: &'s mut Scratch) -> Result<Self, Untouched> {
        scratch.entries.clear();
        scratch.messages.clear();
        let mut topic = None;
        let mut fields = Fields::of_body(body)?;
        while let Some(field) = fields.next_field()? {
            match (form, field.number, field.value) {
                (Form::PublishRequest, 1, Value::Delimited(name)) => topic = Some(name.content),
                (Form::PublishRequest, 2, Value::Delimited(message)) => scratch.message(body, message)?,
                (Form::PullResponse, 1, Value::Delimited(received)) => scratch.received(body, received)?,
                _ => {}
            }
        }
        Ok(Self { body, scratch, topic })
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scratch.messages.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scratch.messages.is_empty()
    }

    /// The topic's full name; only a publish carries it.
    #[must_use]
    pub fn topic(&self) -> Option<&'a str> {
        text(self.topic?, self.body)
    }

    /// What tracing reads of a message; nothing beyond the last one.
    #[must_use]
    pub fn view(&self, index: usize) -> MessageView<'_> {
        let Some(at) = self.scratch.messages.get(index) else {
            return MessageView::default();
        };
        let string = |place: Option<Span>| {
            place.and_then(|place| text(place, self.body)).filter(|text| !text.is_empty()).map(Cow::Borrowed)
        };
        MessageView {
            attributes: self.attributes(at),
            data: at.data.map(|data| data.content),
            message_id: string(at.message_id),
            ordering_key: string(at.ordering_key),
            publish_time_unix_ns: at.publish_time_unix_ns,
            delivery_attempt: at.delivery_attempt.filter(|attempt| *attempt > 0),
            ack_id: string(at.ack_id),
        }
    }

    fn attributes(&self, at: &MessageAt) -> Attributes<'_> {
        Attributes::Protobuf(self.body, self.scratch.entries_of(at))
    }

    /// Opens the structured event in a message's data; `None` if its attributes do not announce one.
    ///
    /// # Errors
    /// Why the event cannot be edited; the message's attributes still can.
    pub fn inside<'m>(
        &self,
        index: usize,
        scratch: &'m mut InsideScratch,
    ) -> Result<Option<Inside<'a, 'm>>, Untouched>
    where
        'a: 'm,
    {
        let Some(at) =
            self.scratch.messages.get(index).filter(|at| self.attributes(at).announce_structured())
        else {
            return Ok(None);
        };
        at.data.map(|data| Inside::plain(data.content.of(self.body), scratch)).transpose()
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
        let outermost = at.received.unwrap_or(at.message);
        splices.claim(self.body.len(), Span::new(outermost.length.start(), outermost.content.end()))?;
        let mark = splices.mark();
        let received = at.received.map(|received| Resized::open(received, splices));
        let message = Resized::open(at.message, splices);
        let opened = splices.count_since(mark);
        let done = self.edit_parts(at, edit, splices);
        if done.is_err() || splices.count_since(mark) == opened {
            splices.rollback(mark);
            return done;
        }
        message.close(self.body, splices);
        if let Some(received) = received {
            received.close(self.body, splices);
        }
        Ok(())
    }

    fn edit_parts(
        &self,
        at: &MessageAt,
        edit: MessageEdit<'_, '_, '_>,
        splices: &mut Splices,
    ) -> Result<(), Untouched> {
        let map =
            MapEdit { number: ATTRIBUTES, entries: self.scratch.entries_of(at), edits: edit.attributes };
        map.check()?;
        let end = at.message.content.end();
        let mut changed_to = 0;
        if let (Some((inside, edits)), Some(data)) = (edit.event, at.data) {
            changed_to = data.length.start();
            map.change(self.body, 0..changed_to, splices);
            let resized = Resized::open(data, splices);
            inside.edit(data.content.of(self.body), data.content, edits, splices)?;
            resized.close(self.body, splices);
        }
        map.change(self.body, changed_to..end, splices);
        map.add(self.body, end, splices);
        Ok(())
    }
}

impl Scratch {
    fn entries_of(&self, at: &MessageAt) -> &[Entry] {
        let first = at.first_entry as usize;
        self.entries.get(first..first + at.entries as usize).unwrap_or_default()
    }

    /// `ReceivedMessage { ack_id = 1, message = 2, delivery_attempt = 3 }`. A second `message` would be merged
    /// with the first by protobuf's rules: nobody sends one, and such a body is left alone.
    fn received(&mut self, body: &[u8], received: Delimited) -> Result<(), Untouched> {
        let before = self.messages.len();
        let (mut ack_id, mut delivery_attempt) = (None, None);
        let mut fields = Fields::within(body, received.content);
        while let Some(field) = fields.next_field()? {
            match (field.number, field.value) {
                (1, Value::Delimited(id)) => ack_id = Some(id.content),
                (2, Value::Delimited(message)) => self.message(body, message)?,
                (3, Value::Varint(attempt)) => delivery_attempt = u32::try_from(attempt).ok(),
                _ => {}
            }
        }
        if self.messages.len() > before + 1 {
            return Err(Untouched::Shape);
        }
        if let Some(message) = self.messages.get_mut(before) {
            message.received = Some(received);
            (message.ack_id, message.delivery_attempt) = (ack_id, delivery_attempt);
        }
        Ok(())
    }

    /// `PubsubMessage { data = 1, attributes = 2, message_id = 3, publish_time = 4, ordering_key = 5 }`
    fn message(&mut self, body: &[u8], message: Delimited) -> Result<(), Untouched> {
        if self.messages.len() >= EVENTS_MAX {
            return Err(Untouched::TooMany);
        }
        let first_entry = self.entries.len();
        let mut at = MessageAt {
            received: None,
            message,
            first_entry: first_entry as u32,
            entries: 0,
            data: None,
            message_id: None,
            ordering_key: None,
            publish_time_unix_ns: None,
            ack_id: None,
            delivery_attempt: None,
        };
        let mut fields = Fields::within(body, message.content);
        while let Some(field) = fields.next_field()? {
            match (field.number, field.value) {
                (1, Value::Delimited(data)) => at.data = Some(data),
                (ATTRIBUTES, Value::Delimited(entry)) => self.entry(body, &field, entry, first_entry)?,
                (3, Value::Delimited(id)) => at.message_id = Some(id.content),
                (4, Value::Delimited(time)) => at.publish_time_unix_ns = timestamp(body, time.content)?,
                (5, Value::Delimited(key)) => at.ordering_key = Some(key.content),
                _ => {}
            }
        }
        at.entries = (self.entries.len() - first_entry) as u32;
        self.messages.push(at);
        Ok(())
    }

    fn entry(&mut self, body: &[u8], field: &Field, entry: Delimited, first: usize) -> Result<(), Untouched> {
        if self.entries.len() - first >= MEMBERS_MAX || self.entries.len() >= MEMBERS_TOTAL_MAX {
            return Err(Untouched::TooMany);
        }
        self.entries.push(Entry::read(body, field, entry)?);
        Ok(())
    }
}

/// `google.protobuf.Timestamp { seconds = 1, nanos = 2 }`; `None` before 1970 or beyond 64 bits.
fn timestamp(body: &[u8], place: Span) -> Result<Option<u64>, Untouched> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut fields = Fields::within(body, place);
    while let Some(field) = fields.next_field()? {
        match (field.number, field.value) {
            (1, Value::Varint(value)) => seconds = value,
            (2, Value::Varint(value)) => nanos = value,
            _ => {}
        }
    }
    Ok(seconds.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(nanos)))
}

/// The requests that name their subscription in field 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionRequest {
    /// `PullRequest`
    Pull,
    /// `StreamingPullRequest`; its ids are acknowledged on the stream.
    StreamingPull,
    /// `AcknowledgeRequest`
    Acknowledge,
    /// `ModifyAckDeadlineRequest`
    ModifyAckDeadline,
}

/// What tracing reads of such a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionView<'a> {
    /// The subscription's full name; on a stream, only the first request has it.
    pub subscription: Option<&'a str>,
    /// Deliveries that it acknowledges.
    pub acknowledged: usize,
    /// Deliveries whose deadline it moves.
    pub deadlines_moved: usize,
}

/// Reads a request about a subscription.
///
/// # Errors
/// Why it cannot be read.
pub fn subscription_view(
    body: &[u8],
    request: SubscriptionRequest,
) -> Result<SubscriptionView<'_>, Untouched> {
    use SubscriptionRequest::{Acknowledge, ModifyAckDeadline, StreamingPull};
    let mut view = SubscriptionView::default();
    let mut fields = Fields::of_body(body)?;
    while let Some(field) = fields.next_field()? {
        match (request, field.number, field.value) {
            (_, 1, Value::Delimited(name)) => {
                view.subscription = text(name.content, body).filter(|name| !name.is_empty());
            }
            (Acknowledge | StreamingPull, 2, Value::Delimited(_)) => view.acknowledged += 1,
            (ModifyAckDeadline | StreamingPull, 4, Value::Delimited(_)) => view.deadlines_moved += 1,
            _ => {}
        }
    }
    Ok(view)
}

/// The ids of a `PublishResponse { message_ids = 1 }`, in the order of the request's messages.
///
/// # Errors
/// Why it cannot be read; ids up to there have been visited.
pub fn message_ids(body: &[u8], visit: &mut dyn FnMut(&str)) -> Result<(), Untouched> {
    let mut fields = Fields::of_body(body)?;
    while let Some(field) = fields.next_field()? {
        if let (1, Value::Delimited(id)) = (field.number, field.value) {
            visit(text(id.content, body).unwrap_or_default());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;

    use super::super::judge::{self, Json, Seed, spell};
    use super::super::{Edit, NESTING_MAX};
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct PublishRequest {
        #[prost(string, tag = "1")]
        topic: String,
        #[prost(message, repeated, tag = "2")]
        messages: Vec<PubsubMessage>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct PubsubMessage {
        #[prost(bytes = "vec", tag = "1")]
        data: Vec<u8>,
        #[prost(btree_map = "string, string", tag = "2")]
        attributes: BTreeMap<String, String>,
        #[prost(string, tag = "3")]
        message_id: String,
        #[prost(message, optional, tag = "4")]
        publish_time: Option<Timestamp>,
        #[prost(string, tag = "5")]
        ordering_key: String,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Timestamp {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct StreamingPullResponse {
        #[prost(message, repeated, tag = "1")]
        received_messages: Vec<ReceivedMessage>,
        #[prost(bool, tag = "4")]
        something_newer: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    struct ReceivedMessage {
        #[prost(string, tag = "1")]
        ack_id: String,
        #[prost(message, optional, tag = "2")]
        message: Option<PubsubMessage>,
        #[prost(int32, tag = "3")]
        delivery_attempt: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct StreamingPullRequest {
        #[prost(string, tag = "1")]
        subscription: String,
        #[prost(string, repeated, tag = "2")]
        ack_ids: Vec<String>,
        #[prost(int32, repeated, tag = "3")]
        modify_deadline_seconds: Vec<i32>,
        #[prost(string, repeated, tag = "4")]
        modify_deadline_ack_ids: Vec<String>,
    }

    fn message(event: &str) -> PubsubMessage {
        let attributes = [("content-type", "application/cloudevents+json"), ("k", "v")];
        PubsubMessage {
            data: event.into(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            message_id: "7".to_owned(),
            publish_time: Some(Timestamp { seconds: 2, nanos: 5 }),
            ordering_key: "o".to_owned(),
        }
    }

    #[test]
    fn what_prost_writes_is_seen() {
        let body = PublishRequest { topic: "projects/p/topics/t".to_owned(), messages: vec![message("{}")] }
            .encode_to_vec();
        let mut scratch = Scratch::default();
        let messages = Messages::read(&body, Form::PublishRequest, &mut scratch).unwrap();
        assert_eq!((messages.len(), messages.topic()), (1, Some("projects/p/topics/t")));
        let view = messages.view(0);
        assert_eq!((view.attributes.get("k").as_deref(), view.attributes.len()), (Some("v"), 2));
        assert_eq!((view.message_id.as_deref(), view.ordering_key.as_deref()), (Some("7"), Some("o")));
        assert_eq!(
            (view.publish_time_unix_ns, view.delivery_attempt, view.ack_id),
            (Some(2_000_000_005), None, None)
        );
        assert_eq!(view.data.unwrap().of(&body), b"{}");
    }

    #[test]
    fn what_is_edited_is_what_prost_reads() {
        let received =
            |attempt, message| ReceivedMessage { ack_id: "A".to_owned(), message, delivery_attempt: attempt };
        let mut response = StreamingPullResponse {
            received_messages: vec![
                received(1, Some(message(r#"{"id":"1"}"#))),
                received(2, None),
                received(3, Some(PubsubMessage::default())),
            ],
            something_newer: true,
        };
        let body = response.encode_to_vec();
        let (mut scratch, mut inside, mut splices) =
            (Scratch::default(), InsideScratch::default(), Splices::new());
        let messages = Messages::read(&body, Form::PullResponse, &mut scratch).unwrap();
        assert_eq!((messages.len(), messages.view(1).delivery_attempt), (2, Some(3)));
        let long = "x".repeat(300);
        let edits = [Edit::set("traceparent", &long), Edit::remove("k")];
        let event_edits = [Edit::set("traceparent", &long)];
        let event = messages.inside(0, &mut inside).unwrap().unwrap();
        assert_eq!(event.view().id.as_deref(), Some("1"));
        messages
            .edit(0, MessageEdit { attributes: &edits, event: Some((event, &event_edits)) }, &mut splices)
            .unwrap();
        messages.edit(1, MessageEdit { attributes: &edits, event: None }, &mut splices).unwrap();
        let mut out = Vec::new();
        splices.apply(&body, &mut out).unwrap();

        for (index, data) in [(0, Some(format!(r#"{{"id":"1","traceparent":"{long}"}}"#))), (2, None)] {
            let message = response.received_messages[index].message.as_mut().unwrap();
            message.attributes.remove("k");
            message.attributes.insert("traceparent".to_owned(), long.clone());
            message.data = data.map_or(Vec::new(), String::into_bytes);
        }
        assert_eq!(StreamingPullResponse::decode(out.as_slice()).unwrap(), response);
    }

    #[test]
    fn requests_about_a_subscription_are_seen() {
        let mut request = StreamingPullRequest {
            subscription: "projects/p/subscriptions/s".to_owned(),
            ack_ids: vec!["a".to_owned(), "b".to_owned()],
            modify_deadline_seconds: vec![0],
            modify_deadline_ack_ids: vec!["c".to_owned()],
        };
        let body = request.encode_to_vec();
        let view = subscription_view(&body, SubscriptionRequest::StreamingPull).unwrap();
        assert_eq!(
            view,
            SubscriptionView {
                subscription: Some("projects/p/subscriptions/s"),
                acknowledged: 2,
                deadlines_moved: 1
            }
        );
        let view = subscription_view(&body, SubscriptionRequest::Acknowledge).unwrap();
        assert_eq!((view.acknowledged, view.deadlines_moved), (2, 0));
        request.subscription.clear();
        assert_eq!(
            subscription_view(&request.encode_to_vec(), SubscriptionRequest::StreamingPull)
                .unwrap()
                .subscription,
            None
        );
        let mut ids = Vec::new();
        message_ids(b"\x0a\x01a\x0a\x02bc", &mut |id| ids.push(id.to_owned())).unwrap();
        assert_eq!(ids, ["a", "bc"]);
    }

    type Wire = Vec<(u64, u64, Vec<u8>)>;

    /// Fields that the service does not know, to be kept: of every wire type.
    fn unknown(seed: &mut Seed, fields: &mut Wire) {
        while seed.one_in(3) {
            fields.push(match seed.below(4) {
                0 => (100, 0, vec![0x81, 0x80, 0x00]),
                1 => (2_000, 1, vec![7; 8]),
                2 => (536_870_911, 5, vec![8; 4]),
                _ => (99, 2, b"unknown".to_vec()),
            });
        }
    }

    fn wire_message(seed: &mut Seed, event: &str) -> Wire {
        let mut message = Wire::new();
        for _ in 0..seed.below(6) {
            let key = seed.pick(&["traceparent", "k", "", "x\u{e9}"]).as_bytes().to_vec();
            let mut entry = vec![(1, 2, key)];
            unknown(seed, &mut entry);
            for _ in 0..seed.below(3) {
                let value = seed.pick(&["", "old", "longer than before"]).as_bytes().to_vec();
                entry.insert(seed.below(entry.len() + 1), (2, 2, value));
            }
            message.push((2, 2, spell(&entry)));
            unknown(seed, &mut message);
        }
        let at = seed.below(message.len() + 1);
        message.insert(at, (1, 2, event.as_bytes().to_vec()));
        let announcement =
            vec![(1, 2, b"content-type".to_vec()), (2, 2, b"application/cloudevents+json".to_vec())];
        message.insert(seed.below(message.len() + 1), (2, 2, spell(&announcement)));
        message
    }

    #[test]
    fn an_edit_changes_the_attributes_and_the_event_alone() {
        let mut seed = Seed(7);
        let (mut scratch, mut inside, mut splices) =
            (Scratch::default(), InsideScratch::default(), Splices::new());
        for _ in 0..10_000 {
            let mut event = String::new();
            seed.object(2, &mut event);
            let mut message = wire_message(&mut seed, &event);
            let pull = seed.one_in(2);
            let mut around =
                if pull { vec![(1, 2, b"ack".to_vec())] } else { vec![(1, 2, b"topic".to_vec())] };
            unknown(&mut seed, &mut around);
            let enclose = |message: &Wire| {
                let mut outer = around.clone();
                outer.insert(1, (2, 2, spell(message)));
                if pull {
                    spell(&[(9, 0, vec![1]), (1, 2, spell(&outer)), (1, 2, spell(&outer))])
                } else {
                    spell(&outer)
                }
            };
            let body = enclose(&message);
            let (edits, event_edits) =
                (seed.edits(&["traceparent", "k", "new"]), seed.edits(&["traceparent", "id"]));
            let list = |edits: &[(&'static str, Option<&'static str>)]| -> Vec<Edit<'static>> {
                edits.iter().map(|(name, value)| Edit { name, value: *value }).collect()
            };
            let form = if pull { Form::PullResponse } else { Form::PublishRequest };
            let messages = Messages::read(&body, form, &mut scratch).unwrap();
            assert_eq!(messages.len(), if pull { 2 } else { 1 });
            splices.clear();
            let (a, e) = (list(&edits), list(&event_edits));
            for i in 0..messages.len() {
                let opened = messages.inside(i, &mut inside).unwrap().unwrap();
                messages
                    .edit(i, MessageEdit { attributes: &a, event: Some((opened, &e)) }, &mut splices)
                    .unwrap();
            }
            let mut out = Vec::new();
            splices.apply(&body, &mut out).unwrap();

            judge::edit_map(&mut message, 2, &edits).unwrap();
            let mut event_model = Json::parse(event.as_bytes()).unwrap();
            event_model.edit(&event_edits);
            // The event is judged as JSON, everything else byte by byte.
            let spelled = event_of(&out, pull);
            assert_eq!(Json::parse(&spelled), Some(event_model), "{}", out.escape_ascii());
            message.iter_mut().filter(|field| field.0 == 1).for_each(|field| field.2 = spelled.clone());
            assert_eq!(
                out.escape_ascii().to_string(),
                enclose(&message).escape_ascii().to_string(),
                "{edits:?}"
            );
        }
    }

    fn event_of(body: &[u8], pull: bool) -> Vec<u8> {
        let field = |message: &[u8], number| {
            judge::fields(message).unwrap().into_iter().find(|field| field.0 == number).unwrap().2
        };
        let message = if pull { field(&field(body, 1), 2) } else { field(body, 2) };
        field(&message, 1)
    }

    #[test]
    fn a_length_in_a_longer_spelling_stays_unless_it_changes() {
        // messages: length 0x85 0x00, an attribute "a": "b" of six bytes, then an unknown field.
        let body = b"\x12\x8a\x00\x12\x06\x0a\x01a\x12\x01b\x78\x01\x0a\x01t";
        let mut scratch = Scratch::default();
        let edit = |value: &str, scratch: &mut Scratch| {
            let messages = Messages::read(body, Form::PublishRequest, scratch).unwrap();
            let mut splices = Splices::new();
            let edits = [Edit::set("a", value)];
            messages.edit(0, MessageEdit { attributes: &edits, event: None }, &mut splices).unwrap();
            let mut out = Vec::new();
            splices.apply(body, &mut out).unwrap();
            out
        };
        assert_eq!(edit("b", &mut scratch), body);
        assert_eq!(edit("c", &mut scratch), b"\x12\x8a\x00\x12\x06\x0a\x01a\x12\x01c\x78\x01\x0a\x01t");
        assert_eq!(edit("cd", &mut scratch), b"\x12\x0b\x12\x07\x0a\x01a\x12\x02cd\x78\x01\x0a\x01t");
    }

    #[test]
    fn hostile_bodies_are_refused() {
        let mut scratch = Scratch::default();
        for body in [
            &b"\x12"[..],
            b"\x12\x05\x0a",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x00\x01",
            b"\x13\x14",
            b"\x16\x01",
            b"\x12\x02\x12\x05",
            b"\x12\x04\x12\x02\x0a\x09",
            b"\xfa\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00",
            b"\x09\x01\x02",
        ] {
            let refused = Messages::read(body, Form::PublishRequest, &mut scratch).err();
            assert_eq!(refused, Some(Untouched::NotProtobuf), "{}", body.escape_ascii());
        }
        let widest = b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert!(
            Messages::read(widest, Form::PublishRequest, &mut scratch)
                .is_ok_and(|messages| messages.is_empty())
        );
        let twice = b"\x0a\x04\x12\x00\x12\x00";
        assert_eq!(Messages::read(twice, Form::PullResponse, &mut scratch).err(), Some(Untouched::Shape));
        let many = b"\x12\x00".repeat(EVENTS_MAX + 1);
        assert_eq!(Messages::read(&many, Form::PublishRequest, &mut scratch).err(), Some(Untouched::TooMany));
        let crowded = spell(&[(2, 2, b"\x12\x00".repeat(MEMBERS_MAX + 1))]);
        assert_eq!(
            Messages::read(&crowded, Form::PublishRequest, &mut scratch).err(),
            Some(Untouched::TooMany)
        );
        let deep = "[".repeat(NESTING_MAX as usize + 1);
        let body =
            PublishRequest { topic: String::new(), messages: vec![message(&format!("{{\"data\":{deep}"))] }
                .encode_to_vec();
        let messages = Messages::read(&body, Form::PublishRequest, &mut scratch).unwrap();
        assert_eq!(messages.inside(0, &mut InsideScratch::default()).err(), Some(Untouched::TooDeep));
    }

    #[test]
    fn damaged_bodies_are_judged_as_a_naive_decoder_judges_them() {
        let mut seed = Seed(8);
        let mut scratch = Scratch::default();
        let mut read = 0;
        for _ in 0..20_000 {
            let message = wire_message(&mut seed, "{}");
            let mut body = spell(&[(1, 2, b"t".to_vec()), (2, 2, spell(&message))]);
            seed.damage(&mut body);
            let Ok(messages) = Messages::read(&body, Form::PublishRequest, &mut scratch) else { continue };
            read += 1;
            let mut model = judge::fields(&body).expect("what we read is protobuf");
            let mut splices = Splices::new();
            let edits = [Edit::set("traceparent", "X"), Edit::remove("k")];
            for i in 0..messages.len() {
                messages.edit(i, MessageEdit { attributes: &edits, event: None }, &mut splices).unwrap();
            }
            let mut out = Vec::new();
            splices.apply(&body, &mut out).unwrap();
            for field in model.iter_mut().filter(|field| (field.0, field.1) == (2, 2)) {
                let mut message = judge::fields(&field.2).unwrap();
                judge::edit_map(&mut message, 2, &[("traceparent", Some("X")), ("k", None)]).unwrap();
                field.2 = spell(&message);
            }
            let spelled = |body: &[u8]| judge::fields(body).map(|fields| spell(&fields));
            let again = model.iter().map(|field| field.2.clone());
            let judged = judge::fields(&out).unwrap();
            for (field, expected) in judged.iter().zip(again) {
                // Lengths in a longer spelling are kept by us and not by the model.
                assert!(
                    field.2 == expected || spelled(&field.2) == Some(expected),
                    "{}",
                    body.escape_ascii()
                );
            }
            assert_eq!(judged.len(), model.len());
        }
        assert!(read > 2_000, "{read} of 20000 could be read: the damage is no test");
    }
}
