//! Names and numbers that pods, manifests and documents share. Others build on them: change none.

/// Version of this binary and of what it injects.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Namespace label and pod label or annotation: `enabled` or `disabled`.
pub const INJECT: &str = "throughline.dev/inject";
/// What all our annotations begin with.
pub const PREFIX: &str = "throughline.dev/";
/// Annotation that says what was injected; for people, nothing is decided by it.
pub const STATUS: &str = "throughline.dev/status";
/// Annotations whose rest is a key of the sidecar's settings.
pub const SETTING: &str = "throughline.dev/setting.";

/// The init container that writes the redirect.
pub const RULES: &str = "throughline-rules";
/// The sidecar.
pub const PROXY: &str = "throughline-proxy";
/// Envoy with the filter.
pub const ENVOY: &str = "throughline-envoy";
/// Name of the admin port of what is injected.
pub const ADMIN_PORT_NAME: &str = "tl-admin";

/// User id of the sidecar, which the redirect leaves alone.
pub const PROXY_UID: i64 = 15100;
/// Where the redirect sends outbound connections; in reverse mode the HTTP proxy of the application.
pub const OUTBOUND_PORT: u16 = 15101;
/// Where the redirect sends inbound connections; in reverse mode where callers arrive.
pub const INBOUND_PORT: u16 = 15106;
/// Health, metrics and the answers to probes.
pub const ADMIN_PORT: u16 = 15190;

/// `spec.containers` of these names are other meshes'.
pub const OTHER_MESHES: [&str; 2] = ["istio-proxy", "linkerd-proxy"];
/// Namespaces that are never touched.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// What we apply, and our events, are known by it.
pub const MANAGER: &str = "throughline-injector";
