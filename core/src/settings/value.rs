//! How the text of a setting becomes its value. Each reader says what would be right, in words that follow
//! "want"; nothing here knows where the text came from.

use std::net::{IpAddr, SocketAddr};

use super::Want;
use crate::exchange::{EventContext, MessageNames, Propagators, ResponseHeaders, RootUnsampled};
use crate::keep::Slow;
use crate::mesh::Inside;
use crate::metrics::Aggregation;
use crate::mode::Mode;
use crate::operation::Operation;
use crate::route::Pattern;
use crate::sampling::Ratio;

/// Empty text is no value.
pub(super) fn optional<T>(read: fn(&str) -> Result<T, Want>) -> impl Fn(&str) -> Result<Option<T>, Want> {
    move |text| if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

/// Values separated by commas; empty ones are passed over.
pub(super) fn list<T>(read: fn(&str) -> Result<T, Want>) -> impl Fn(&str) -> Result<Vec<T>, Want> {
    move |text| text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(read).collect()
}

pub(super) fn text(text: &str) -> Result<String, Want> {
    Ok(text.to_owned())
}

pub(super) fn listen(text: &str) -> Result<SocketAddr, Want> {
    text.parse().map_err(|_| "an address and port such as 127.0.0.1:8080 or [::1]:8080".into())
}

/// Host and port of an upstream.
pub(super) fn authority(text: &str) -> Result<Authority, Want> {
    Authority::parse(text).ok_or_else(|| "a host and port such as 127.0.0.1:8080 or orders:80".into())
}

pub(super) fn switch(text: &str) -> Result<bool, Want> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "1" | "yes" => Ok(true),
        "off" | "false" | "0" | "no" => Ok(false),
        _ => Err("on or off".into()),
    }
}

/// The boolean of OpenTelemetry's environment variables: only `true` is true.
pub(super) fn otel_bool(text: &str) -> Result<bool, Want> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false".into()),
    }
}

pub(super) fn number<const LEAST: u64, const MOST: u64>(text: &str) -> Result<u64, Want> {
    let number = text.parse().ok().filter(|number| (LEAST..=MOST).contains(number));
    number.ok_or_else(|| format!("a whole number from {LEAST} to {MOST}").into())
}

pub(super) fn ratio(text: &str) -> Result<Ratio, Want> {
    Ratio::parse(text).ok_or_else(|| "a ratio from 0 to 1".into())
}

pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Want> {
    let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", ")).into()
    })
}

/// How the application's traffic comes to the sidecar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capture {
    /// Callers are sent to our ports by name, number or proxy setting.
    Reverse,
    /// The kernel redirects connections here, and knows where they were going.
    Transparent,
}

pub(super) fn capture(text: &str) -> Result<Capture, Want> {
    choice(text, &[("reverse", Capture::Reverse), ("transparent", Capture::Transparent)])
}

/// A question about the application that the admin port answers in its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// Whether a port takes connections.
    Tcp {
        /// The port.
        port: u16,
    },
    /// What `grpc.health.v1.Health/Check` says.
    Grpc {
        /// The port.
        port: u16,
        /// The service; empty for the whole server.
        service: Box<str>,
    },
    /// Whether a path is answered with a status from 200 to 399.
    Http {
        /// Whether by TLS, whoever the certificate names.
        tls: bool,
        /// The port.
        port: u16,
        /// Path and query.
        path: Box<str>,
    },
}

/// `tcp:PORT`, `grpc:PORT[/SERVICE]`, `http:PORT/PATH`, `https:PORT/PATH`.
pub(super) fn probe(text: &str) -> Result<Probe, Want> {
    let parsed = text.split_once(':').and_then(|(kind, rest)| {
        let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let graphic = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        match kind {
            "tcp" if path.is_empty() => Some(Probe::Tcp { port }),
            "grpc" if graphic => {
                Some(Probe::Grpc { port, service: path.strip_prefix('/').unwrap_or_default().into() })
            }
            "http" | "https" if graphic && !path.is_empty() => {
                Some(Probe::Http { tls: kind == "https", port, path: path.into() })
            }
            _ => None,
        }
    });
    parsed.ok_or_else(|| "probes such as tcp:5432, grpc:9000/orders, http:8080/healthz or https:8443/".into())
}

