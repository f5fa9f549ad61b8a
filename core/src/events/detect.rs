//! Which hop a request is, told by its method, path and headers. Never looks at the authority, so a local
//! endpoint, an emulator and the real service are the same; never decides what is done about it.

use std::borrow::Cow;

use super::cloudevent::percent_decode;
use super::pubsub::unix_ns;
use crate::carrier::Carrier;

/// The two transports of the Pub/Sub API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// JSON over HTTP.
    Rest,
    /// Protobuf over gRPC; names of topics and subscriptions are in the messages.
    Grpc,
}

/// How a push delivery carries its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// Perhaps as JSON in the body: nothing in the head says so. [`looks_wrapped`] and then
    /// [`super::pubsub_json::Messages::read`] tell.
    MaybeWrapped,
    /// The body is the message's data, the head has its metadata ([`PushHead`]) and its attributes.
    Unwrapped,
}

/// What a request does with events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop<'a> {
    /// Messages go to a topic.
    Publish {
        /// How.
        api: Api,
        /// Which, over REST.
        topic: Option<Resource<'a>>,
    },
    /// Messages are asked for; the answer carries them.
    Pull {
        /// How.
        api: Api,
        /// From where, over REST.
        subscription: Option<Resource<'a>>,
    },
    /// Messages are asked for on a gRPC stream; each answer on it carries some.
    StreamingPull,
    /// A delivery from a subscription.
    Push(Wrapping),
    /// Deliveries are settled.
    Acknowledge {
        /// How.
        api: Api,
        /// Where, over REST.
        subscription: Option<Resource<'a>>,
    },
    /// Deadlines of deliveries are moved; to 0 means given back.
    ModifyAckDeadline {
        /// How.
        api: Api,
        /// Where, over REST.
        subscription: Option<Resource<'a>>,
    },
    /// An event in the headers and the body.
    CloudEventBinary,
    /// An event in the body.
    CloudEventStructured,
    /// Several events in the body.
    CloudEventBatch,
    /// Nothing with events.
    None,
}

/// The full name of a topic or subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The project's id.
    pub project: Cow<'a, str>,
    /// The topic's or subscription's id, which spans are named after.
    pub id: Cow<'a, str>,
}

impl<'a> Resource<'a> {
    /// `projects/P/topics/T`, as messages carry it.
    #[must_use]
    pub fn topic(name: &'a str) -> Option<Self> {
        Self::of(name, "topics")
    }

    /// `projects/P/subscriptions/S`, as messages carry it.
    #[must_use]
    pub fn subscription(name: &'a str) -> Option<Self> {
        Self::of(name, "subscriptions")
    }

    fn of(name: &'a str, collection: &str) -> Option<Self> {
        let (project, rest) = name.strip_prefix("projects/")?.split_once('/')?;
        let id = rest.strip_prefix(collection)?.strip_prefix('/')?;
        let named = !project.is_empty() && !id.is_empty() && !id.contains('/');
        named.then_some(Self { project: Cow::Borrowed(project), id: Cow::Borrowed(id) })
    }

    fn into_owned(self) -> Resource<'static> {
        Resource { project: Cow::Owned(self.project.into_owned()), id: Cow::Owned(self.id.into_owned()) }
    }
}

/// How an HTTP message carries CloudEvents (HTTP binding §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentMode {
    /// Attributes in `ce-*` headers.
    Binary,
    /// One event in JSON.
    Structured,
    /// An array of events in JSON.
    Batch,
}

/// Which hop a request is. `path` may have a query.
#[must_use]
pub fn hop<'a>(method: &str, path: &'a str, carrier: &(impl Carrier + ?Sized)) -> Hop<'a> {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let called = if method == "POST" { grpc(path, carrier).or_else(|| rest(path)) } else { None };
    if let Some(hop) = called {
        return hop;
    }
    if PushHead::read(carrier).is_some() {
        return Hop::Push(Wrapping::Unwrapped);
    }
    match content_mode(carrier) {
        Some(ContentMode::Binary) => Hop::CloudEventBinary,
        Some(ContentMode::Structured) => Hop::CloudEventStructured,
        Some(ContentMode::Batch) => Hop::CloudEventBatch,
        None if method == "POST" && may_be_wrapped(carrier) => Hop::Push(Wrapping::MaybeWrapped),
        None => Hop::None,
    }
}

