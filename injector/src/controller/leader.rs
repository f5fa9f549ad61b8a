//! Who of several replicas makes the rounds: whoever holds the Lease. Must never lead without having renewed it:
//! two leaders would do no harm but write twice.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::api::{Content, Failure};
use crate::injector::Injector;
use crate::json::text;
use crate::telemetry::Scope;

/// How long a Lease holds without being renewed.
const HOLDS: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
pub const RENEW: Duration = Duration::from_secs(5);

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}";

/// What was seen of the Lease. Other replicas' clocks are not believed: its age is counted from when it was seen.
#[derive(Debug, Default)]
pub struct Seen {
    version: String,
    since: Option<Instant>,
}

/// Renews, takes or looks at the Lease; whether it is ours.
pub async fn holds(injector: &Injector, seen: &mut Seen) -> bool {
    let scope = injector.telemetry.root("renew lease");
    let ours = match renew(injector, &scope, seen).await {
        Ok(ours) => ours,
        Err(Failure::Conflict) => false,
        Err(failure) => {
            scope.error("lease", &failure.to_string());
            false
        }
    };
    injector.metrics.set("throughline_injector_leader", if ours { 1.0 } else { 0.0 });
    ours
}

async fn renew(injector: &Injector, scope: &Scope, seen: &mut Seen) -> Result<bool, Failure> {
    let settings = &injector.settings;
    let parameters = [("namespace", settings.namespace.as_str()), ("name", settings.lease.as_str())];
    let lease = match injector.api.call(scope, Method::GET, LEASE, &parameters, "", None).await {
        Ok(lease) => lease,
        Err(Failure::NotFound) => {
            let lease = of(injector, None);
            injector
                .api
                .call(scope, Method::POST, LEASES, &parameters, "", Some(Content::Json(&lease)))
                .await?;
            return Ok(true);
        }
        Err(failure) => return Err(failure),
    };
    let version = text(&lease, "/metadata/resourceVersion").unwrap_or_default();
    let holder = text(&lease, "/spec/holderIdentity").unwrap_or_default();
    if seen.version != version {
        *seen = Seen { version: version.to_owned(), since: Some(Instant::now()) };
    }
    let over = seen.since.is_some_and(|since| since.elapsed() > HOLDS);
    if holder != settings.identity && !holder.is_empty() && !over {
        return Ok(false);
    }
    let lease = of(injector, Some(version));
    injector.api.call(scope, Method::PUT, LEASE, &parameters, "", Some(Content::Json(&lease))).await?;
    Ok(true)
}

fn of(injector: &Injector, version: Option<&str>) -> Value {
    let settings = &injector.settings;
    let now = super::micro_timestamp();
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": settings.lease, "namespace": settings.namespace, "resourceVersion": version},
        "spec": {
            "holderIdentity": settings.identity,
            "leaseDurationSeconds": HOLDS.as_secs(),
            "acquireTime": now,
            "renewTime": now
        }
    })
}
