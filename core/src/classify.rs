//! What an outcome means: which status a span gets and which `error.type`. Sources: the HTTP and gRPC span
//! conventions of OpenTelemetry.

use crate::carrier::Carrier;
use crate::names::header;
use crate::otlp::Status;

/// Which side of an exchange we stand on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// A request to the application: a server span.
    Inbound,
    /// A request by the application: a client span.
    Outbound,
}

/// Why an upstream gave no whole answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Failure {
    /// Nobody listens there.
    ConnectionRefused,
    /// Connecting, or waiting for the answer, took longer than allowed.
    Timeout,
    /// The name has no address.
    Dns,
    /// The network has no way there.
    Unreachable,
    /// The connection broke, or closed before the answer was whole.
    ConnectionReset,
    /// The upstream and the sidecar did not agree on TLS.
    Tls,
    /// What came was no HTTP, or not the HTTP that was spoken.
    Protocol,
    /// The request asked for the sidecar itself, or for what it may not reach.
    Refused,
    /// The sidecar was full.
    Overload,
}

impl Failure {
    /// The value of `error.type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "connection_refused",
            Self::Timeout => "timeout",
            Self::Dns => "dns_failure",
            Self::Unreachable => "unreachable",
            Self::ConnectionReset => "connection_reset",
            Self::Tls => "tls_error",
            Self::Protocol => "protocol_error",
            Self::Refused => "destination_refused",
            Self::Overload => "overload",
        }
    }

    /// The status of the answer that the sidecar gives in the upstream's place (RFC 9110 §15.6).
    #[must_use]
    pub fn answer(self) -> u16 {
        match self {
            Self::Timeout => 504,
            Self::Refused => 403,
            Self::Overload => 503,
            Self::ConnectionRefused
            | Self::Dns
            | Self::Unreachable
            | Self::ConnectionReset
            | Self::Tls
            | Self::Protocol => 502,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Failure {}

/// How an exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The last byte or the trailers went to the caller.
    Complete,
    /// The caller hung up or reset the stream. Not an error.
    CallerGone,
    /// The sidecar stopped before it was over.
    Drained,
    /// The upstream failed; `answered` is what the sidecar said in its place when nothing had been sent yet.
    Failed {
        /// Why.
        failure: Failure,
        /// Status of the sidecar's own answer, none when the upstream's had begun and was broken off.
        answered: Option<u16>,
    },
}

/// A gRPC status code (`google.rpc.Code`); what is no known code is UNKNOWN, as gRPC's own clients read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrpcStatus(u8);

const GRPC_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl GrpcStatus {
    /// The status that a head or trailers carry.
    #[must_use]
    pub fn of(carrier: &impl Carrier) -> Option<Self> {
        carrier.get(header::GRPC_STATUS).map(Self::parse)
    }

    /// The header's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let code = std::str::from_utf8(value.trim_ascii()).ok().and_then(|text| text.parse::<u8>().ok());
        Self(code.filter(|code| usize::from(*code) < GRPC_NAMES.len()).unwrap_or(2))
    }

    /// The value of `rpc.status_code`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        GRPC_NAMES.get(usize::from(self.0)).copied().unwrap_or("UNKNOWN")
    }

    /// A client's span fails on every code but OK; a server's only on those that are the server's fault.
    fn is_error(self, direction: Direction) -> bool {
        match direction {
            Direction::Outbound => self.0 != 0,
            Direction::Inbound => matches!(
                self.as_str(),
                "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
            ),
        }
    }
}

/// Whether a content type is gRPC's (`application/grpc`, `application/grpc+proto`, …).
#[must_use]
pub fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    match content_type.split_at_checked(GRPC.len()) {
        Some((kind, rest)) => {
            kind.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        }
        None => false,
    }
}

/// The verdict on an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Status of the span.
    pub status: Status,
    /// `error.type`, absent on success.
    pub error: Option<ErrorType>,
}

/// The value of `error.type`: a name, or a status code in digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorType {
    /// A name of low cardinality.
    Name(&'static str),
    /// An HTTP status code.
    Code(u16),
}

/// Judges an exchange by its outcome, the HTTP status that the upstream answered, and gRPC's own status.
#[must_use]
pub fn verdict(
    direction: Direction,
    outcome: Outcome,
    http_status: Option<u16>,
    grpc: Option<GrpcStatus>,
) -> Verdict {
    let failed = |error| Verdict { status: Status::Error, error: Some(error) };
    if let Outcome::Failed { failure, .. } = outcome {
        return failed(ErrorType::Name(failure.as_str()));
    }
    if let Some(grpc) = grpc
        && grpc.is_error(direction)
    {
        return failed(ErrorType::Name(grpc.as_str()));
    }
    match (http_status, direction) {
        (Some(code @ 500..), _) | (Some(code @ 400..=499), Direction::Outbound) => {
            failed(ErrorType::Code(code))
        }
        (Some(_) | None, Direction::Inbound | Direction::Outbound) => {
            Verdict { status: Status::Unset, error: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Inbound, Outbound};

    fn judged(direction: Direction, code: u16, grpc: Option<&str>) -> Option<String> {
        let grpc = grpc.map(|value| GrpcStatus::parse(value.as_bytes()));
        let verdict = verdict(direction, Outcome::Complete, Some(code), grpc);
        assert_eq!(verdict.status == Status::Error, verdict.error.is_some());
        verdict.error.map(|error| match error {
            ErrorType::Name(name) => name.to_owned(),
            ErrorType::Code(code) => code.to_string(),
        })
    }

    #[test]
    fn http_codes_are_judged_by_side() {
        for (code, server, client) in [
            (101, None, None),
            (200, None, None),
            (304, None, None),
            (404, None, Some("404")),
            (429, None, Some("429")),
            (500, Some("500"), Some("500")),
            (503, Some("503"), Some("503")),
            (999, Some("999"), Some("999")),
        ] {
            assert_eq!(judged(Inbound, code, None).as_deref(), server, "{code}");
            assert_eq!(judged(Outbound, code, None).as_deref(), client, "{code}");
        }
    }

    #[test]
    fn grpc_codes_are_judged_by_side() {
        for (value, server, client) in [
            ("0", None, None),
            ("1", None, Some("CANCELLED")),
            ("5", None, Some("NOT_FOUND")),
            ("2", Some("UNKNOWN"), Some("UNKNOWN")),
            ("14", Some("UNAVAILABLE"), Some("UNAVAILABLE")),
            ("4", Some("DEADLINE_EXCEEDED"), Some("DEADLINE_EXCEEDED")),
            ("16", None, Some("UNAUTHENTICATED")),
            ("99", Some("UNKNOWN"), Some("UNKNOWN")),
            ("x", Some("UNKNOWN"), Some("UNKNOWN")),
        ] {
            assert_eq!(judged(Inbound, 200, Some(value)).as_deref(), server, "{value}");
            assert_eq!(judged(Outbound, 200, Some(value)).as_deref(), client, "{value}");
        }
    }

    #[test]
    fn a_callers_cancel_is_no_error_and_a_broken_upstream_is() {
        let none = verdict(Inbound, Outcome::CallerGone, Some(200), None);
        assert_eq!(none, Verdict { status: Status::Unset, error: None });
        let broken = Outcome::Failed { failure: Failure::ConnectionReset, answered: None };
        assert_eq!(
            verdict(Outbound, broken, Some(200), None).error,
            Some(ErrorType::Name("connection_reset"))
        );
    }

    #[test]
    fn content_types_of_grpc_are_known() {
        for (text, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; x=1", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(text.as_bytes()), expected, "{text}");
        }
    }
}
