//! Calls of the Kubernetes API: raw JSON in and out, each with a span named by its template, a time limit and a
//! count. Must never put a name into a path that is not a Kubernetes name.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use crate::json::text;
use crate::metrics::Metrics;
use crate::telemetry::Scope;

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer: a page of 250 pods of the largest kind that etcd takes would be more, and is refused.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// There is no such thing.
    NotFound,
    /// Somebody else changed it first, or made it.
    Conflict,
    /// The server says no: status and its message.
    Refused(u16, String),
    /// No answer.
    Unreachable(String),
    /// A name that is none.
    BadName(String),
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Failure::NotFound => "not_found",
            Failure::Conflict => "conflict",
            Failure::Refused(..) => "refused",
            Failure::Unreachable(_) => "unreachable",
            Failure::BadName(_) => "bad_name",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NotFound => f.write_str("there is no such object"),
            Failure::Conflict => f.write_str("somebody else changed it first"),
            Failure::Refused(status, message) => write!(f, "the API server says {status}: {message}"),
            Failure::Unreachable(why) => write!(f, "the API server does not answer: {why}"),
            Failure::BadName(name) => write!(f, "\"{}\" is no name", name.escape_debug()),
        }
    }
}

/// A body and its media type.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// An object.
    Json(&'a Value),
    /// A patch of RFC 6902.
    Patch(&'a Value),
    /// An object for a server-side apply.
    Apply(&'a Value),
}

/// The API.
#[derive(Clone)]
pub struct Api {
    client: Client,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// From a kubeconfig, or from what the pod has.
    pub async fn new(kubeconfig: Option<&str>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let config = match kubeconfig {
            None => kube::Config::infer().await.map_err(|error| error.to_string())?,
            Some(path) => {
                let read =
                    kube::config::Kubeconfig::read_from(path).map_err(|error| format!("{path}: {error}"))?;
                kube::Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default())
                    .await
                    .map_err(|error| format!("{path}: {error}"))?
            }
        };
        let client = Client::try_from(config).map_err(|error| error.to_string())?;
        Ok(Self { client, metrics })
    }

    /// A call. `template` has `{name}` where a parameter goes; the span is named by it, so that names stay few.
    pub async fn call(
        &self,
        parent: &Scope,
        method: Method,
        template: &str,
        parameters: &[(&str, &str)],
        query: &str,
        content: Option<Content<'_>>,
    ) -> Result<Value, Failure> {
        let scope = parent.call(format!("K8s {method} {template}"));
        scope.set("http.request.method", method.to_string());
        scope.set("url.template", template.to_owned());
        for (key, value) in parameters {
            match *key {
                "namespace" => scope.set("k8s.namespace.name", (*value).to_owned()),
                "name" if template.starts_with("/api/v1/namespaces/{name}") => {
                    scope.set("k8s.namespace.name", (*value).to_owned());
                }
                _ => {}
            }
        }
        let called = self.exchange(&scope, &method, template, parameters, query, content).await;
        let status = match &called {
            Ok((status, _)) => status.as_u16(),
            Err(_) => 0,
        };
        let status_text = status.to_string();
        self.metrics.count(
            "throughline_injector_kubernetes_requests_total",
            &[("method", method.as_str()), ("status", &status_text)],
        );
        if status != 0 {
            scope.set("http.response.status_code", i64::from(status));
        }
        let answer = called.and_then(|(status, answer)| match status {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_FOUND => Err(Failure::NotFound),
            StatusCode::CONFLICT => Err(Failure::Conflict),
            status => {
                let message = text(&answer, "/message").unwrap_or("no message").to_owned();
                Err(Failure::Refused(status.as_u16(), message))
            }
        });
        if let Err(failure) = &answer {
            scope.error(failure.kind(), &failure.to_string());
        }
        answer
    }

    async fn exchange(
        &self,
        scope: &Scope,
        method: &Method,
        template: &str,
        parameters: &[(&str, &str)],
        query: &str,
        content: Option<Content<'_>>,
    ) -> Result<(StatusCode, Value), Failure> {
        let mut path = template.to_owned();
        for (key, value) in parameters {
            if !is_name(value) {
                return Err(Failure::BadName((*value).to_owned()));
            }
            path = path.replace(&format!("{{{key}}}"), value);
        }
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let mut request =
            Request::builder().method(method).uri(uri).header(header::ACCEPT, "application/json");
        if let Some(traceparent) = scope.traceparent() {
            request = request.header("traceparent", traceparent);
        }
        let body = match content {
            None => Vec::new(),
            Some(content) => {
                let (media, value) = match content {
                    Content::Json(value) => ("application/json", value),
                    Content::Patch(value) => ("application/json-patch+json", value),
                    Content::Apply(value) => ("application/apply-patch+yaml", value),
                };
                request = request.header(header::CONTENT_TYPE, media);
                value.to_string().into_bytes()
            }
        };
        let request =
            request.body(Body::from(body)).map_err(|error| Failure::Unreachable(error.to_string()))?;
        let unreachable = |error: &dyn std::fmt::Display| Failure::Unreachable(error.to_string());
        let answered = tokio::time::timeout(CALL_TIMEOUT, async {
            let answer = self.client.send(request).await.map_err(|error| unreachable(&error))?;
            let (head, body) = answer.into_parts();
            let body =
                Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| unreachable(&error))?;
            let answer = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
            Ok((head.status, answer))
        });
        answered.await.unwrap_or_else(|_| Err(Failure::Unreachable("it took more than 5 seconds".to_owned())))
    }
}

/// Names of objects: what may stand in a path without meaning anything else.
pub fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.' || b == b':';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(fits) && !text.starts_with('.')
}
