//! What an operator changes while the sidecar runs: the calls under `/api/tracing` and the watched file. Reads,
//! asks who calls, hands on to `core`, and tells of every change; decides nothing about tracing.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use throughline_core::bucket::Bucket;
use throughline_core::control::Value;
use throughline_core::exchange::Work;
use throughline_core::limits::CONTROL_BYTES_MAX;
use throughline_core::mode::Mode;
use throughline_core::settings::Mistake;

use crate::host::now;
use crate::log::{self, Throttle, quote};
use crate::sidecar::Sidecar;

/// Bytes of one call's body.
const BODY_BYTES_MAX: usize = 16 * 1024;
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the token's file.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Changes by calls at once, and how many come back each second.
const CALLS_AT_ONCE: u64 = 20;
const CALLS_PER_SECOND: u64 = 2;
/// How often the file is looked at. A mounted ConfigMap changes by a link that is put in another's place, which is
/// seen by reading and by nothing else everywhere.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bounds the changes by calls.
#[derive(Debug)]
pub(crate) struct Calls {
    changes: Mutex<Bucket>,
    /// Tokens that were shown: whoever guesses must not keep those waiting who know.
    tokens: Mutex<Bucket>,
}

impl Default for Calls {
    fn default() -> Self {
        let bucket = || Mutex::new(Bucket::new(CALLS_PER_SECOND, CALLS_AT_ONCE));
        Self { changes: bucket(), tokens: bucket() }
    }
}

impl Calls {
    fn take(&self) -> bool {
        take(&self.changes)
    }
}

fn take(bucket: &Mutex<Bucket>) -> bool {
    bucket.lock().unwrap_or_else(PoisonError::into_inner).take(1, now())
}

/// A call under `/api/tracing/`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Enable,
    Disable,
    Change,
}

/// Answers a request whose path begins with `/api/tracing/`.
pub(crate) async fn answer(
    sidecar: &Sidecar,
    request: Request<Incoming>,
    caller: SocketAddr,
) -> Response<Full<Bytes>> {
    let call = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/api/tracing/status") => {
            return json(StatusCode::OK, sidecar.tracer.status(now(), sidecar.books()));
        }
        (&Method::POST, "/api/tracing/enable") => Call::Enable,
        (&Method::POST, "/api/tracing/disable") => Call::Disable,
        (&Method::POST, "/api/tracing/mode") => Call::Change,
        (_, "/api/tracing/status" | "/api/tracing/enable" | "/api/tracing/disable" | "/api/tracing/mode") => {
            return refused(
                StatusCode::METHOD_NOT_ALLOWED,
                "want GET for status, POST for enable, disable and mode",
            );
        }
        _ => {
            return refused(
                StatusCode::NOT_FOUND,
                "want enable, disable, mode or status under /api/tracing/",
            );
        }
    };
    let who = match identify(sidecar, request.headers(), caller) {
        Ok(who) => who,
        Err(refusal) => return refusal.answer(caller),
    };
    if !sidecar.control_calls.take() {
        let mut response =
            refused(StatusCode::TOO_MANY_REQUESTS, "want fewer changes: come back in a second");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    }
    let body =
        tokio::time::timeout(BODY_PATIENCE, Limited::new(request.into_body(), BODY_BYTES_MAX).collect());
    let Ok(Ok(body)) = body.await else {
        return refused(StatusCode::BAD_REQUEST, "want a whole body of 16 KiB at the most");
    };
    let began = now();
    let done = match Value::json(&body.to_bytes()) {
        Ok(wish) => carry_out(sidecar, call, &wish),
        Err(want) => Err((StatusCode::BAD_REQUEST, vec![format!("want {want}")])),
    };
    match done {
        Ok((what, text)) => {
            log::info("tracing was changed", &[("caller", &caller), ("by", &who), ("what", &what)]);
            sidecar.work(Work::Control, began, None, &what);
            json(StatusCode::OK, text)
        }
        Err((status, mistakes)) => {
            let told = mistakes.join("; ");
            log::info(
                "a change of tracing was refused",
                &[("caller", &caller), ("by", &who), ("error", &told)],
            );
            sidecar.work(Work::Control, began, Some("refused"), &told);
            json(status, mistakes_json(&mistakes))
        }
    }
}

type Outcome = Result<(String, String), (StatusCode, Vec<String>)>;

