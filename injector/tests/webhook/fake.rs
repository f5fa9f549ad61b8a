//! A Kubernetes API of some lines: what the injector asks of one, kept in memory. For scenarios about the webhook
//! itself, which hold also where no real API server can be built; what one really does is held by tests/cluster.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use throughline_injector::patch;
use throughline_injector::{manifest, settings};
use tokio::net::TcpListener;

use crate::support::Folder;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    events: Vec<Value>,
    asked: Vec<String>,
}

/// The API.
#[derive(Clone)]
pub(crate) struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/throughline-injector";
const SECRET: &str = "/api/v1/namespaces/throughline-system/secrets/throughline-injector-tls";

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let mut webhook = manifest::webhook(&settings::defaults().unwrap());
        webhook["metadata"]["resourceVersion"] = json!("1");
        let namespace = |labels: Value| json!({"metadata": {"name": "a", "labels": labels}});
        {
            let mut state = fake.state.lock().unwrap();
            state.objects.insert(CONFIGURATION.to_owned(), webhook);
            let labelled = namespace(json!({"throughline.dev/inject": "enabled"}));
            state.objects.insert("/api/v1/namespaces/shop".to_owned(), labelled);
            state.objects.insert("/api/v1/namespaces/plain".to_owned(), namespace(json!({})));
            state.objects.insert("/version".to_owned(), json!({"gitVersion": "v1.33.1"}));
            for list in ["/api/v1/nodes", "/api/v1/namespaces", "/api/v1/namespaces/shop/services"] {
                state.objects.insert(list.to_owned(), json!({"items": [], "metadata": {}}));
            }
        }
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = serving.clone();
                let service = service_fn(move |request| {
                    let fake = fake.clone();
                    async move { Ok::<_, Infallible>(fake.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        fake
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body: Value =
            serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or(Value::Null);
        let path = head.uri.path().to_owned();
        let mut state = self.state.lock().unwrap();
        state.asked.push(format!("{} {path}", head.method));
        let answer = match head.method {
            Method::GET => state.objects.get(&path).cloned(),
            Method::POST if path.ends_with("/events") => {
                state.events.push(body.clone());
                Some(body)
            }
            Method::POST | Method::PUT => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let mut stored = body;
                stored["metadata"]["resourceVersion"] = json!(state.asked.len().to_string());
                let path = if head.method == Method::PUT { path } else { format!("{path}/{name}") };
                state.objects.insert(path, stored.clone());
                Some(stored)
            }
            Method::PATCH => {
                let mut stored = state.objects.get(&path).cloned().unwrap_or_default();
                patch::apply(&mut stored, body.as_array().map_or(&[], Vec::as_slice)).unwrap();
                state.objects.insert(path, stored.clone());
                Some(stored)
            }
            _ => None,
        };
        let status = if answer.is_some() { 200 } else { 404 };
        let body = answer.unwrap_or_else(|| json!({"message": "not found"})).to_string();
        Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
    }

    pub(crate) fn kubeconfig(&self, folder: &Folder) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}]
        });
        folder.write("kubeconfig", &config.to_string())
    }

    /// The authority that signed what is served.
    pub(crate) fn authority(&self) -> String {
        let state = self.state.lock().unwrap();
        throughline_injector::certs::Kept::of_secret(&state.objects[SECRET]).unwrap().bundle()
    }

    pub(crate) fn caught_bundles(&self) -> Vec<String> {
        throughline_injector::certs::bundles(&self.state.lock().unwrap().objects[CONFIGURATION])
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.state.lock().unwrap().events.clone()
    }

    /// Forgets an object.
    pub(crate) fn forget(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }
}