fn grpc<'a>(path: &str, carrier: &(impl Carrier + ?Sized)) -> Option<Hop<'a>> {
    let call = path.strip_prefix("/google.pubsub.v1.")?;
    if !media_type(carrier.get("content-type")?).starts_with("application/grpc") {
        return None;
    }
    let api = Api::Grpc;
    Some(match call {
        "Publisher/Publish" => Hop::Publish { api, topic: None },
        "Subscriber/Pull" => Hop::Pull { api, subscription: None },
        "Subscriber/StreamingPull" => Hop::StreamingPull,
        "Subscriber/Acknowledge" => Hop::Acknowledge { api, subscription: None },
        "Subscriber/ModifyAckDeadline" => Hop::ModifyAckDeadline { api, subscription: None },
        _ => return None,
    })
}

/// `/v1/projects/P/topics/T:publish` and its like; some clients percent-encode the colon or the slashes.
fn rest(path: &str) -> Option<Hop<'_>> {
    if !path.contains('%') {
        return called(path.strip_prefix("/v1/")?, |name| name);
    }
    let decoded = percent_decode(path.as_bytes())?;
    called(decoded.strip_prefix("/v1/")?, Resource::into_owned)
}

fn called<'n, 'a>(call: &'n str, keep: fn(Resource<'n>) -> Resource<'a>) -> Option<Hop<'a>> {
    let (name, verb) = call.rsplit_once(':')?;
    let (topic, subscription) =
        (|| Resource::topic(name).map(keep), || Resource::subscription(name).map(keep));
    let api = Api::Rest;
    Some(match verb {
        "publish" => Hop::Publish { api, topic: Some(topic()?) },
        "pull" => Hop::Pull { api, subscription: Some(subscription()?) },
        "acknowledge" => Hop::Acknowledge { api, subscription: Some(subscription()?) },
        "modifyAckDeadline" => Hop::ModifyAckDeadline { api, subscription: Some(subscription()?) },
        _ => return None,
    })
}

/// The metadata of an unwrapped push, which the subscription's `writeMetadata` puts into headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushHead<'a> {
    /// The subscription's full name.
    pub subscription: &'a str,
    /// The id that the service gave the message.
    pub message_id: Option<&'a str>,
    /// The ordering key.
    pub ordering_key: Option<&'a str>,
    /// When the service took the message in, in nanoseconds since 1970.
    pub publish_time_unix_ns: Option<u64>,
    /// The delivery attempt, from 1; absent unless the subscription counts them.
    pub delivery_attempt: Option<u32>,
}

impl<'a> PushHead<'a> {
    /// `None` if the subscription's name is missing, which every such push has.
    #[must_use]
    pub fn read(carrier: &'a (impl Carrier + ?Sized)) -> Option<Self> {
        let text = |name| carrier.get(name).and_then(|value| std::str::from_utf8(value).ok());
        Some(Self {
            subscription: text("x-goog-pubsub-subscription-name")?,
            message_id: text("x-goog-pubsub-message-id"),
            // The emulator leaves a word out.
            ordering_key: text("x-goog-pubsub-ordering-key").or_else(|| text("x-goog-ordering-key")),
            publish_time_unix_ns: text("x-goog-pubsub-publish-time").and_then(unix_ns),
            delivery_attempt: text("x-goog-pubsub-delivery-attempt").and_then(|attempt| attempt.parse().ok()),
        })
    }
}

/// How a request or a response carries CloudEvents, if it does. Event formats other than JSON are not read
/// and count as no event.
#[must_use]
pub fn content_mode(carrier: &(impl Carrier + ?Sized)) -> Option<ContentMode> {
    let media = carrier.get("content-type").unwrap_or_default();
    if media_type(media).starts_with("application/cloudevents") {
        return content_mode_of(media);
    }
    // "all of the mandatory attributes" tell an event from a message with a stray header (§3).
    let required = ["ce-specversion", "ce-id", "ce-source", "ce-type"];
    required.iter().all(|name| carrier.get(name).is_some()).then_some(ContentMode::Binary)
}

/// The mode that a content type tells.
pub(super) fn content_mode_of(media: &[u8]) -> Option<ContentMode> {
    let media = media_type(media);
    if media.is("application/cloudevents+json") {
        Some(ContentMode::Structured)
    } else if media.is("application/cloudevents-batch+json") {
        Some(ContentMode::Batch)
    } else {
        None
    }
}

/// A media type without its parameters; compared without regard to case (RFC 9110 §8.3.1).
struct MediaType<'a>(&'a [u8]);

