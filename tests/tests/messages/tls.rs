//! The outbound side is the application's plaintext endpoint; what goes to Pub/Sub goes over TLS.

use throughline_tests::judges::python;
use throughline_tests::pki::Pki;
use throughline_tests::prelude::*;
use tokio::net::{TcpListener, TcpStream};

use crate::emulator::{Delivery, Emulator};
use crate::stage::{Form, Google, Message, publish, pull_all};

/// TLS before the emulator, as the service has it.
async fn with_tls(pki: &Pki, emulator: &Emulator) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let (acceptor, address) = (pki.acceptor(false), emulator.address);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut plain = TcpStream::connect(address).await.expect("the emulator");
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut plain).await;
            });
        }
    });
    format!("https://localhost:{port}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sidecar_speaks_tls_to_pubsub_for_rest_and_for_grpc() {
    let Some(pki) = Pki::make() else { return };
    let Some(emulator) = Emulator::start().await else { return };
    emulator.topic("orders").await;
    for id in ["pulled", "streamed"] {
        emulator.subscribe("orders", id, Delivery::Pull).await;
    }
    let upstream = with_tls(&pki, &emulator).await;
    let mesh = Mesh::new().await;
    let pod = |name: &str| mesh.pod(name).flag("pubsub-upstream", &upstream);
    let trusting = |name: &str| pod(name).flag("pubsub-certificate", pki.file("ca.pem").display());
    let orders = trusting("orders").outbound_only().await;
    let shipping = trusting("shipping").outbound_only().await;
    let mut sent = 1;
    publish(orders.sidecar.outbound(), "orders", &[Message::new(Form::Binary, "rest")], &[]).await;
    let interpreter = python(&["google.cloud.pubsub_v1"]);
    let endpoint = shipping.sidecar.outbound();
    let mut got = Vec::new();
    if let Some(interpreter) = &interpreter {
        let google = Google { interpreter, endpoint: orders.sidecar.outbound(), collector: None };
        google.publishes("orders", &[Message::new(Form::Structured, "grpc")], false).await;
        sent += 1;
        got.extend(Google { endpoint, ..google }.streams("streamed", sent, 0).await);
    }
    got.extend(pull_all(endpoint, "pulled", sent).await);
    // A stranger's authority: the certificate of the TLS server is not trusted.
    let doubting = pod("doubting").outbound_only().await;
    let url = format!("http://{}/v1/projects/shop-1/topics/orders:publish", doubting.sidecar.outbound());
    let refused = Ask::post(url, r#"{"messages":[{"data":"aGk="}]}"#);
    let refused = refused.header("content-type", "application/json").send().await;
    assert_eq!(
        (refused.status, refused.header("throughline-error")),
        (502, Some("tls_error")),
        "{}",
        refused.text()
    );

    let spans = mesh.end([orders, shipping, doubting]).await;
    assert_connected(&spans, &[]);
    for one in &got {
        let consumer = the_only(&spans, |span| span.id == one.context().span);
        let producer = the_only(&spans, |span| span.id == consumer.parent);
        assert_eq!((producer.service(), producer.kind), ("orders", Kind::Producer));
        assert_eq!(producer["server.address"], "localhost", "{producer:#?}");
    }
    let failed = the_only(&spans, |span| span.service() == "doubting");
    assert_eq!(
        (failed.kind, failed.status, failed["error.type"].as_str()),
        (Kind::Producer, SpanStatus::Error, Some("tls_error"))
    );
}
