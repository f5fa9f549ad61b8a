//! What goes on beside the webhook: certificates, the cluster's age, the leader's rounds, events. Each loop tells
//! what fails and tries again; none may end the process or hold up an admission.

pub mod certificates;
pub mod istio;
pub mod leader;
pub mod missing;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::{Api, Content, Failure};
use crate::injector::{Event, Injector};
use crate::json::{items, text};
use crate::log::{Level, tell};
use crate::names::MANAGER;
use crate::policy::Sidecars;
use crate::telemetry::Scope;

/// How often server and nodes are looked at.
pub const CLUSTER_INTERVAL: Duration = Duration::from_secs(30);
/// Objects of a page of a list.
const PAGE: usize = 250;
/// Pages of one list: a cluster has 150,000 pods at the most by Kubernetes' own word.
const PAGES_MAX: usize = 1000;

/// Hands each object of a list to `with`, page by page, so that no list is held as a whole.
pub async fn each(
    api: &Api,
    scope: &Scope,
    template: &str,
    parameters: &[(&str, &str)],
    selector: &str,
    mut with: impl FnMut(&Value),
) -> Result<(), Failure> {
    let mut token = String::new();
    for _ in 0..PAGES_MAX {
        let mut query = format!("limit={PAGE}");
        for part in [selector, token.as_str()] {
            if !part.is_empty() {
                query.push('&');
                query.push_str(part);
            }
        }
        let page = api.call(scope, Method::GET, template, parameters, &query, None).await?;
        items(&page, "/items").iter().for_each(&mut with);
        match text(&page, "/metadata/continue") {
            Some(next) if !next.is_empty() => token = format!("continue={}", encoded(next)),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Percent-encoded for a query.
pub fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// What server and nodes can do together: a pod may come to any of them.
pub async fn cluster(injector: &Injector) -> Result<Sidecars, Failure> {
    let scope = injector.telemetry.root("look at cluster");
    let version = injector.api.call(&scope, Method::GET, "/version", &[], "", None).await;
    let version = version.inspect_err(|failure| scope.error("cluster", &failure.to_string()))?;
    let mut can = Sidecars::of_version(text(&version, "/gitVersion").unwrap_or_default());
    let nodes = each(&injector.api, &scope, "/api/v1/nodes", &[], "", |node| {
        let version = text(node, "/status/nodeInfo/kubeletVersion").unwrap_or_default();
        can = can.min(Sidecars::of_version(version));
    });
    if let Err(failure) = nodes.await {
        scope.error("cluster", &failure.to_string());
        return Err(failure);
    }
    scope.set("throughline.sidecars", format!("{can:?}").to_lowercase());
    Ok(can)
}

/// Writes events, one after the other.
pub async fn write_events(injector: Arc<Injector>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let scope = injector.telemetry.root("write event");
        let namespace = text(&event.about, "/namespace").unwrap_or_default().to_owned();
        let now = timestamp();
        let message: String = event.message.chars().take(1000).collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "throughline-", "namespace": namespace},
            "involvedObject": event.about,
            "reason": event.reason,
            "message": message,
            "type": "Warning",
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": injector.settings.identity,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1
        });
        let template = "/api/v1/namespaces/{namespace}/events";
        let parameters = [("namespace", namespace.as_str())];
        let written = injector
            .api
            .call(&scope, Method::POST, template, &parameters, "", Some(Content::Json(&object)))
            .await;
        let result = if written.is_ok() { "written" } else { "failed" };
        injector.metrics.count("throughline_injector_events_total", &[("result", result)]);
        if let Err(failure) = written {
            tell(Level::Warn, "an event was not written", &[("why", &failure.to_string())]);
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The moment as Kubernetes' `Time` has it: RFC 3339, seconds.
fn timestamp() -> String {
    moment(now(), "")
}

fn moment(seconds: u64, fraction: &str) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(0))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{fraction}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

/// The moment as `MicroTime` has it.
pub fn micro_timestamp() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    moment(since.as_secs(), &format!(".{:06}", since.subsec_micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_kubernetes_reads_them() {
        assert_eq!(moment(1_800_000_000, ".000042"), "2027-01-15T08:00:00.000042Z");
        assert_eq!(moment(0, ""), "1970-01-01T00:00:00Z");
    }
}