fn media_type(value: &[u8]) -> MediaType<'_> {
    MediaType(value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii())
}

impl MediaType<'_> {
    fn is(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name.as_bytes())
    }

    fn starts_with(&self, name: &str) -> bool {
        self.0.get(..name.len()).is_some_and(|front| front.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// A push is JSON. The service says so; the emulator says nothing, or calls a bare one a form.
fn may_be_wrapped(carrier: &(impl Carrier + ?Sized)) -> bool {
    const SAID: [&str; 3] =
        ["application/json", "application/x-www-form-urlencoded", "application/octet-stream"];
    carrier.get("content-type").is_none_or(|media| SAID.iter().any(|said| media_type(media).is(said)))
}

/// Bytes at each end of a body in which a wrapped push has its `subscription`: beside it, the outer object
/// has only the message and the attempt, in any order, and a full name has at most 300 characters.
const PUSH_ENDS_BYTES: usize = 1024;

/// Whether a body may be a wrapped push, at a cost that does not depend on its length nor on the order of
/// keys. It misses none that the service or the emulator sends; what only looks like one is found out by
/// reading it.
#[must_use]
pub fn looks_wrapped(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    let head = body.get(..PUSH_ENDS_BYTES).unwrap_or(body);
    let tail = body.get(body.len().saturating_sub(PUSH_ENDS_BYTES)..).unwrap_or_default();
    let names = |end: &[u8]| end.windows(14).any(|window| window == b"\"subscription\"");
    body.first() == Some(&b'{') && body.last() == Some(&b'}') && (names(head) || names(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier(headers: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn resource(project: &'static str, id: &'static str) -> Option<Resource<'static>> {
        Some(Resource { project: project.into(), id: id.into() })
    }

    #[track_caller]
    fn check(method: &str, path: &str, headers: &[(&str, &str)], expected: Hop<'_>) {
        assert_eq!(hop(method, path, &carrier(headers)), expected, "{method} {path} {headers:?}");
    }

    #[test]
    fn rest_calls_are_told_by_their_path() {
        let (api, json) = (Api::Rest, [("content-type", "application/json")]);
        let topic = || Hop::Publish { api, topic: resource("p", "t") };
        check("POST", "/v1/projects/p/topics/t:publish", &json, topic());
        check("POST", "/v1/projects/p/topics/t:publish?alt=json&x=a:b/c", &[], topic());
        check("POST", "/v1/projects/p/topics/t%3Apublish", &json, topic());
        check("POST", "/v1/projects%2Fp%2Ftopics%2Ft:publish", &json, topic());
        check(
            "POST",
            "/v1/projects/example.com:p/topics/a%2Bb:publish",
            &json,
            Hop::Publish { api, topic: resource("example.com:p", "a+b") },
        );
        let subscription = || resource("p", "s");
        check(
            "POST",
            "/v1/projects/p/subscriptions/s:pull",
            &json,
            Hop::Pull { api, subscription: subscription() },
        );
        check(
            "POST",
            "/v1/projects/p/subscriptions/s:acknowledge",
            &json,
            Hop::Acknowledge { api, subscription: subscription() },
        );
        check(
            "POST",
            "/v1/projects/p/subscriptions/s:modifyAckDeadline",
            &json,
            Hop::ModifyAckDeadline { api, subscription: subscription() },
        );
        for other in [
            "/v1beta2/projects/p/topics/t:publish",
            "/v1/projects/p/topics/t",
            "/v1/projects/p/topics/t:delete",
            "/v1/projects/p/subscriptions/s:publish",
            "/v1/projects/p/topics/a/b:publish",
            "/v1/projects//topics/t:publish",
            "/v1/projects/p/topics/:publish",
            "/x/v1/projects/p/topics/t:publish",
            "/v1/projects/p/topics/t:publish/",
            "",
            "/",
            "/v1/projects/p/topics/%ff:publish",
            "*",
        ] {
            check("POST", other, &[("content-type", "text/plain")], Hop::None);
        }
        check("GET", "/v1/projects/p/topics/t:publish", &[], Hop::None);
    }

    #[test]
    fn grpc_calls_are_told_by_their_path_and_content_type() {
        let (api, grpc) = (Api::Grpc, [("content-type", "application/grpc+proto")]);
        check("POST", "/google.pubsub.v1.Publisher/Publish", &grpc, Hop::Publish { api, topic: None });
        check("POST", "/google.pubsub.v1.Subscriber/Pull", &grpc, Hop::Pull { api, subscription: None });
        check("POST", "/google.pubsub.v1.Subscriber/StreamingPull", &grpc, Hop::StreamingPull);
        check(
            "POST",
            "/google.pubsub.v1.Subscriber/Acknowledge",
            &grpc,
            Hop::Acknowledge { api, subscription: None },
        );
        check(
            "POST",
            "/google.pubsub.v1.Subscriber/ModifyAckDeadline",
            &grpc,
            Hop::ModifyAckDeadline { api, subscription: None },
        );
        check("POST", "/google.pubsub.v1.Publisher/CreateTopic", &grpc, Hop::None);
        check("POST", "/google.pubsub.v2.Publisher/Publish", &grpc, Hop::None);
        check("POST", "/google.pubsub.v1.Publisher/Publish", &[("content-type", "text/html")], Hop::None);
    }

    #[test]
    fn events_are_told_by_their_headers() {
        let binary = [
            ("ce-id", "1"),
            ("ce-source", "s"),
            ("ce-type", "t"),
            ("ce-specversion", "1.0"),
            ("content-type", "application/json"),
        ];
        check("POST", "/", &binary, Hop::CloudEventBinary);
        check("PUT", "/", &binary, Hop::CloudEventBinary);
        check("PUT", "/", &binary[1..], Hop::None);
        check(
            "POST",
            "/",
            &[("content-type", "Application/CloudEvents+JSON ; charset=utf-8")],
            Hop::CloudEventStructured,
        );
        check("POST", "/", &[("content-type", "application/cloudevents-batch+json")], Hop::CloudEventBatch);
        check(
            "POST",
            "/",
            &[("content-type", "application/cloudevents+avro"), binary[0], binary[1], binary[2], binary[3]],
            Hop::None,
        );
    }

    #[test]
    fn pushes_are_told_by_their_metadata_or_perhaps_by_their_body() {
        let metadata = [
            ("x-goog-pubsub-subscription-name", "projects/p/subscriptions/s"),
            ("x-goog-pubsub-message-id", "7"),
            ("x-goog-pubsub-publish-time", "1970-01-01T00:00:02Z"),
            ("x-goog-pubsub-delivery-attempt", "4"),
            ("content-type", "application/cloudevents+json"),
        ];
        check("POST", "/push", &metadata, Hop::Push(Wrapping::Unwrapped));
        assert_eq!(content_mode(&carrier(&metadata)), Some(ContentMode::Structured));
        let carrier = carrier(&metadata);
        let head = PushHead::read(&carrier).unwrap();
        assert_eq!(Resource::subscription(head.subscription), resource("p", "s"));
        assert_eq!((head.message_id, head.publish_time_unix_ns), (Some("7"), Some(2_000_000_000)));
        assert_eq!((head.delivery_attempt, head.ordering_key), (Some(4), None));
        check(
            "POST",
            "/push",
            &[("content-type", "application/json; charset=utf-8")],
            Hop::Push(Wrapping::MaybeWrapped),
        );
        check("POST", "/push", &[], Hop::Push(Wrapping::MaybeWrapped));
        check("PUT", "/push", &[("content-type", "application/json")], Hop::None);
        // What the emulator calls a bare push.
        let form = [("content-type", "application/x-www-form-urlencoded")];
        check("POST", "/push", &form, Hop::Push(Wrapping::MaybeWrapped));
        check("POST", "/push", &[("content-type", "text/plain")], Hop::None);
    }

    #[test]
    fn a_wrapped_push_is_told_from_either_end() {
        let long = "x".repeat(100_000);
        for (body, looks) in [
            (format!(" {{\"subscription\" : \"s\",\"message\":{{\"data\":\"{long}\"}}}}\n"), true),
            (
                format!(
                    "{{\"message\":{{\"data\":\"{long}\"}},\"subscription\":\"s\",\"deliveryAttempt\":1}}"
                ),
                true,
            ),
            (format!("{{\"message\":{{\"data\":\"{long}\"}}}}"), false),
            (format!("{{\"a\":\"{long}\",\"subscription\":1,\"b\":\"{long}\"}}"), false),
            ("[\"subscription\"]".to_owned(), false),
            (String::new(), false),
            ("{".to_owned(), false),
            ("{\"subscription\"".to_owned(), false),
        ] {
            assert_eq!(looks_wrapped(body.as_bytes()), looks, "{:.80}", body);
        }
    }
}
