//! What our sidecars and filters push becomes keys and counts: which metric means what, by whose word. Must never take
//! a metric of others for ours.

use super::answer::NodeKind;
use super::foreign::Met;
use super::histogram::{BOUNDS_MAX, Histogram, code};
use super::keys::{About, BROKER, Key, Keys, NONE, Name, NodeId, OTHER, OTHER_NODE, Scope, Told, USER, Use};
use super::slots::Cell;
use super::streams::{News, Said};
use super::wire::{self, Body, Field, Fields, Malformed, Metric, Point, Temporality, Value};
use super::{Counting, State, Taken};
use crate::span::Sender;
use throughline_core::names::{self, attribute, metric};

/// What a metric of ours is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Served,
    Called,
    Processed,
    Lag,
    Sent,
    Delivered,
    Resent,
    /// About the context: by route, by another label, or by nothing.
    Context(Told),
}

fn what(name: &[u8]) -> Option<What> {
    Some(match std::str::from_utf8(name).ok()? {
        metric::SERVER_DURATION => What::Served,
        metric::CLIENT_DURATION => What::Called,
        "messaging.process.duration" => What::Processed,
        "throughline.message.lag" => What::Lag,
        "messaging.client.sent.messages" => What::Sent,
        "messaging.client.consumed.messages" => What::Delivered,
        "throughline.client.resends" => What::Resent,
        "throughline.context.forwarded" => What::Context(Told::Forwarded),
        "throughline.context.dropped" => What::Context(Told::Dropped),
        "throughline.context.invalid" => What::Context(Told::Invalid),
        "throughline.context.restored" => What::Context(Told::Restored),
        "throughline.calls_without_context" => What::Context(Told::WithoutContext),
        "throughline.calls_of_other_traces" => What::Context(Told::OfOtherTraces),
        "throughline.operations_ignored" => What::Context(Told::OperationsIgnored),
        "throughline.events_untouched" => What::Context(Told::EventsUntouched),
        _ => return None,
    })
}

/// Attributes of a point that numbers know.
#[derive(Clone, Copy, Debug, Default)]
struct Labels<'a> {
    route: &'a [u8],
    operation: &'a [u8],
    peer: &'a [u8],
    peer_namespace: &'a [u8],
    error: &'a [u8],
    status: u64,
    address: &'a [u8],
    port: u64,
    overflow: bool,
    message_type: &'a [u8],
    topic: &'a [u8],
    subscription: &'a [u8],
    event_type: &'a [u8],
    label: &'a [u8],
}

impl<'a> Labels<'a> {
    fn set(&mut self, key: &[u8], value: Value<'a>) {
        let Ok(key) = std::str::from_utf8(key) else { return };
        match (key, value) {
            (attribute::HTTP_ROUTE, Value::Text(text)) => self.route = text,
            (attribute::OPERATION, Value::Text(text)) => self.operation = text,
            (attribute::PEER_SERVICE, Value::Text(text)) => self.peer = text,
            (attribute::PEER_NAMESPACE, Value::Text(text)) => self.peer_namespace = text,
            (attribute::ERROR_TYPE, Value::Text(text)) => self.error = text,
            (attribute::HTTP_RESPONSE_STATUS_CODE, Value::Int(status)) => self.status = status,
            (attribute::SERVER_ADDRESS, Value::Text(text)) => self.address = text,
            (attribute::SERVER_PORT, Value::Int(port)) => self.port = port,
            (attribute::METRIC_OVERFLOW, Value::Flag(flag)) => self.overflow = flag,
            (attribute::MESSAGING_OPERATION_TYPE, Value::Text(text)) => self.message_type = text,
            (attribute::MESSAGING_DESTINATION, Value::Text(text)) => self.topic = text,
            (attribute::MESSAGING_SUBSCRIPTION, Value::Text(text)) => self.subscription = text,
            (attribute::CLOUDEVENTS_TYPE, Value::Text(text)) => self.event_type = text,
            ("header" | "reason", Value::Text(text)) => self.label = text,
            _ => {}
        }
    }
}

/// Walks the whole message without counting, so that a broken one counts not at all.
pub(super) fn check(body: &[u8]) -> Result<(), Malformed> {
    let (mut bounds, mut counts) = (Vec::new(), Vec::new());
    wire::resource_metrics(body, |resource, _, metric| {
        sender_of(resource, false)?;
        wire::metric(metric)?.points(|point| {
            point.attributes(|_, _, _| {})?;
            match point.body {
                Body::Explicit => point.explicit(&mut bounds, &mut counts),
                Body::Exponential { positive, .. } => wire::buckets(positive, |_, _| {}),
                Body::Number { .. } => Ok(()),
            }
        })
    })
}

