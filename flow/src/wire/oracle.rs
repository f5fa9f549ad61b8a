//! The walk and the decoder against `opentelemetry-proto` and `prost`, on documents that are drawn.

use super::walk::{self, NoSlots, Visit};
use super::whole::{self, Origin};
use super::{Malformed, json};
use crate::span::{Kind, Sender, Span, Status, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;

/// Draws documents, the same ones for the same seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % end
    }

    fn text(&mut self) -> String {
        let len = [0, 1, 7, 126, 127, 128, 300][self.below(7) as usize];
        (0..len).map(|_| ['a', 'z', '0', '.', 'ö', '\u{1f600}', '"', '\n'][self.below(8) as usize]).collect()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(255) as u8 + 1).collect()
    }

    fn number(&mut self) -> u64 {
        let bits = self.below(65);
        self.below(u64::MAX) >> (64 - bits.max(1))
    }

    fn value(&mut self, depth: u32) -> Option<AnyValue> {
        let value = match self.below(if depth > 3 { 6 } else { 9 }) {
            0 => return None,
            1 => None,
            2 => Some(Any::StringValue(self.text())),
            3 => Some(Any::BoolValue(self.below(2) == 1)),
            4 => Some(Any::IntValue(self.number().cast_signed())),
            5 => Some(Any::DoubleValue(f64::from_bits(self.number()))),
            6 => {
                let len = self.below(200) as usize;
                Some(Any::BytesValue(self.bytes(len)))
            }
            7 => {
                let values = (0..self.below(4)).map(|_| self.value(depth + 1).unwrap_or_default()).collect();
                Some(Any::ArrayValue(ArrayValue { values }))
            }
            _ => Some(Any::KvlistValue(KeyValueList { values: self.attributes(4, depth + 1) })),
        };
        Some(AnyValue { value })
    }

    fn attributes(&mut self, most: u64, depth: u32) -> Vec<KeyValue> {
        let keys = [
            "http.route",
            "app.operation.name",
            "k",
            "",
            "db.system",
            "rpc.grpc.status_code",
            "http.status_code",
        ];
        (0..self.below(most))
            .map(|_| {
                let key = match self.below(8) {
                    7 => self.text(),
                    known => keys[known as usize].into(),
                };
                KeyValue { key, value: self.value(depth), ..KeyValue::default() }
            })
            .collect()
    }

    fn span(&mut self) -> otlp::Span {
        let parent = [0, 0, 8][self.below(3) as usize];
        otlp::Span {
            trace_id: self.bytes(16),
            span_id: self.bytes(8),
            trace_state: if self.below(3) == 0 { self.text() } else { String::new() },
            parent_span_id: self.bytes(parent),
            flags: self.below(3) as u32 * 0x101,
            name: self.text(),
            kind: self.below(7) as i32,
            start_time_unix_nano: self.number(),
            end_time_unix_nano: self.number(),
            attributes: self.attributes(9, 0),
            dropped_attributes_count: self.below(3) as u32,
            events: (0..self.below(3))
                .map(|_| otlp::span::Event {
                    time_unix_nano: self.number(),
                    name: self.text(),
                    attributes: self.attributes(3, 0),
                    dropped_attributes_count: 0,
                })
                .collect(),
            dropped_events_count: self.below(300) as u32,
            links: (0..self.below(3))
                .map(|_| otlp::span::Link {
                    trace_id: self.bytes(16),
                    span_id: self.bytes(8),
                    trace_state: self.text(),
                    attributes: self.attributes(3, 0),
                    flags: 1,
                    ..otlp::span::Link::default()
                })
                .collect(),
            dropped_links_count: 0,
            status: (self.below(2) == 0)
                .then(|| otlp::Status { message: self.text(), code: self.below(4) as i32 }),
        }
    }

    fn request(&mut self) -> ExportTraceServiceRequest {
        let scope_spans = |draw: &mut Self| otlp::ScopeSpans {
            scope: (draw.below(3) > 0).then(|| InstrumentationScope {
                name: ["throughline".into(), draw.text()][draw.below(2) as usize].clone(),
                attributes: draw.attributes(3, 0),
                ..InstrumentationScope::default()
            }),
            spans: (0..draw.below(4)).map(|_| draw.span()).collect(),
            schema_url: draw.text(),
        };
        let resource_spans = |draw: &mut Self| otlp::ResourceSpans {
            resource: (draw.below(4) > 0)
                .then(|| Resource { attributes: draw.attributes(6, 0), ..Resource::default() }),
            scope_spans: (0..draw.below(3)).map(|_| scope_spans(draw)).collect(),
            schema_url: draw.text(),
        };
        ExportTraceServiceRequest {
            resource_spans: (0..self.below(4)).map(|_| resource_spans(self)).collect(),
        }
    }
}

