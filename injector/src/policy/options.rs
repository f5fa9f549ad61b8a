//! What annotations say, laid over the settings: the pod's win over the namespace's. All mistakes are told
//! together, and one mistake means that nothing is injected: half of what was asked is worse than none. Must
//! never let through what would make Kubernetes refuse the pod.

use crate::json::pairs;
use crate::names::{INJECT, PREFIX, SETTING, STATUS};
use crate::pod::Pod;
use crate::quantity::thousandths;
use crate::settings::{self, Exclusions, Injecting, Mode, OURS, Resources};

use super::Around;

/// Annotations of pods and namespaces, without the prefix, and what they are for.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    ("inject", "`enabled` or `disabled`, as label or annotation of the pod; as label of the namespace"),
    ("mode", "`sidecar`, `reverse`, `envoy-wasm`, `istio-wasm` (of the namespace)"),
    ("service-name", "the service's name on spans; wins over every other source"),
    ("port", "the port that reverse takes over, by name or number, where Services do not tell"),
    ("proxy-env", "`always`: reverse sets HTTP_PROXY also beside an envFrom that may have one; `never`"),
    ("skip-inbound-ports", "ports whose inbound connections are not captured"),
    ("skip-outbound-ports", "ports to which outbound connections are not captured"),
    ("skip-outbound-cidrs", "networks to which outbound connections are not captured"),
    ("cpu-request", "CPU that the sidecar asks for"),
    ("cpu-limit", "CPU that it may use"),
    ("memory-request", "memory that it asks for"),
    ("memory-limit", "memory that it may use"),
    ("tracing-mode", "`off`, `system-only`, `hybrid`, `full`"),
    ("sampler", "as `OTEL_TRACES_SAMPLER`"),
    ("sampler-arg", "as `OTEL_TRACES_SAMPLER_ARG`"),
    ("log-level", "`error`, `warn`, `info`, `debug`"),
    ("otlp-endpoint", "the collector of this pod's sidecar"),
    ("otlp-protocol", "`grpc` or `http/protobuf`"),
    ("setting.<key>", "any key of docs/settings.md that the injector does not set itself"),
];

/// Annotations that are names of sidecars' settings in other words.
const SHORT: &[(&str, &str)] = &[
    ("tracing-mode", "mode"),
    ("sampler", "otel-traces-sampler"),
    ("sampler-arg", "otel-traces-sampler-arg"),
    ("log-level", "otel-log-level"),
];

/// Whether reverse mode sets `HTTP_PROXY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyEnv {
    /// Where nothing can be overwritten.
    Careful,
    /// Also where an `envFrom` may have it.
    Always,
    /// Not at all.
    Never,
}

/// What pod, namespace and settings say together.
#[derive(Clone, Debug)]
pub struct Options {
    /// The mode, if one is asked for.
    pub mode: Option<Mode>,
    /// The service's name, if one is given.
    pub service_name: Option<String>,
    /// The port that reverse takes over, if one is given.
    pub port: Option<String>,
    /// Whether `HTTP_PROXY` is set.
    pub proxy_env: ProxyEnv,
    /// What is not captured.
    pub exclusions: Exclusions,
    /// Requests and limits.
    pub resources: Resources,
    /// Settings of the sidecar: key and value.
    pub settings: Vec<(String, String)>,
    /// The collector.
    pub otlp_endpoint: String,
    /// Its protocol.
    pub otlp_protocol: String,
}