/// Names of `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SamplerName {
    /// Every exchange.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share, whatever the parent said.
    Ratio,
    /// The parent's decision, else every one.
    ParentBasedAlwaysOn,
    /// The parent's decision, else none.
    ParentBasedAlwaysOff,
    /// The parent's decision, else a share.
    ParentBasedRatio,
}

pub(super) fn sampler(text: &str) -> Result<SamplerName, Want> {
    choice(
        text,
        &[
            ("always_on", SamplerName::AlwaysOn),
            ("always_off", SamplerName::AlwaysOff),
            ("traceidratio", SamplerName::Ratio),
            ("parentbased_always_on", SamplerName::ParentBasedAlwaysOn),
            ("parentbased_always_off", SamplerName::ParentBasedAlwaysOff),
            ("parentbased_traceidratio", SamplerName::ParentBasedRatio),
        ],
    )
}

/// `OTEL_TRACES_EXPORTER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exporter {
    /// To an OTLP endpoint.
    Otlp,
    /// Readable lines on standard output.
    Console,
    /// Nowhere.
    None,
}

pub(super) fn exporter(text: &str) -> Result<Exporter, Want> {
    choice(text, &[("otlp", Exporter::Otlp), ("console", Exporter::Console), ("none", Exporter::None)])
}

pub(super) fn metrics_exporter(text: &str) -> Result<Exporter, Want> {
    choice(text, &[("otlp", Exporter::Otlp), ("none", Exporter::None)])
}

pub(super) fn aggregation(text: &str) -> Result<Aggregation, Want> {
    let explicit = ("explicit_bucket_histogram", Aggregation::Explicit);
    choice(text, &[explicit, ("base2_exponential_bucket_histogram", Aggregation::Exponential)])
}

/// `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Protobuf by HTTP POST.
    HttpProtobuf,
}

pub(super) fn protocol(text: &str) -> Result<Protocol, Want> {
    choice(text, &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)])
}

/// `OTEL_EXPORTER_OTLP_COMPRESSION`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
}

pub(super) fn compression(text: &str) -> Result<Compression, Want> {
    choice(text, &[("none", Compression::None), ("gzip", Compression::Gzip)])
}

/// `THROUGHLINE_ACCESS_LOG`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessLog {
    /// JSON lines on standard output.
    Stdout,
    /// None.
    Off,
}

pub(super) fn access_log(text: &str) -> Result<AccessLog, Want> {
    choice(text, &[("off", AccessLog::Off), ("stdout", AccessLog::Stdout)])
}

/// Whether queries are recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueryMode {
    /// With credentials redacted.
    Redacted,
    /// Not at all.
    Off,
}

pub(super) fn query(text: &str) -> Result<QueryMode, Want> {
    choice(text, &[("redacted", QueryMode::Redacted), ("off", QueryMode::Off)])
}

pub(super) fn root_unsampled(text: &str) -> Result<RootUnsampled, Want> {
    choice(text, &[("flag", RootUnsampled::Flag), ("silent", RootUnsampled::Silent)])
}

pub(super) fn mode(text: &str) -> Result<Mode, Want> {
    Mode::parse(text).ok_or_else(|| "one of off, system-only, hybrid, full".into())
}

const NANOS_PER_MILLI: u64 = 1_000_000;

fn millis(text: &str) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|millis| (1..=3_600_000).contains(millis))
        .map(|millis: u64| millis * NANOS_PER_MILLI)
}

pub(super) fn slow(text: &str) -> Result<Slow, Want> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Ok(Slow::Never),
        "p99" => Ok(Slow::P99),
        text => {
            millis(text).map(Slow::Over).ok_or_else(|| "p99, off, or milliseconds from 1 to 3600000".into())
        }
    }
}

pub(super) fn slow_route(text: &str) -> Result<(Box<str>, u64), Want> {
    let parsed = text.rsplit_once('=').and_then(|(route, limit)| Some((route.trim(), millis(limit.trim())?)));
    let parsed = parsed.filter(|(route, _)| !route.is_empty());
    let (route, nanos) = parsed.ok_or("routes and milliseconds such as /clusters/{id}=250")?;
    Ok((route.into(), nanos))
}

pub(super) fn operation(text: &str) -> Result<Box<str>, Want> {
    let operation = Operation::parse(text.as_bytes());
    operation.map(|operation| operation.as_str().into()).ok_or_else(|| "names of operations".into())
}