/// Spans as the walk tells of them and the decoder has them.
#[derive(Default)]
struct Walked {
    origin: Option<Origin>,
    spans: Vec<Span>,
}

impl<'a> Visit<'a> for Walked {
    fn sender(&mut self, sender: Sender<'a>) {
        self.origin = Some(Origin::of(&sender));
    }
    fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
        let told = walk::span(raw, &mut NoSlots)?.expect("ids are drawn without zeros");
        let span =
            whole::span(raw, self.origin.as_ref().expect("told before its spans")).expect("it was told");
        // What is told while it comes in is what it says when it is whole.
        assert_eq!((told.trace_id, told.span_id, told.parent), (span.trace_id, span.span_id, span.parent));
        assert_eq!((told.kind, told.status, told.links as usize), (span.kind, span.status, span.links.len()));
        let only_text = |key: &str| {
            let mut values = span.attributes.iter().filter(|(name, _)| name == key).map(|(_, value)| value);
            match (values.next(), values.next()) {
                (Some(Value::Text(text)), None) => Some(text.as_bytes()),
                (None | Some(_), None) => Some(&[][..]),
                (_, Some(_)) => None,
            }
        };
        assert!(only_text("http.route").is_none_or(|text| text == told.known.route));
        assert!(only_text("app.operation.name").is_none_or(|text| text == told.known.operation));
        self.spans.push(span);
        Ok(())
    }
}

fn value(any: Option<AnyValue>) -> Value {
    match any.and_then(|any| any.value) {
        None => Value::Empty,
        Some(Any::StringValue(text)) => Value::Text(text),
        Some(Any::BoolValue(flag)) => Value::Flag(flag),
        Some(Any::IntValue(int)) => Value::Int(int),
        Some(Any::DoubleValue(number)) => Value::Double(number),
        Some(Any::BytesValue(bytes)) => Value::Bytes(bytes),
        Some(Any::ArrayValue(list)) => {
            Value::List(list.values.into_iter().map(|any| value(Some(any))).collect())
        }
        Some(Any::KvlistValue(map)) => Value::Map(attributes(map.values)),
        other => panic!("{other:?}"),
    }
}

fn attributes(pairs: Vec<KeyValue>) -> Vec<(String, Value)> {
    pairs.into_iter().map(|pair| (pair.key, value(pair.value))).collect()
}

/// `NaN` is like itself here.
fn like(one: &impl std::fmt::Debug, other: &impl std::fmt::Debug) {
    let (one, other) = (format!("{one:?}"), format!("{other:?}"));
    let at = one.bytes().zip(other.bytes()).position(|(one, other)| one != other).unwrap_or_default();
    let near = |text: &str| text.chars().skip(at.saturating_sub(200)).take(300).collect::<String>();
    assert!(one == other, "{}\n{}", near(&one), near(&other));
}

