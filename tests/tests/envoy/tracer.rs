//! Envoy's own OpenTelemetry tracer on the same listener. It writes `traceparent` after the filters have run, so the
//! filter takes over the ids that went on; otherwise the application's parent would be a span that nobody exports.

use serde_json::{Value, json};
use throughline_tests::envoy::{self, Bootstrap};
use throughline_tests::prelude::*;
use throughline_tests::service::Traceparent;
use throughline_tests::sidecar::Plan;

/// Switches the tracer on, with a collector of its own.
fn traced(mut bootstrap: Bootstrap, collector: &Collector, percent: u32) -> Bootstrap {
    let mut cluster = bootstrap.cluster("otlp").clone();
    cluster["name"] = json!("envoys-own");
    cluster["load_assignment"]["cluster_name"] = json!("envoys-own");
    let address = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    address["socket_address"]["port_value"] = json!(collector.address.port());
    bootstrap.root["static_resources"]["clusters"].as_array_mut().expect("a list").push(cluster);
    let provider: Value = json!({
        "name": "envoy.tracers.opentelemetry",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "grpc_service": {"envoy_grpc": {"cluster_name": "envoys-own"}, "timeout": "1s"},
            "service_name": "envoys-own",
        }
    });
    for side in bootstrap.sides() {
        // Envoy's tracer draws by x-request-id: without one it samples nothing.
        bootstrap.http(&side)["generate_request_id"] = json!(true);
        let sampling = json!({"value": percent});
        bootstrap.http(&side)["tracing"] = json!({"random_sampling": sampling, "provider": provider});
    }
    bootstrap
}

/// What a request through an inbound and an outbound side with Envoy's tracer leaves.
struct Outcome {
    spans: Vec<Span>,
    books: Books,
    /// What the application got, and what the next hop got of the application's call.
    app: Traceparent,
    next: Traceparent,
}

async fn through_both(percent: u32) -> Outcome {
    let (ours, theirs) = (Collector::start().await, Collector::start().await);
    let stock = Service::playing(answer(200, "12")).await;
    let orders = Service::playing(calling(stock.url("/items"), Copying::Everything)).await;
    let plan = Plan::before("orders", orders.address)
        .on(Host::Envoy)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", ours.endpoint());
    let sidecar = traced(Bootstrap::of(&plan), &theirs, percent).start("orders").await;
    orders.outbound.is_at(sidecar.outbound());
    let answer = Ask::get(sidecar.url("/orders")).header("x-operation-name", "checkout").send().await;
    assert_eq!(answer.text(), "12");
    let books = sidecar.books().await;
    sidecar.end().await;
    let (app, next) = (orders.saw_one().traceparent(), stock.saw_one().traceparent());
    let spans = ours.accepted();
    assert_connected(&spans, &[]);
    Outcome { spans, books, app, next }
}

fn overwritten(books: &Books) -> u64 {
    books.sum("throughline_context_overwritten_total", &[])
}

#[tokio::test]
async fn ids_of_envoys_own_tracer_are_taken_over_and_no_parent_is_a_phantom() {
    if !envoy::is_here() {
        return;
    }
    let Outcome { spans, books, app, next } = through_both(100).await;
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let server = the_only(&spans, |span| span.kind == Kind::Server);
    let client = the_only(&spans, |span| span.kind == Kind::Client);
    assert_eq!((&server.id, &server.trace), (&app.span, &app.trace), "what the application got");
    assert_eq!((&client.id, &client.trace), (&next.span, &next.trace), "what went on");
    assert_eq!(client.parent, server.id);
    assert_eq!((server["app.operation.name"].as_str(), overwritten(&books)), (Some("checkout"), 2));
}

/// At 0 % it writes a context that says no, and an empty `tracestate`: the application and whoever it calls follow.
#[tokio::test]
async fn a_tracer_that_samples_nothing_still_overwrites_and_is_counted() {
    if !envoy::is_here() {
        return;
    }
    let Outcome { spans, books, app, next } = through_both(0).await;
    assert!(!app.sampled() && !next.sampled());
    let server = the_only(&spans, |_| true);
    assert_eq!((server.kind, server.id, server.trace), (Kind::Server, app.span, app.trace));
    assert_eq!(overwritten(&books), 2, "{}", books.text);
}