/// A header, and the value that counts.
pub(super) fn kept_header(text: &str) -> Result<(Box<str>, Option<Box<str>>), Want> {
    match text.split_once('=') {
        None => Ok((header_name(text)?, None)),
        Some((name, value)) => Ok((header_name(name.trim())?, Some(value.trim().into()))),
    }
}

/// `THROUGHLINE_TRUST`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrustName {
    /// Callers are of the mesh.
    Mesh,
    /// Callers are anybody.
    Edge,
}

pub(super) fn trust(text: &str) -> Result<TrustName, Want> {
    choice(text, &[("mesh", TrustName::Mesh), ("edge", TrustName::Edge)])
}

pub(super) fn event_context(text: &str) -> Result<EventContext, Want> {
    choice(text, &[("rewrite", EventContext::Rewrite), ("preserve", EventContext::Preserve)])
}

pub(super) fn message_names(text: &str) -> Result<MessageNames, Want> {
    choice(text, &[("destination_first", MessageNames::DestinationFirst), ("semconv", MessageNames::Semconv)])
}

/// How much a process says about itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// What stops it.
    Error,
    /// What a user should look at.
    Warn,
    /// Start, stop, changes.
    Info,
    /// Everything.
    Debug,
}

pub(super) fn log_level(text: &str) -> Result<LogLevel, Want> {
    choice(
        text,
        &[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
        ],
    )
}

/// `OTEL_PROPAGATORS`. `xray` and `ottrace` are known by name and not supported: they are left out with a
/// warning, as the specification asks for names that an implementation does not know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PropagatorList {
    /// The supported ones.
    pub propagators: Propagators,
    /// Names that are known but not supported.
    pub unsupported: Vec<String>,
}

pub(super) fn propagators(text: &str) -> Result<PropagatorList, Want> {
    let mut result = PropagatorList { propagators: Propagators::default(), unsupported: Vec::new() };
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name.to_ascii_lowercase().as_str() {
            "tracecontext" => result.propagators.tracecontext = true,
            "baggage" => result.propagators.baggage = true,
            "b3" => result.propagators.b3 = true,
            "b3multi" => result.propagators.b3multi = true,
            "jaeger" => result.propagators.jaeger = true,
            "none" => {}
            "xray" | "ottrace" => result.unsupported.push(name.to_owned()),
            _ => return Err("a list of tracecontext, baggage, b3, b3multi, jaeger, none".into()),
        }
    }
    Ok(result)
}

pub(super) fn response_headers(text: &str) -> Result<ResponseHeaders, Want> {
    let mut headers = ResponseHeaders::default();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name.to_ascii_lowercase().as_str() {
            "server-timing" => headers.server_timing = true,
            "traceresponse" => headers.traceresponse = true,
            "x-trace-id" => headers.trace_id = true,
            _ => return Err("a list of server-timing, traceresponse, x-trace-id".into()),
        }
    }
    Ok(headers)
}

pub(super) fn pattern(text: &str) -> Result<Pattern, Want> {
    Pattern::parse(text).ok_or_else(|| "path patterns such as /clusters/{id} or /static/*".into())
}

pub(super) fn inside(text: &str) -> Result<Inside, Want> {
    Inside::parse(text).ok_or_else(|| "hosts, .suffixes or networks such as 10.0.0.0/8".into())
}

pub(super) fn header_name(text: &str) -> Result<Box<str>, Want> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(token) {
        return Err("header names".into());
    }
    Ok(text.to_ascii_lowercase().into())
}

/// A key and a value, percent-decoded: resource attributes and OTLP headers.
pub(super) fn pair(text: &str) -> Result<(String, String), Want> {
    let decoded = text.split_once('=').and_then(|(key, value)| {
        let key = key.trim();
        (!key.is_empty()).then_some(())?;
        Some((percent_decoded(key)?, percent_decoded(value.trim())?))
    });
    decoded.ok_or_else(|| "pairs such as key=value, percent-encoded".into())
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// `name=host:port`: where requests for a name go.
pub(super) fn route(text: &str) -> Result<FixedRoute, Want> {
    let parsed = text.split_once('=').and_then(|(name, to)| {
        let (host, port) = match name.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (name, None),
        };
        (!host.is_empty()).then_some(())?;
        Some(FixedRoute { host: host.to_ascii_lowercase(), port, to: Authority::parse(to)? })
    });
    parsed.ok_or_else(|| "routes such as orders=127.0.0.1:9001 or orders:8080=127.0.0.1:9001".into())
}

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Authority {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Authority {
    /// `host:port`, IPv6 in brackets.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(bare) => bare.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
            None => host.to_owned(),
        };
        let label = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        (bare.is_some() || (!host.is_empty() && host.bytes().all(label))).then_some(Self { host, port })
    }

    /// The address, when the host is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where outbound requests for a name go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FixedRoute {
    /// The name, in lower case.
    pub host: String,
    /// Only requests for this port, when it is said.
    pub port: Option<u16>,
    /// Where they go.
    pub to: Authority,
}