pub(super) fn read(
    pod: &Pod<'_>,
    around: &Around<'_>,
    settings: &Injecting,
    warnings: &mut Vec<String>,
) -> Result<Options, Vec<String>> {
    let mut options = Options {
        mode: None,
        service_name: None,
        port: None,
        proxy_env: ProxyEnv::Careful,
        exclusions: settings.exclusions.clone(),
        resources: settings.resources.clone(),
        settings: settings.sidecar_settings.clone(),
        otlp_endpoint: settings.otlp_endpoint.clone(),
        otlp_protocol: settings.otlp_protocol.clone(),
    };
    let mut mistakes = Vec::new();
    let mut asked = Asked::default();
    // The namespace first, so that the pod's word is the last.
    for (of_pod, raw) in [(false, around.namespace_object), (true, pod.raw())] {
        for (name, value) in pairs(raw, "/metadata/annotations") {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            match options.take(key, value.trim(), &mut asked) {
                Ok(true) => {}
                // A namespace may have annotations of other parts of the product.
                Ok(false) if of_pod && name != INJECT && name != STATUS => {
                    warnings.push(format!("throughline: {name}: no such annotation"));
                }
                Ok(false) => {}
                Err(want) => mistakes.push(format!("{name}: \"{}\": {want}", value.escape_debug())),
            }
        }
    }
    options.fit_resources(&asked, &mut mistakes);
    if options.settings != settings.sidecar_settings
        && let Err(told) = settings::check_sidecar(&options.settings)
    {
        mistakes.extend(told.iter().map(|mistake| format!("{SETTING}{mistake}")));
    }
    if mistakes.is_empty() { Ok(options) } else { Err(mistakes) }
}

/// Which resources annotations name; the others give way to them.
#[derive(Default)]
struct Asked {
    resources: Vec<&'static str>,
}

impl Options {
    /// Takes one annotation. `Ok(false)`: there is no such one.
    fn take(&mut self, key: &str, value: &str, asked: &mut Asked) -> Result<bool, String> {
        if let Some(key) = key.strip_prefix("setting.") {
            if OURS.contains(&key) {
                return Err("the injector sets it itself".to_owned());
            }
            self.set(key, value);
            return Ok(true);
        }
        if let Some((_, setting)) = SHORT.iter().find(|(short, _)| *short == key) {
            self.set(setting, value);
            return Ok(true);
        }
        let quantity = || match thousandths(value) {
            Some(_) => Ok(value.to_owned()),
            None => Err("want a quantity such as 100m or 64Mi".to_owned()),
        };
        let mut resource = |name: &'static str, place: &mut String| -> Result<(), String> {
            *place = quantity()?;
            asked.resources.push(name);
            Ok(())
        };
        match key {
            "mode" => self.mode = Some(Mode::read(value).ok_or_else(|| format!("want {}", Mode::WANT))?),
            "service-name" if value.is_empty() || value.len() > 255 => {
                return Err("want a name of 255 bytes at the most".to_owned());
            }
            "service-name" => self.service_name = Some(value.to_owned()),
            "port" if value.is_empty() => return Err("want the name or number of a port".to_owned()),
            "port" => self.port = Some(value.to_owned()),
            "proxy-env" => {
                self.proxy_env = match value {
                    "always" => ProxyEnv::Always,
                    "never" => ProxyEnv::Never,
                    _ => return Err("want always or never".to_owned()),
                }
            }
            "skip-inbound-ports" => self.exclusions.inbound_ports.extend(settings::ports(value)?),
            "skip-outbound-ports" => self.exclusions.outbound_ports.extend(settings::ports(value)?),
            "skip-outbound-cidrs" => self.exclusions.outbound_cidrs.extend(settings::cidrs(value)?),
            "cpu-request" => resource("cpu-request", &mut self.resources.cpu_request)?,
            "cpu-limit" => resource("cpu-limit", &mut self.resources.cpu_limit)?,
            "memory-request" => resource("memory-request", &mut self.resources.memory_request)?,
            "memory-limit" => resource("memory-limit", &mut self.resources.memory_limit)?,
            "otlp-endpoint" => self.otlp_endpoint = settings::endpoint(value)?,
            "otlp-protocol" => self.otlp_protocol = settings::protocol(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// The value of a sidecar's setting, if one is given.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Kubernetes refuses a pod whose request is above its limit. What was not asked for follows what was.
    fn fit_resources(&mut self, asked: &Asked, mistakes: &mut Vec<String>) {
        let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = &mut self.resources;
        for (what, request, limit) in
            [("cpu", cpu_request, cpu_limit), ("memory", memory_request, memory_limit)]
        {
            if thousandths(request) <= thousandths(limit) {
                continue;
            }
            let said = |name: &str| asked.resources.contains(&format!("{what}-{name}").as_str());
            match (said("request"), said("limit")) {
                (true, false) => limit.clone_from(request),
                (false, true) => request.clone_from(limit),
                _ => mistakes.push(format!(
                    "{PREFIX}{what}-request: \"{request}\": want {limit} at the most, the limit"
                )),
            }
        }
    }
}