fn compare(spans: Vec<Span>, request: ExportTraceServiceRequest) {
    let mut spans = spans.into_iter();
    for resource in request.resource_spans {
        let about = attributes(resource.resource.unwrap_or_default().attributes);
        for scope in resource.scope_spans {
            let name = scope.scope.unwrap_or_default().name;
            for expected in scope.spans {
                let span = spans.next().expect("as many spans");
                assert_eq!(
                    (span.trace_id.to_vec(), span.span_id.to_vec()),
                    (expected.trace_id, expected.span_id)
                );
                let parent = span.parent.map(|id| id.to_vec()).unwrap_or_default();
                assert_eq!(
                    (parent, &span.name, &span.trace_state),
                    (expected.parent_span_id, &expected.name, &expected.trace_state)
                );
                let kinds = [
                    Kind::Unspecified,
                    Kind::Internal,
                    Kind::Server,
                    Kind::Client,
                    Kind::Producer,
                    Kind::Consumer,
                ];
                assert_eq!(span.kind, kinds.get(expected.kind as usize).copied().unwrap_or_default());
                assert_eq!(
                    (span.start_unix_nanos, span.end_unix_nanos),
                    (expected.start_time_unix_nano, expected.end_time_unix_nano)
                );
                like(&span.attributes, &attributes(expected.attributes));
                let status = expected.status.unwrap_or_default();
                let codes = [Status::Unset, Status::Ok, Status::Error];
                assert_eq!(span.status, codes.get(status.code as usize).copied().unwrap_or_default());
                assert_eq!(
                    (span.status_message, &*span.scope, span.ours),
                    (status.message, &*name, name == "throughline")
                );
                assert_eq!(span.events.len(), expected.events.len());
                for (event, expected) in span.events.iter().zip(expected.events) {
                    assert_eq!((&event.name, event.at_unix_nanos), (&expected.name, expected.time_unix_nano));
                    like(&event.attributes, &attributes(expected.attributes));
                }
                assert_eq!(span.links.len(), expected.links.len());
                for (link, expected) in span.links.iter().zip(expected.links) {
                    assert_eq!(
                        (link.trace_id.to_vec(), link.span_id.to_vec()),
                        (expected.trace_id, expected.span_id)
                    );
                    like(&link.attributes, &attributes(expected.attributes));
                }
                assert!(about.len() < 6);
            }
        }
    }
    assert!(spans.next().is_none());
}

#[test]
fn drawn_documents_are_read_as_the_reference_decoder_reads_them() {
    for seed in 0..3_000 {
        let request = Draw(seed).request();
        let body = request.encode_to_vec();
        let mut walked = Walked::default();
        walk::traces(&body, &mut walked).unwrap_or_else(|error| panic!("{seed}: {error}"));
        compare(walked.spans, request);
    }
}

#[test]
fn drawn_documents_go_through_json_unchanged() {
    for seed in 0..1_000 {
        let request = Draw(seed).request();
        let body = request.encode_to_vec();
        let mut line = String::new();
        json::write_traces(&body, &mut line);
        let back = json::traces(line.as_bytes()).unwrap_or_else(|error| panic!("{seed}: {error}"));
        like(&ExportTraceServiceRequest::decode(&*back).expect("protobuf"), &request);
    }
}

#[test]
fn a_document_that_is_cut_or_has_a_byte_changed_is_read_or_refused_and_what_is_read_the_reference_reads_too()
{
    let mut refused = 0;
    for seed in 0..300 {
        let mut draw = Draw(seed);
        let body = draw.request().encode_to_vec();
        for _ in 0..60 {
            let mut broken = body.clone();
            if broken.is_empty() {
                continue;
            }
            if draw.below(4) == 0 {
                broken.truncate(draw.below(body.len() as u64) as usize);
            } else {
                let at = draw.below(body.len() as u64) as usize;
                broken[at] = draw.below(256) as u8;
            }
            struct Pass;
            impl<'a> Visit<'a> for Pass {
                fn sender(&mut self, _: Sender<'a>) {}
                fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
                    walk::span(raw, &mut walk::Check).map(drop)
                }
            }
            let read = walk::traces(&broken, &mut Pass);
            let reference = ExportTraceServiceRequest::decode(&*broken);
            match (&read, &reference) {
                // We are more lenient with text that is no UTF-8, and with fields and parts that nobody reads.
                (Ok(()), Err(error)) => {
                    let error = error.to_string();
                    let known = [
                        "UTF-8",
                        "schema_url",
                        "AnyValue",
                        "InstrumentationScope",
                        "EntityRef",
                        "Resource",
                        "KeyValue",
                        "Event",
                        "Link",
                        "Status",
                    ];
                    assert!(
                        known.iter().any(|part| error.contains(part)) || error.contains("tag"),
                        "{seed}: {error}"
                    );
                }
                (Err(_), _) => refused += 1,
                (Ok(()), Ok(_)) => {}
            }
        }
    }
    assert!(refused > 1_000, "{refused}");
}
