//! `run` and `check`: the process in a cluster. Starts what there is to start, and ends it in order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::Api;
use crate::controller::{self, certificates, leader, missing};
use crate::injector::Injector;
use crate::log::{Level, tell};
use crate::metrics::Metrics;
use crate::serve::{self, Certificate, Ready};
use crate::settings::Settings;
use crate::telemetry::Telemetry;

/// After SIGTERM, how long new reviews are still served: API servers learn late that an endpoint is gone.
const LINGER: Duration = Duration::from_secs(3);

/// Serves until SIGTERM.
pub async fn run(settings: Settings) -> Result<(), String> {
    let reviews = serve::listen(settings.listen, "listen").await?;
    let admin = serve::listen(settings.admin_listen, "admin-listen").await?;
    let metrics = Arc::new(Metrics::default());
    let api = Api::new(settings.kubeconfig.as_deref(), Arc::clone(&metrics)).await?;
    let telemetry = Telemetry::new(&settings)?;
    let (injector, events) = Injector::new(settings, api, metrics, telemetry);
    let (certificate, ready) = (Arc::new(Certificate::default()), Arc::new(Ready::default()));
    let (stop, stopped) = watch::channel(false);

    let at =
        |address: std::io::Result<std::net::SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    let about = [("listen", at(reviews.local_addr())), ("admin", at(admin.local_addr()))];
    tell(
        Level::Info,
        "the injector is starting",
        &about.each_ref().map(|(key, value)| (*key, value.as_str())),
    );
    let admin = tokio::spawn(serve::admin(
        Arc::clone(&injector),
        Arc::clone(&certificate),
        Arc::clone(&ready),
        admin,
        stopped.clone(),
    ));
    tokio::spawn(controller::write_events(Arc::clone(&injector), events));
    tokio::spawn(look_at_cluster(Arc::clone(&injector), Arc::clone(&ready)));
    tokio::spawn(look_at_certificates(Arc::clone(&injector), Arc::clone(&certificate)));
    tokio::spawn(make_rounds(Arc::clone(&injector)));
    let serving = tokio::spawn(serve::reviews(Arc::clone(&injector), certificate, reviews, stopped));

    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    ready.ending.store(true, Ordering::Relaxed);
    tell(Level::Info, "the injector is ending", &[]);
    tokio::time::sleep(LINGER).await;
    let _ = stop.send(true);
    let served = serving.await.map_err(|error| error.to_string())?;
    let _ = admin.await;
    let telemetry = injector.telemetry.clone();
    let _ = tokio::task::spawn_blocking(move || telemetry.finish()).await;
    served
}

async fn look_at_cluster(injector: Arc<Injector>, ready: Arc<Ready>) {
    loop {
        match controller::cluster(&injector).await {
            Ok(sidecars) => {
                injector.saw(sidecars);
                if !ready.cluster.swap(true, Ordering::Relaxed) {
                    tell(
                        Level::Info,
                        "the cluster was looked at",
                        &[("sidecars", &format!("{sidecars:?}").to_lowercase())],
                    );
                }
                tokio::time::sleep(controller::CLUSTER_INTERVAL).await;
            }
            Err(failure) => {
                tell(Level::Warn, "the cluster could not be looked at", &[("why", &failure.to_string())]);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn look_at_certificates(injector: Arc<Injector>, certificate: Arc<Certificate>) {
    let mut last = String::new();
    loop {
        match certificates::look(&injector, &certificate).await {
            Ok(()) => last.clear(),
            // The same trouble every few seconds is told once.
            Err(why) if why != last => {
                tell(Level::Error, "the certificates could not be looked after", &[("why", &why)]);
                last = why;
            }
            Err(_) => {}
        }
        let pause = if certificate.is_there() { injector.settings.sync } else { Duration::from_secs(1) };
        tokio::time::sleep(pause).await;
    }
}

async fn make_rounds(injector: Arc<Injector>) {
    let (mut seen, mut told) = (leader::Seen::default(), HashSet::new());
    let mut last: Option<Instant> = None;
    loop {
        if leader::holds(&injector, &mut seen).await {
            if last.is_none_or(|at| at.elapsed() >= injector.settings.reconcile) {
                last = Some(Instant::now());
                missing::round(&injector, &mut told).await;
            }
        } else {
            last = None;
            // The leader's numbers are not ours.
            for name in ["throughline_injector_pods_missing_sidecar", "throughline_injector_pods_injected"] {
                injector.metrics.set_namespaces(name, &std::collections::BTreeMap::new());
            }
        }
        tokio::time::sleep(leader::RENEW.min(injector.settings.reconcile)).await;
    }
}

/// Names the pods that are missing their sidecar; how many there are.
pub async fn check(settings: Settings) -> Result<usize, String> {
    let metrics = Arc::new(Metrics::default());
    let api = Api::new(settings.kubeconfig.as_deref(), Arc::clone(&metrics)).await?;
    let telemetry = Telemetry::new(&settings)?;
    let (injector, _events) = Injector::new(settings, api, metrics, telemetry);
    injector.saw(controller::cluster(&injector).await.map_err(|failure| failure.to_string())?);
    let found = {
        let scope = injector.telemetry.root("check");
        let namespaces =
            missing::namespaces(&injector, &scope).await.map_err(|failure| failure.to_string())?;
        if namespaces.is_empty() {
            say("no namespace has the label throughline.dev/inject=enabled");
        }
        missing::find(&injector, &scope, &namespaces).await.map_err(|failure| failure.to_string())?
    };
    for pod in &found.missing {
        say(&format!("{}/{}: no sidecar: {}", pod.namespace, pod.name, pod.why));
    }
    let injected: u64 = found.injected.values().sum();
    say(&format!("{injected} running pods with a sidecar, {} without", found.missing.len()));
    injector.telemetry.finish();
    Ok(found.missing.len())
}

/// Writes a line of a command's answer.
pub fn say(line: &str) {
    use std::io::Write;
    // A reader that went away is no trouble of ours.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
