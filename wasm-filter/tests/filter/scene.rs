//! What scenarios say in one line: a worker with a plugin, an exchange from head to log, the spans that come out.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;

use crate::host::*;

pub(crate) const TRACE: &str = "4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7";
pub(crate) const PARENT: &str = "a1b2c3d4e5f60718";
/// A caller's context that is sampled.
pub(crate) const SAMPLED: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01";
/// The context of an application's SDK that does not sample.
pub(crate) const UNSAMPLED: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-5dc0ffee5dc0ffee-00";

/// A configuration: a service, and no metrics by OTLP, so that every call is one of spans.
pub(crate) fn configuration(direction: &str, more: &str) -> String {
    format!("direction: {direction}\notel-service-name: orders\notel-metrics-exporter: none\n{more}")
}

/// A worker and one plugin of it.
pub(crate) struct Scene {
    pub(crate) vm: Vm,
    pub(crate) root: u32,
}

/// A scene with an inbound plugin.
pub(crate) fn inbound(more: &str) -> Scene {
    scene("inbound", more)
}

/// A scene with an outbound plugin.
pub(crate) fn outbound(more: &str) -> Scene {
    scene("outbound", more)
}

fn scene(direction: &str, more: &str) -> Scene {
    let mut vm = Envoy::new().worker();
    let root = vm.plugin(&configuration(direction, more));
    Scene { vm, root }
}

/// The head of a request.
pub(crate) fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Fields {
    let mut head = fields(&[
        (":method", method),
        (":path", path),
        (":authority", "orders:8080"),
        (":scheme", "http"),
        ("x-request-id", "7"),
    ]);
    head.extend(fields(more));
    head
}

/// The head of an answer.
pub(crate) fn answer(status: &str, more: &[(&str, &str)]) -> Fields {
    let mut head = fields(&[(":status", status)]);
    head.extend(fields(more));
    head
}

/// A number as a property tells it.
pub(crate) fn property_number(number: i64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

impl Scene {
    /// An exchange without bodies, from its head to its log.
    pub(crate) fn exchange(&mut self, head: Fields, status: &str) -> Stream {
        exchange(&mut self.vm, self.root, head, status)
    }

    /// A GET that goes well; the next request after any trouble is one like this.
    pub(crate) fn get(&mut self, path: &str) -> Stream {
        self.exchange(request("GET", path, &[]), "200")
    }

    /// Waits for the batch, takes it as a collector that is well does, and says its spans.
    pub(crate) fn spans(&mut self) -> Vec<Span> {
        collect(&mut self.vm)
    }
}

/// An exchange without bodies on any worker.
pub(crate) fn exchange(vm: &mut Vm, root: u32, head: Fields, status: &str) -> Stream {
    let id = vm.open(root);
    vm.head(id, Side::Request, head, true);
    vm.head(id, Side::Response, answer(status, &[]), true);
    vm.finish(id)
}

/// Lets a worker's batches go out until none is left; their spans, in order.
pub(crate) fn collect(vm: &mut Vm) -> Vec<Span> {
    let mut spans = Vec::new();
    for _ in 0..50 {
        vm.pass(1_300);
        let calls = vm.calls();
        // A control endpoint is asked again and again; that is no batch.
        let ended = calls.iter().all(|call| text(&call.headers, ":method") == "GET");
        for call in calls {
            spans.extend(spans_of(&call));
            take(vm, &call);
        }
        if ended {
            return spans;
        }
    }
    panic!("the batches do not end")
}

/// As [`collect`], until nothing is held any more: what failed is tried again within half a minute.
pub(crate) fn collect_all(vm: &mut Vm) -> Vec<Span> {
    let mut spans = Vec::new();
    for _ in 0..60 {
        spans.extend(collect(vm));
        if vm.envoy.metric("throughline_spans_held") == 0 {
            return spans;
        }
    }
    panic!("spans are held for ever: {:?}", vm.envoy.books())
}

/// Answers a call as a collector that took everything.
pub(crate) fn take(vm: &mut Vm, call: &Call) {
    match call.grpc {
        true => vm.answer_grpc(call, &[]),
        false => vm.answer_http(call, &[(":status", "200")], &[]),
    }
}

/// The spans of an export.
pub(crate) fn spans_of(call: &Call) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(call.body.as_slice()).expect("an export of spans");
    let mut spans = Vec::new();
    for group in request.resource_spans {
        let resource = group.resource.unwrap_or_default().attributes;
        for span in group.scope_spans.into_iter().flat_map(|scoped| scoped.spans) {
            spans.push(Span { span, resource: resource.clone() });
        }
    }
    spans
}

/// The names of the metrics of an export.
pub(crate) fn metrics_of(call: &Call) -> Vec<String> {
    let request = ExportMetricsServiceRequest::decode(call.body.as_slice()).expect("an export of metrics");
    let scopes = request.resource_metrics.into_iter().flat_map(|group| group.scope_metrics);
    scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name).collect()
}

/// A span as a collector got it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) span: otlp::Span,
    resource: Vec<KeyValue>,
}

fn of_key(list: &[KeyValue], key: &str) -> String {
    let value = list.iter().find(|one| one.key == key).and_then(|one| one.value.as_ref()?.value.as_ref());
    match value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::ArrayValue(list)) => format!("{} values", list.values.len()),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Span {
    /// An attribute as text; empty where it is not there.
    pub(crate) fn get(&self, key: &str) -> String {
        of_key(&self.span.attributes, key)
    }

    pub(crate) fn resource(&self, key: &str) -> String {
        of_key(&self.resource, key)
    }

    /// Attributes that must be there with these values.
    pub(crate) fn says(&self, rows: &[(&str, &str)]) {
        for (key, expected) in rows {
            assert_eq!(self.get(key), *expected, "{key} of {:?}", self.span);
        }
    }

    pub(crate) fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    pub(crate) fn kind(&self) -> otlp::span::SpanKind {
        self.span.kind()
    }

    /// Whether its status is an error.
    pub(crate) fn failed(&self) -> bool {
        let status = self.span.status.as_ref().map(otlp::Status::code);
        status == Some(otlp::status::StatusCode::Error)
    }

    pub(crate) fn millis(&self) -> u64 {
        (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1_000_000
    }
}

/// The only span there is.
pub(crate) fn only(spans: Vec<Span>) -> Span {
    assert_eq!(spans.len(), 1, "{spans:?}");
    spans.into_iter().next().unwrap()
}

/// Trace id and span id that a head carries on.
pub(crate) fn context(head: &Fields) -> (String, String) {
    let line = text(head, "traceparent");
    assert_eq!(line.len(), 55, "a traceparent: {line:?}");
    (line[3..35].to_owned(), line[36..52].to_owned())
}