/// The sender that a `Resource` message tells of.
fn sender_of(resource: &[u8], ours: bool) -> Result<Sender<'_>, Malformed> {
    let mut sender = Sender { ours, resource, ..Sender::default() };
    let (mut k8s_namespace, mut old_environment): (&[u8], &[u8]) = (&[], &[]);
    for field in Fields::of(resource, "Resource") {
        let (1, Field::Bytes(pair)) = field? else { continue };
        let (key, Value::Text(text)) = wire::key_value(pair)? else { continue };
        match key {
            b"service.name" => sender.service = text,
            b"service.namespace" => sender.namespace = text,
            b"service.version" => sender.version = text,
            b"service.instance.id" => sender.instance = text,
            b"k8s.namespace.name" => k8s_namespace = text,
            b"k8s.pod.name" => sender.pod = text,
            b"k8s.node.name" => sender.node = text,
            b"k8s.deployment.name" => sender.deployment = text,
            b"deployment.environment.name" => sender.environment = text,
            b"deployment.environment" => old_environment = text,
            _ => {}
        }
    }
    if sender.namespace.is_empty() {
        sender.namespace = k8s_namespace;
    }
    if sender.environment.is_empty() {
        sender.environment = old_environment;
    }
    Ok(sender)
}

impl State {
    /// Reads a message that [`check`] found whole. Says whether it covers pods that were not.
    pub(super) fn read(&mut self, body: &[u8], now: u64) -> Result<(Taken, bool), Malformed> {
        self.streams.begin();
        let (mut taken, mut covers_more) = (Taken::default(), false);
        let mut reader = Reader::default();
        wire::resource_metrics(body, |resource, scope, metric| {
            let metric = wire::metric(metric)?;
            let is_ours = scope == names::SCOPE.as_bytes();
            let what = what(metric.name).filter(|_| is_ours && matches!(metric.kind, 7 | 9 | 10));
            let Some(what) = what.filter(|_| metric.temporality != Temporality::Unknown) else {
                let points = metric.len()?;
                taken.points += points;
                self.books.points_unknown += points;
                return Ok(());
            };
            let sender = sender_of(resource, true)?;
            let (met, covers) = self.meet(&sender, now);
            covers_more |= covers;
            let mut id = self.seed.of(scope);
            for field in Fields::of(resource, "Resource") {
                if let (1, Field::Bytes(pair)) = field? {
                    id = id.wrapping_add(self.seed.of(pair)); // in any order
                }
            }
            metric.points(|point| {
                taken.points += 1;
                self.books.points += 1;
                if !self.point(what, &metric, &point, met, id, now, &mut reader)? {
                    taken.rejected += 1;
                }
                Ok(())
            })
        })?;
        Ok((taken, covers_more))
    }

    #[expect(clippy::too_many_arguments, reason = "one point in the middle of three nested messages")]
    fn point(
        &mut self,
        what: What,
        metric: &Metric<'_>,
        point: &Point<'_>,
        met: Met,
        sender: u64,
        now: u64,
        reader: &mut Reader,
    ) -> Result<bool, Malformed> {
        if point.nothing {
            return Ok(true);
        }
        let mut labels = Labels::default();
        let mut series = self.seed.of(metric.name);
        let hash = self.seed;
        point.attributes(|pair, key, value| {
            series = series.wrapping_add(hash.of(pair)); // in any order
            labels.set(key, value);
        })?;
        let Some((histogram, scale)) = self.histogram(point, reader)? else {
            self.books.points_malformed += 1;
            return Ok(false);
        };
        let sum = (point.sum.max(0.0) * 1e9).round();
        let said = Said {
            series,
            start: point.start,
            time: if point.time == 0 { now } else { point.time },
            count: point.count,
            sum_nanos: if sum.is_finite() { sum as u64 } else { 0 },
            histogram,
            scale,
        };
        // The address of a call is told whether or not there is anything new.
        let key = self.key(what, &labels, met);
        match self.streams.take(sender, metric.temporality, said, now) {
            News::Delta { cell, from, to } => {
                if cell != Cell::default() {
                    self.count(Counting { key, from, to, now }, &cell);
                }
            }
            News::Repeated => self.books.points_repeated += 1,
            News::Late => self.books.points_late += 1,
            News::Joined => self.books.streams_joined_late += 1,
            News::Full => return Ok(false),
        }
        Ok(true)
    }

