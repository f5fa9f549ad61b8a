//! TLS to the collector: by a certificate authority of the user's own, with and without a client certificate.

use throughline_tests::pki::Pki;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

fn plan(app: &Service, collector: &Collector, protocol: &str) -> Plan {
    Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://{}", collector.address))
        .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        .environment("OTEL_METRICS_EXPORTER", "none")
}

#[tokio::test]
async fn spans_arrive_over_tls_by_both_protocols() {
    let Some(pki) = Pki::make() else { return };
    for protocol in ["grpc", "http/protobuf"] {
        for clients in [false, true] {
            let collector = Collector::with_tls(pki.acceptor(clients)).await;
            let app = Service::playing(answer(200, "")).await;
            let plan = plan(&app, &collector, protocol)
                .environment("OTEL_EXPORTER_OTLP_CERTIFICATE", pki.file("ca.pem").display());
            let plan = match clients {
                false => plan,
                true => plan
                    .environment("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", pki.file("client.pem").display())
                    .environment("OTEL_EXPORTER_OTLP_CLIENT_KEY", pki.file("client.key").display()),
            };
            let sidecar = plan.start().await;
            Ask::get(sidecar.url("/")).send().await;
            collector.spans(1).await;
            sidecar.end().await;
        }
    }
}

#[tokio::test]
async fn a_collector_that_cannot_be_trusted_gets_nothing() {
    let (Some(pki), Some(strangers)) = (Pki::make(), Pki::make()) else { return };
    // The authority that is trusted, if one is named; whether a client certificate is demanded.
    for (authority, clients) in [(Some(&strangers), false), (None, false), (Some(&pki), true)] {
        let collector = Collector::with_tls(pki.acceptor(clients)).await;
        let app = Service::playing(answer(200, "")).await;
        let plan = plan(&app, &collector, "grpc").environment("OTEL_EXPORTER_OTLP_TIMEOUT", 500);
        let plan = plan.flag("drain-timeout", 2000);
        let plan = match authority {
            None => plan,
            Some(pki) => plan.environment("OTEL_EXPORTER_OTLP_CERTIFICATE", pki.file("ca.pem").display()),
        };
        let sidecar = plan.start().await;
        assert_eq!(Ask::get(sidecar.url("/")).send().await.status, 200);
        let logged =
            |line: &serde_json::Value| line["level"] == "warn" && line.to_string().contains("collector");
        sidecar.logged(logged).await;
        let books = sidecar.books().await;
        assert_eq!((books.created(), books.exported()), (1, 0));
        sidecar.end().await;
        assert!(collector.deliveries().is_empty());
    }
}