/// What was done, in words, and the answer.
fn carry_out(sidecar: &Sidecar, call: Call, wish: &Value) -> Outcome {
    let wrong = |mistakes: Vec<Mistake>| (StatusCode::BAD_REQUEST, told(&mistakes));
    let tracer = &sidecar.tracer;
    match call {
        Call::Enable => {
            let mode = tracer.mode();
            if mode != Mode::Hybrid {
                let want =
                    format!("mode=\"{}\": want hybrid: in no other mode a rule decides", mode.as_str());
                return Err((StatusCode::CONFLICT, vec![want]));
            }
            let enabled = tracer.enable(wish, now()).map_err(wrong)?;
            let text = enabled.json();
            Ok((format!("rule {}: {text}", if enabled.replaced { "replaced" } else { "enabled" }), text))
        }
        Call::Disable => {
            let ended = tracer.disable(wish, now()).map_err(wrong)?;
            if ended == 0 {
                let want = "want a rule that is active: see /api/tracing/status".to_owned();
                return Err((StatusCode::NOT_FOUND, vec![want]));
            }
            Ok((format!("{ended} rules disabled"), format!("{{\"disabled\":{ended}}}")))
        }
        Call::Change => {
            tracer.change(wish).map_err(wrong)?;
            let (mode, rate) = (tracer.mode().as_str(), tracer.base_rate().probability());
            let what = format!("mode {mode}, base rate {rate}");
            Ok((what, format!("{{\"mode\":\"{mode}\",\"base_rate\":{rate}}}")))
        }
    }
}

fn told(mistakes: &[Mistake]) -> Vec<String> {
    mistakes.iter().map(ToString::to_string).collect()
}

/// Why somebody may change nothing.
enum NotAllowed {
    /// A page in a browser: its user did not mean it.
    Browser,
    /// From another host, and there is no token.
    Elsewhere,
    /// The token is missing or wrong.
    Token,
    /// So many tokens were shown that somebody seems to guess.
    TooOften,
}

impl NotAllowed {
    fn answer(&self, caller: SocketAddr) -> Response<Full<Bytes>> {
        static WARNED: Throttle = Throttle::new();
        let (status, want) = match self {
            Self::Browser => (StatusCode::FORBIDDEN, "want a caller that is no web page"),
            Self::Elsewhere => {
                (StatusCode::FORBIDDEN, "want a caller on the same host, or THROUGHLINE_ADMIN_TOKEN_FILE set")
            }
            Self::TooOften => (StatusCode::TOO_MANY_REQUESTS, "want fewer tokens: come back in a second"),
            Self::Token => {
                (StatusCode::UNAUTHORIZED, "want the bearer token of THROUGHLINE_ADMIN_TOKEN_FILE")
            }
        };
        if let Some(held_back) = WARNED.pass() {
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("caller", &caller), ("error", &want), ("held_back", &held_back)];
            log::warn("a call to change tracing was turned away", &fields);
        }
        let mut response = refused(status, want);
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(http::header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// The scheme of a token, and the blank behind it.
const BEARER: &[u8] = b"Bearer ";

/// Whether a page in a browser asks: its user did not mean it.
pub(crate) fn by_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key(HeaderName::from_static("sec-fetch-site"))
}

/// Who calls: somebody on the same host, or the holder of the token. A token that is shown must be right.
fn identify(sidecar: &Sidecar, headers: &HeaderMap, caller: SocketAddr) -> Result<&'static str, NotAllowed> {
    if by_browser(headers) {
        return Err(NotAllowed::Browser);
    }
    let loopback = caller.ip().to_canonical().is_loopback();
    let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    match (shown, loopback, sidecar.settings.admin_token_file.as_str()) {
        (None, true, _) => Ok("loopback"),
        (_, false, "") => Err(NotAllowed::Elsewhere),
        (Some(_), true, "") => Ok("loopback"),
        (None, false, _) => Err(NotAllowed::Token),
        (Some(shown), _, file) => {
            if !take(&sidecar.control_calls.tokens) {
                return Err(NotAllowed::TooOften);
            }
            let (scheme, shown) = shown.split_at_checked(BEARER.len()).unwrap_or_default();
            // Read each time: a token is changed by changing its file.
            let known = read_file(file, TOKEN_BYTES_MAX).unwrap_or_default();
            let (shown, known) = (shown.trim_ascii(), known.trim_ascii());
            let is_bearer = scheme.eq_ignore_ascii_case(BEARER); // RFC 9110 §11.1
            if is_bearer && !known.is_empty() && same(shown, known) {
                Ok("token")
            } else {
                Err(NotAllowed::Token)
            }
        }
    }
}

/// Compares in a time that does not tell how much was right.
fn same(shown: &[u8], known: &[u8]) -> bool {
    let differing = shown.iter().zip(known).fold(0, |differing, (a, b)| differing | (a ^ b));
    shown.len() == known.len() && std::hint::black_box(differing) == 0
}