/// An OTLP endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Whether it speaks TLS; `None` when the scheme was left out.
    pub tls: Option<bool>,
    /// Host and port; the port may be left out.
    pub host: String,
    /// The port, when it is said.
    pub port: Option<u16>,
    /// Path as written, beginning with `/`; empty for none.
    pub path: String,
}

pub(super) fn endpoint(text: &str) -> Result<Endpoint, Want> {
    let want = || Want::from("a URL such as http://collector:4318, or host:port");
    let (tls, rest) = if let Some(rest) = text.strip_prefix("http://") {
        (Some(false), rest)
    } else if let Some(rest) = text.strip_prefix("https://") {
        (Some(true), rest)
    } else if text.contains("://") {
        return Err(want());
    } else {
        (None, text)
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let with_port = Authority::parse(authority);
    let (host, port) = match &with_port {
        Some(authority) => (authority.host.clone(), Some(authority.port)),
        // The port is checked apart from the host, so that any will do for the check.
        None => (Authority::parse(&format!("{authority}:1")).ok_or_else(want)?.host, None),
    };
    if path.bytes().any(|byte| !byte.is_ascii_graphic() || b"?#".contains(&byte)) {
        return Err(want());
    }
    Ok(Endpoint { tls, host, port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_hosts_with_ports() {
        for good in ["127.0.0.1:80", "orders:8080", "[::1]:80", "a.b-c.svc:1"] {
            assert_eq!(Authority::parse(good).unwrap().to_string(), good);
        }
        for bad in
            ["", "orders", "orders:", "orders:0", "orders:99999", ":80", "a b:80", "::1:80", "http://a:80"]
        {
            assert_eq!(Authority::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn probes_name_a_port_of_the_application_and_nothing_else() {
        let grpc = |service: &str| Probe::Grpc { port: 9000, service: service.into() };
        let http = |tls, path: &str| Probe::Http { tls, port: 8080, path: path.into() };
        for (text, expected) in [
            ("tcp:5432", Probe::Tcp { port: 5432 }),
            ("grpc:9000", grpc("")),
            ("grpc:9000/", grpc("")),
            ("grpc:9000/shop.Orders", grpc("shop.Orders")),
            ("http:8080/", http(false, "/")),
            ("https:8080/healthz?full=1", http(true, "/healthz?full=1")),
        ] {
            assert_eq!(probe(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "tcp",
            "tcp:",
            "tcp:0",
            "tcp:70000",
            "tcp:80/x",
            "tcp:10.0.0.1:80",
            "http:80",
            "http://a/b",
            "http:80/a b",
            "http:80/a\r\nHost: x",
            "udp:53",
        ] {
            assert!(probe(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_may_leave_out_scheme_port_and_path() {
        for (text, tls, host, port, path) in [
            ("http://collector:4318", Some(false), "collector", Some(4318), ""),
            (
                "https://otlp.example.com/otlp/v1/traces/",
                Some(true),
                "otlp.example.com",
                None,
                "/otlp/v1/traces/",
            ),
            (
                "otel-collector.observability.svc:4317",
                None,
                "otel-collector.observability.svc",
                Some(4317),
                "",
            ),
            ("localhost", None, "localhost", None, ""),
            ("http://[::1]:4318/x", Some(false), "::1", Some(4318), "/x"),
        ] {
            let expected = Endpoint { tls, host: host.into(), port, path: path.into() };
            assert_eq!(endpoint(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "ftp://a", "http://", "http://a b", "http://a:x", "http://a/?b", "unix:///x"] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_are_percent_decoded() {
        assert_eq!(pair("a=b%20c%3D"), Ok(("a".into(), "b c=".into())));
        for bad in ["a", "=b", "a=%zz", "a=%2", "a=%ff"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }
}
