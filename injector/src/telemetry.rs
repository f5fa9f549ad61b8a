//! The injector's own spans, by the ordinary OpenTelemetry SDK. Must never make an admission wait: spans go to a
//! bounded queue, a thread of the SDK's sends them, and a collector that is gone costs spans and nothing else.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HttpError;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::names::VERSION;
use crate::settings::Settings;

/// How long one attempt to send spans may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a collector's answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Makes spans, or none.
#[derive(Clone, Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// A span that is under way. It ends when this is dropped.
#[derive(Debug)]
pub struct Scope {
    context: Context,
    tracer: SdkTracer,
}

impl Telemetry {
    /// Spans to the collector of the settings; without one, none are made.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut builder = SdkTracerProvider::builder().with_resource(
            Resource::builder_empty()
                .with_attributes([
                    KeyValue::new("service.name", settings.own_service.clone()),
                    KeyValue::new("service.version", VERSION),
                    KeyValue::new("service.instance.id", settings.identity.clone()),
                    KeyValue::new("k8s.namespace.name", settings.namespace.clone()),
                ])
                .build(),
        );
        builder = match &settings.own_endpoint {
            None => builder.with_sampler(Sampler::AlwaysOff),
            Some(endpoint) => {
                let exporter = SpanExporter::builder()
                    .with_http()
                    .with_http_client(Ship::new()?)
                    .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
                    .with_timeout(SEND_TIMEOUT)
                    .build()
                    .map_err(|error| format!("otel-exporter-otlp-endpoint=\"{endpoint}\": {error}"))?;
                builder
                    .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                        settings.own_ratio,
                    ))))
                    .with_batch_exporter(exporter)
            }
        };
        let provider = builder.build();
        let tracer = provider.tracer("throughline-injector");
        Ok(Self { provider, tracer })
    }

    /// A span without a parent.
    pub fn root(&self, name: &'static str) -> Scope {
        self.start(name, SpanKind::Internal, &Context::new())
    }

    /// The span of a request that came in; its caller's context is continued.
    pub fn served(&self, name: &'static str, headers: &HeaderMap) -> Scope {
        let parent =
            match headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(context_of) {
                Some(remote) => Context::new().with_remote_span_context(remote),
                None => Context::new(),
            };
        self.start(name, SpanKind::Server, &parent)
    }

    fn start(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind, parent: &Context) -> Scope {
        let span = self.tracer.span_builder(name).with_kind(kind).start_with_context(&self.tracer, parent);
        Scope { context: parent.with_span(span), tracer: self.tracer.clone() }
    }

    /// Sends what is left. Blocks for a second at the most.
    pub fn finish(&self) {
        let _ = self.provider.shutdown_with_timeout(Duration::from_secs(1));
    }
}

impl Scope {
    /// A child.
    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Scope {
        self.start(name.into(), SpanKind::Internal)
    }

    /// A child that calls somebody else.
    pub fn call(&self, name: impl Into<Cow<'static, str>>) -> Scope {
        self.start(name.into(), SpanKind::Client)
    }

    fn start(&self, name: Cow<'static, str>, kind: SpanKind) -> Scope {
        let span =
            self.tracer.span_builder(name).with_kind(kind).start_with_context(&self.tracer, &self.context);
        Scope { context: self.context.with_span(span), tracer: self.tracer.clone() }
    }

    /// Sets an attribute.
    pub fn set(&self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.context.span().set_attribute(KeyValue::new(key, value));
    }

    /// Says that it failed, and how. `kind` is a word out of few.
    pub fn error(&self, kind: &'static str, message: &str) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("error.type", kind));
        span.set_status(Status::error(message.to_owned()));
        span.add_event(
            "exception",
            vec![
                KeyValue::new("exception.type", kind),
                KeyValue::new("exception.message", message.to_owned()),
            ],
        );
    }

    /// The context as a header; `None` where there is none.
    pub fn traceparent(&self) -> Option<String> {
        let span = self.context.span();
        let context = span.span_context();
        context.is_valid().then(|| {
            format!(
                "00-{}-{}-{:02x}",
                context.trace_id(),
                context.span_id(),
                context.trace_flags().to_u8() & 1
            )
        })
    }

    /// The id of the trace, for the log.
    pub fn trace_id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.context.span().end();
    }
}

/// Reads a `traceparent` (W3C Trace Context level 2, section 3.2): the SDK's own reader takes what is none.
fn context_of(text: &str) -> Option<SpanContext> {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let shaped = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    if !shaped || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

/// Sends what the SDK's thread hands over, on our runtime.
#[derive(Debug)]
struct Ship {
    runtime: tokio::runtime::Handle,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Ship {
    fn new() -> Result<Self, String> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| error.to_string())?;
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| format!("the system's certificates: {error}"))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { runtime, client: Client::builder(TokioExecutor::new()).build(connector) })
    }
}

impl opentelemetry_http::HttpClient for Ship {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let answered = tokio::time::timeout(SEND_TIMEOUT, async {
                let answer = client.request(request.map(Full::new)).await?;
                let (head, body) = answer.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(head, body))
            });
            answered.await.map_err(HttpError::from)?
        });
        Box::pin(async move { sent.await.map_err(HttpError::from)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_context_is_continued() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(context_of(good).is_some());
        for bad in [
            "",
            "0-abc-1-1",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(context_of(bad).is_none(), "{bad}");
        }
    }
}