fn read_file(path: &str, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    // A pipe would be waited for until somebody writes into it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is none"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The watched file.
#[derive(Debug)]
pub(crate) struct Watched {
    path: String,
    /// What the file held, or why it could not be read.
    last: Option<Result<Vec<u8>, String>>,
}

impl Watched {
    /// None where no file is to be watched.
    pub(crate) fn new(path: &str) -> Option<Self> {
        (!path.is_empty()).then(|| Self { path: path.to_owned(), last: None })
    }

    /// Reads the file and takes over what changed. A file that is wrong or gone changes nothing.
    pub(crate) fn look(&mut self, sidecar: &Sidecar) {
        let read = read_file(&self.path, CONTROL_BYTES_MAX as u64 + 1).map_err(|error| error.to_string());
        if self.last.as_ref() == Some(&read) {
            return;
        }
        let began = now();
        let applied = match &read {
            Ok(bytes) => document(bytes).and_then(|document| {
                sidecar.tracer.control(&document, began).map_err(|mistakes| told(&mistakes))
            }),
            Err(error) => Err(vec![format!("want a readable, regular file: {error}")]),
        };
        self.last = Some(read);
        let file = &self.path;
        match applied {
            Ok(changed) => {
                let mode = sidecar.tracer.mode().as_str();
                let (rate, rules) = (sidecar.tracer.base_rate(), sidecar.tracer.rules_active(began));
                let rate = rate.probability();
                let fields: [(&str, &dyn std::fmt::Display); 5] = [
                    ("file", file),
                    ("changed", &changed),
                    ("mode", &mode),
                    ("base_rate", &rate),
                    ("rules", &rules),
                ];
                log::info("the control file was read", &fields);
                if changed {
                    sidecar.work(Work::Control, began, None, "the control file changed");
                }
            }
            Err(mistakes) => {
                for mistake in &mistakes {
                    log::warn(
                        "the control file is wrong: the last good one holds",
                        &[("file", file), ("error", mistake)],
                    );
                }
                sidecar.work(Work::Control, began, Some("refused"), &mistakes.join("; "));
            }
        }
    }

    /// Looks until the process ends.
    pub(crate) async fn watch(mut self, sidecar: Arc<Sidecar>) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let sidecar = Arc::clone(&sidecar);
            // A file may lie on a mount that hangs: requests do not wait for it.
            let looked = tokio::task::spawn_blocking(move || {
                self.look(&sidecar);
                self
            });
            let Ok(watched) = looked.await else { return };
            self = watched;
        }
    }
}

/// A document in YAML, of which JSON is a part.
fn document(bytes: &[u8]) -> Result<Value, Vec<String>> {
    if bytes.len() > CONTROL_BYTES_MAX {
        return Err(vec!["want a document of 256 KiB at the most".to_owned()]);
    }
    let parsed = serde_yaml::from_slice::<serde_yaml::Value>(bytes);
    parsed.map(of_yaml).map_err(|error| vec![format!("want YAML: {error}")])
}

fn of_yaml(value: serde_yaml::Value) -> Value {
    match value {
        serde_yaml::Value::Null => Value::Null,
        serde_yaml::Value::Bool(value) => Value::Bool(value),
        serde_yaml::Value::Number(number) => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
        serde_yaml::Value::String(text) => Value::Text(text),
        serde_yaml::Value::Sequence(list) => Value::List(list.into_iter().map(of_yaml).collect()),
        serde_yaml::Value::Mapping(map) => {
            let key = |key: serde_yaml::Value| match key {
                serde_yaml::Value::String(text) => text,
                other => serde_yaml::to_string(&other).unwrap_or_default().trim().to_owned(),
            };
            Value::Map(map.into_iter().map(|(name, value)| (key(name), of_yaml(value))).collect())
        }
        serde_yaml::Value::Tagged(tagged) => of_yaml(tagged.value),
    }
}

fn refused(status: StatusCode, want: &str) -> Response<Full<Bytes>> {
    json(status, mistakes_json(&[want.to_owned()]))
}

fn mistakes_json(mistakes: &[String]) -> String {
    let mut text = String::from("{\"mistakes\":[");
    for (at, mistake) in mistakes.iter().enumerate() {
        let _ = write!(text, "{}", if at > 0 { "," } else { "" });
        quote(mistake, &mut text);
    }
    text.push_str("]}");
    text
}

fn json(status: StatusCode, mut text: String) -> Response<Full<Bytes>> {
    text.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_may_be_yaml_or_json() {
        let yaml = "mode: full\nrules:\n  - operation: checkout\n    expires: 7\n    rate: 0.5\n";
        let json = r#"{"mode":"full","rules":[{"operation":"checkout","expires":7,"rate":0.5}]}"#;
        assert_eq!(document(yaml.as_bytes()), Value::json(json.as_bytes()).map_err(|_| vec![]));
        assert_eq!(document(json.as_bytes()), document(yaml.as_bytes()));
        assert_eq!(document(b""), Ok(Value::Null));
        assert!(document(b"a: [").unwrap_err()[0].starts_with("want YAML"));
        assert!(document(&[b' '; CONTROL_BYTES_MAX + 1]).unwrap_err()[0].contains("256 KiB"));
    }

    #[test]
    fn a_token_is_right_only_as_a_whole() {
        for (shown, expected) in
            [("secret", true), ("secre", false), ("secret1", false), ("Secret", false), ("", false)]
        {
            assert_eq!(same(shown.as_bytes(), b"secret"), expected, "{shown}");
        }
    }
}
