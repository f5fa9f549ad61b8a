//! Browsers before an edge: the script that they get, what they send, and whole operations of real ones.

#[cfg(test)]
mod cookies;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod page;
#[cfg(test)]
mod script;
#[cfg(test)]
mod snippets;

#[cfg(test)]
use throughline_tests::mesh::PodPlan;
#[cfg(test)]
use throughline_tests::prelude::*;

/// What a browser says of a request by a page of the same origin.
#[cfg(test)]
const SAME_ORIGIN: (&str, &str) = ("sec-fetch-site", "same-origin");
#[cfg(test)]
const SPANS: &str = "/_throughline/v1/traces";
#[cfg(test)]
const SCRIPT: &str = "/_throughline/ops.js";
#[cfg(test)]
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
#[cfg(test)]
const SPAN: &str = "b7ad6b7169203331";

/// A gateway's sidecar that serves browsers.
#[cfg(test)]
fn gateway(mesh: &Mesh) -> PodPlan {
    mesh.pod("gateway")
        .environment("THROUGHLINE_TRUST", "edge")
        .environment("THROUGHLINE_BROWSER", "on")
        .flag("browser-service", "shop-ui")
}

/// A request by a page that goes on with a trace of its own.
#[cfg(test)]
fn asks(pod: &Pod, trace: &str, span: &str, operation: &str) -> Ask {
    Ask::get(pod.url("/api/items"))
        .headers([SAME_ORIGIN, ("x-operation-name", operation)])
        .header("traceparent", format!("00-{trace}-{span}-01"))
}

/// What a page tells of an operation: the span of its own, and nothing else.
#[cfg(test)]
fn told(trace: &str, span: &str, name: &str) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let now = since.as_nanos();
    let attributes = [("ui.event", "button_click"), ("ui.result", "ok")]
        .map(|(key, value)| serde_json::json!({ "key": key, "value": { "stringValue": value } }));
    serde_json::json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [{
        "traceId": trace, "spanId": span, "name": name, "kind": 1, "attributes": attributes,
        "startTimeUnixNano": (now - 50_000_000).to_string(), "endTimeUnixNano": now.to_string(),
    }] }] }] })
    .to_string()
}

/// A body sent as a page sends it.
#[cfg(test)]
fn sends(pod: &Pod, body: impl Into<bytes::Bytes>) -> Ask {
    Ask::post(pod.url(SPANS), body).headers([SAME_ORIGIN, ("content-type", "application/json")])
}
