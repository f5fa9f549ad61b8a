//! The page for people at `/`, until the dashboard stands there: operations, recent traces, and links to the JSON.
//! No script, no style from elsewhere; every name is escaped.

use std::fmt::Write as _;

use http::{HeaderValue, StatusCode, header};

use super::App;
use super::answers::{hex, outcome};
use super::problem::{Answer, with_body};
use crate::engine::TraceQuery;
use crate::numbers::Window;
use crate::times::rfc3339;

const ROWS_MAX: usize = 30;
const HOUR_NANOS: u64 = 3_600_000_000_000;
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a;\
background:#fff}table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}th,td{text-align:left;padding:.25rem .75rem .25rem 0;\
border-bottom:1px solid #ccc}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}@media(prefers-color-scheme:dark){\
body{color:#eee;background:#121212}a{color:#8ab4f8}th,td{border-color:#444}}";
/// Only the page's own style sheet counts.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A segment of a path.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The page's style sheet.
pub(crate) fn style() -> Answer {
    with_body(StatusCode::OK, "text/css; charset=utf-8", STYLE)
}

pub(crate) fn page(app: &App) -> Answer {
    let end_unix_nanos = app.now().saturating_add(1);
    let window = Window { start_unix_nanos: end_unix_nanos.saturating_sub(HOUR_NANOS), end_unix_nanos };
    let operations = app.engine.numbers().operations(None, window);
    let found = app.engine.find(&TraceQuery { limit: ROWS_MAX, ..TraceQuery::default() });
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Throughline</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"/style.css\"></head><body><h1>Throughline</h1>\
         <p><a href=\"/api/v1/operations\">operations</a> · <a href=\"/api/v1/services\">services</a> · \
         <a href=\"/api/v1/dependencies\">dependencies</a> · <a href=\"/api/v1/doctor\">Context Doctor</a> · \
         <a href=\"/api/v1/flows\">flows</a> · <a href=\"/metrics\">metrics</a> · <a href=\"/api/v1/openapi.json\">OpenAPI</a></p>\
         <h2>Operations of the last hour</h2><table><tr><th>operation</th><th>environment</th><th class=\"n\">requests</th>\
         <th class=\"n\">errors</th><th class=\"n\">mean</th><th class=\"n\">p95</th><th></th></tr>",
    );
    for row in operations.iter().take(ROWS_MAX) {
        let (name, figures) = (segment(&row.name), &row.figures);
        let _ = write!(
            out,
            "<tr><td><a href=\"/api/v1/operations/{name}/graph\">{}</a></td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{:.2} %</td><td class=\"n\">{:.1} ms</td><td class=\"n\">{:.1} ms</td>\
             <td><a href=\"/api/v1/operations/{name}/stats\">statistics</a> · <a href=\"/api/v1/flows?operation={name}\">flows</a></td></tr>",
            escaped(&row.name),
            escaped(&row.environment),
            figures.requests,
            figures.error_rate() * 100.0,
            figures.avg_ms,
            figures.p95_ms,
        );
    }
    if operations.is_empty() {
        out.push_str("<tr><td colspan=\"7\">none yet: senders push their metrics once a minute unless told otherwise</td></tr>");
    }
    out.push_str("</table><h2>Recent traces</h2><table><tr><th>began</th><th>operation</th><th>root</th><th>status</th>\
                  <th class=\"n\">duration</th><th class=\"n\">spans</th><th>services</th><th></th></tr>");
    match found {
        Ok(found) => {
            for trace in &found.traces {
                let id = hex(&trace.trace_id);
                let services: Vec<&str> = trace.services.iter().map(|(name, _)| name.as_str()).collect();
                let duration = trace.end_unix_nanos.saturating_sub(trace.start_unix_nanos) as f64 / 1e6;
                let _ = write!(
                    out,
                    "<tr><td>{}</td><td>{}</td><td><a href=\"/api/v1/traces/{id}\">{} {}</a></td><td>{}</td>\
                     <td class=\"n\">{duration:.1} ms</td><td class=\"n\">{}</td><td>{}</td><td><a href=\"/api/v1/flows/flow-{id}\">flow</a></td></tr>",
                    rfc3339(trace.start_unix_nanos),
                    escaped(&trace.operation),
                    escaped(&trace.root_service),
                    escaped(&trace.root_name),
                    outcome(trace.status),
                    trace.span_count,
                    escaped(&services.join(", ")),
                );
            }
            if found.traces.is_empty() {
                out.push_str("<tr><td colspan=\"8\">none yet</td></tr>");
            }
        }
        Err(crate::engine::StoreError::File(why)) => {
            let _ = write!(out, "<tr><td colspan=\"8\">the store can't be read: {}</td></tr>", escaped(&why));
        }
    }
    out.push_str("</table></body></html>");
    let mut answer = with_body(StatusCode::OK, "text/html; charset=utf-8", out);
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(escaped("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
        assert_eq!(segment("a/b?c\" ü"), "a%2Fb%3Fc%22%20%C3%BC");
    }
}
