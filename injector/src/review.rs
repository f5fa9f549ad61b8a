//! AdmissionReview, in and out: bytes to a request, an answer to bytes. Whatever comes, the answer admits. Must
//! never hold more than the body it was given, nor follow it into any depth.

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Warnings of one answer; API servers cut them beyond some 4 KiB together.
const WARNINGS_MAX: usize = 8;
/// Characters of a warning, by the advice of Kubernetes' documentation.
const WARNING_CHARACTERS_MAX: usize = 256;
/// In this many bytes of a review its uid is found: it is the first field of the request.
pub const PREFIX_BYTES: usize = 4096;

/// A request for admission.
#[derive(Clone, Debug)]
pub struct Request {
    /// To be repeated in the answer.
    pub uid: String,
    /// `CREATE` and the like.
    pub operation: String,
    /// `pods`.
    pub resource: String,
    /// Empty, or `ephemeralcontainers` and the like.
    pub subresource: String,
    /// The namespace, which the pod itself may not name yet.
    pub namespace: String,
    /// Whether nothing is to be stored, and so nothing else be done either.
    pub dry_run: bool,
    /// The pod, as text that was only looked through.
    pub object: Box<RawValue>,
}

#[derive(Deserialize)]
struct Envelope {
    request: Inner,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inner {
    uid: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    resource: Resource,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default)]
    object: Option<Box<RawValue>>,
}

#[derive(Deserialize, Default)]
struct Resource {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resource: String,
}

impl Request {
    /// Reads a review. The object is not parsed: its depth and size are nobody's trouble yet.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        let Envelope { request } = serde_json::from_slice(body)
            .map_err(|error| format!("want an AdmissionReview of admission.k8s.io/v1: {error}"))?;
        let nothing = || RawValue::from_string("null".to_owned());
        let object = match request.object {
            Some(object) => object,
            None => nothing().map_err(|error| error.to_string())?,
        };
        let resource = match request.resource.group.as_str() {
            "" => request.resource.resource,
            group => format!("{}.{group}", request.resource.resource),
        };
        Ok(Self {
            uid: request.uid,
            operation: request.operation,
            resource,
            subresource: request.sub_resource.unwrap_or_default(),
            namespace: request.namespace.unwrap_or_default(),
            dry_run: request.dry_run.unwrap_or(false),
            object,
        })
    }

    /// Whether this is a pod that is being created.
    pub fn creates_a_pod(&self) -> bool {
        self.operation == "CREATE" && self.resource == "pods" && self.subresource.is_empty()
    }
}

/// The uid of a review that can't be read as a whole, from its first bytes: so that it is admitted all the same.
pub fn uid_of(prefix: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(prefix.get(..PREFIX_BYTES).unwrap_or(prefix));
    let (_, rest) = text.split_once("\"uid\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let (uid, _) = rest.split_once('"')?;
    let fits =
        !uid.is_empty() && uid.len() <= 128 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    fits.then(|| uid.to_owned())
}

/// The answer: allowed, with a patch where there is one.
pub fn answer(uid: &str, operations: &[Value], warnings: &[String]) -> Vec<u8> {
    let mut response = json!({"uid": uid, "allowed": true});
    if let Some(response) = response.as_object_mut() {
        if !operations.is_empty() {
            let patch = ByteString(Value::Array(operations.to_vec()).to_string().into_bytes());
            response.insert("patchType".to_owned(), json!("JSONPatch"));
            response.insert("patch".to_owned(), json!(patch));
        }
        if !warnings.is_empty() {
            let told: Vec<String> =
                warnings.iter().take(WARNINGS_MAX).map(|warning| plain(warning)).collect();
            response.insert("warnings".to_owned(), json!(told));
        }
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
        .to_string()
        .into_bytes()
}

/// A warning travels in a header: no control characters, and short.
fn plain(text: &str) -> String {
    let whole = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let cut: String = whole.clone().take(WARNING_CHARACTERS_MAX).collect();
    if whole.count() > WARNING_CHARACTERS_MAX {
        let short: String = cut.chars().take(WARNING_CHARACTERS_MAX - 1).collect();
        return format!("{short}…");
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(object: &str) -> String {
        format!(
            r#"{{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{{"uid":"u-1","resource":{{"group":"","version":"v1","resource":"pods"}},"namespace":"shop","operation":"CREATE","dryRun":true,"object":{object}}}}}"#
        )
    }

    #[test]
    fn a_review_is_read_without_looking_into_its_object() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let request = Request::read(review(&deep).as_bytes()).unwrap();
        assert!(request.creates_a_pod() && request.dry_run);
        assert_eq!((request.uid.as_str(), request.namespace.as_str()), ("u-1", "shop"));
        assert!(serde_json::from_str::<Value>(request.object.get()).is_err(), "too deep to be parsed");
    }

    #[test]
    fn the_uid_is_found_in_what_is_no_review() {
        let whole = review("{}");
        assert_eq!(uid_of(&whole.as_bytes()[..150]).as_deref(), Some("u-1"));
        for text in ["", "{}", r#"{"uid":"#, r#"{"uid":"a b"}"#, r#"{"uid": 5}"#] {
            assert_eq!(uid_of(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn warnings_fit_into_a_header() {
        let long = format!("a\nb{}", "x".repeat(1000));
        let answer: Value = serde_json::from_slice(&answer("u", &[], &[long])).unwrap();
        let warning = answer.pointer("/response/warnings/0").unwrap().as_str().unwrap();
        assert_eq!(warning.chars().count(), WARNING_CHARACTERS_MAX);
        assert!(warning.starts_with("a bx"));
    }
}