    /// The buckets of a point by code; none when they make no sense.
    fn histogram(
        &mut self,
        point: &Point<'_>,
        reader: &mut Reader,
    ) -> Result<Option<(Histogram, Option<i32>)>, Malformed> {
        let mut histogram = Histogram::default();
        match point.body {
            Body::Number { int } => Ok((int >= 0).then_some((histogram, None))),
            Body::Explicit => {
                let Reader { bounds, counts } = reader;
                point.explicit(bounds, counts)?;
                if counts.is_empty() && bounds.is_empty() {
                    return Ok(Some((histogram, None)));
                }
                if counts.len() != bounds.len() + 1 || bounds.len() > BOUNDS_MAX {
                    return Ok(None);
                }
                if let Some(first) = self.bounds.first_code(bounds) {
                    for (number, count) in counts.iter().enumerate() {
                        histogram.add(first + number as u16, *count);
                    }
                } else {
                    // More sets of bounds than have codes: the nearest bucket below each bound.
                    for (number, count) in counts.iter().enumerate() {
                        let bound = bounds.get(number).or(bounds.last()).copied().unwrap_or(0.0).max(1e-9);
                        histogram.add(code(6, (bound.log2() * 64.0).ceil() as i64 - 1), *count);
                    }
                }
                Ok(Some((histogram, None)))
            }
            Body::Exponential { scale, zeroes, positive, negative } => {
                if negative || !(-10..=20).contains(&scale) {
                    return Ok(None); // no duration is negative
                }
                histogram.add(0, zeroes);
                wire::buckets(positive, |index, count| histogram.add(code(scale, index), count))?;
                Ok(Some((histogram, Some(scale))))
            }
        }
    }

    fn key(&mut self, what: What, labels: &Labels<'_>, met: Met) -> Key {
        let Met { environment, service, namespace, .. } = met;
        let keys = &mut self.keys;
        let operation = match (labels.overflow, labels.operation) {
            (true, _) => OTHER,
            (false, text) => keys.name(Use::Operation(environment), text),
        };
        let error = keys.name(Use::Error, labels.error);
        let class = u8::try_from(labels.status / 100).unwrap_or(0).min(9);
        let blank = Key {
            scope: Scope { environment, about: About::Operation(operation) },
            told: Told::Server,
            from: service,
            to: service,
            route: NONE,
            class,
            error,
        };
        match what {
            What::Served => {
                let route = if labels.overflow { OTHER } else { keys.name(Use::Route, labels.route) };
                let from = if labels.overflow {
                    OTHER_NODE
                } else if !labels.peer.is_empty() {
                    keys.node(NodeKind::Service, labels.peer_namespace, labels.peer)
                } else if labels.message_type.is_empty() {
                    USER
                } else {
                    BROKER
                };
                Key { told: Told::Server, from, route, ..blank }
            }
            What::Called | What::Resent => {
                let (told, to) = called(keys, labels);
                if let (Told::ClientToo, Some(address)) = (told, address(keys, labels)) {
                    self.alias(environment, namespace, address, to);
                }
                let told = if what == What::Resent { Told::Retried } else { told };
                Key { told, to, ..blank }
            }
            What::Sent => Key { told: Told::Sent, to: topic(keys, labels, NodeKind::Topic), ..blank },
            What::Delivered => {
                Key { told: Told::Delivered, from: topic(keys, labels, NodeKind::Subscription), ..blank }
            }
            What::Processed => {
                Key { told: Told::Processed, from: topic(keys, labels, NodeKind::Subscription), ..blank }
            }
            What::Lag => Key { told: Told::Lag, from: topic(keys, labels, NodeKind::Subscription), ..blank },
            What::Context(told) => {
                let label = if labels.label.is_empty() { labels.route } else { labels.label };
                let route: Name = keys.name(Use::Route, label);
                Key { scope: Scope { environment, about: About::Propagation }, told, route, ..blank }
            }
        }
    }
}

/// Who was called, and whether he counts it too.
fn called(keys: &mut Keys, labels: &Labels<'_>) -> (Told, NodeId) {
    if labels.overflow {
        (Told::Client, OTHER_NODE)
    } else if labels.peer.is_empty() {
        (Told::Client, address(keys, labels).unwrap_or(OTHER_NODE))
    } else {
        (Told::ClientToo, keys.node(NodeKind::Service, labels.peer_namespace, labels.peer))
    }
}

fn address(keys: &mut Keys, labels: &Labels<'_>) -> Option<NodeId> {
    if labels.address.is_empty() {
        return None;
    }
    let text = host_and_port(labels.address, labels.port);
    Some(keys.node(NodeKind::External, b"", &text))
}

/// How a host is called: its port is left out where it is that of HTTP or HTTPS.
pub(super) fn host_and_port(host: &[u8], port: u64) -> std::borrow::Cow<'_, [u8]> {
    if matches!(port, 0 | 80 | 443) {
        return host.into();
    }
    let mut text = host.to_vec();
    text.extend_from_slice(format!(":{port}").as_bytes());
    text.into()
}

/// The topic, subscription or type of events; what is none of them is over somebody's cap.
fn topic(keys: &mut Keys, labels: &Labels<'_>, kind: NodeKind) -> NodeId {
    match (labels.topic, labels.subscription, labels.event_type) {
        ([], [], []) => OTHER_NODE,
        ([], [], event_type) => keys.node(NodeKind::Topic, b"", event_type),
        ([], subscription, _) => keys.node(kind, b"", subscription),
        (topic, _, _) => keys.node(NodeKind::Topic, b"", topic),
    }
}

/// Buffers used again from point to point.
#[derive(Debug, Default)]
struct Reader {
    bounds: Vec<f64>,
    counts: Vec<u64>,
}
