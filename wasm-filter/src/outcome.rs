//! What Envoy's response flags mean for an exchange. Pure: flags, details and status in, an outcome out.

use throughline_core::classify::{Failure, Outcome};

/// Envoy's flags (`envoy/stream_info/stream_info.h`, the bits of `%RESPONSE_FLAGS%` as a number).
mod flag {
    pub(super) const NO_HEALTHY_UPSTREAM: i64 = 0x2;
    pub(super) const UPSTREAM_REQUEST_TIMEOUT: i64 = 0x4;
    pub(super) const LOCAL_RESET: i64 = 0x8;
    pub(super) const UPSTREAM_REMOTE_RESET: i64 = 0x10;
    pub(super) const UPSTREAM_CONNECTION_FAILURE: i64 = 0x20;
    pub(super) const UPSTREAM_CONNECTION_TERMINATION: i64 = 0x40;
    pub(super) const UPSTREAM_OVERFLOW: i64 = 0x80;
    pub(super) const NO_ROUTE: i64 = 0x100;
    pub(super) const DOWNSTREAM_CONNECTION_TERMINATION: i64 = 0x4000;
    pub(super) const UPSTREAM_RETRY_LIMIT: i64 = 0x8000;
    pub(super) const STREAM_IDLE_TIMEOUT: i64 = 0x1_0000;
    pub(super) const DOWNSTREAM_PROTOCOL_ERROR: i64 = 0x4_0000;
    pub(super) const UPSTREAM_MAX_STREAM_DURATION: i64 = 0x8_0000;
    pub(super) const DURATION_TIMEOUT: i64 = 0x40_0000;
    pub(super) const UPSTREAM_PROTOCOL_ERROR: i64 = 0x80_0000;
    pub(super) const NO_CLUSTER: i64 = 0x100_0000;
    pub(super) const OVERLOAD_MANAGER: i64 = 0x200_0000;
    pub(super) const DNS_FAILURE: i64 = 0x400_0000;
    pub(super) const DROP_OVERLOAD: i64 = 0x800_0000;
    pub(super) const DOWNSTREAM_REMOTE_RESET: i64 = 0x1000_0000;
}

/// Why the upstream gave no whole answer, by what Envoy says; none where it does not blame the upstream.
pub(crate) fn failure(flags: i64, details: impl FnOnce() -> String) -> Option<Failure> {
    use flag::*;
    let any = |bits: i64| flags & bits != 0;
    let failure = if any(DNS_FAILURE) {
        Failure::Dns
    } else if any(UPSTREAM_OVERFLOW | OVERLOAD_MANAGER | DROP_OVERLOAD) {
        Failure::Overload
    } else if any(UPSTREAM_REQUEST_TIMEOUT
        | UPSTREAM_MAX_STREAM_DURATION
        | DURATION_TIMEOUT
        | STREAM_IDLE_TIMEOUT)
    {
        Failure::Timeout
    } else if any(UPSTREAM_CONNECTION_FAILURE | NO_HEALTHY_UPSTREAM) {
        connecting(&details())
    } else if any(UPSTREAM_PROTOCOL_ERROR) {
        Failure::Protocol
    } else if any(UPSTREAM_REMOTE_RESET
        | UPSTREAM_CONNECTION_TERMINATION
        | UPSTREAM_RETRY_LIMIT
        | LOCAL_RESET)
    {
        if details().contains("protocol_error") { Failure::Protocol } else { Failure::ConnectionReset }
    } else if any(NO_ROUTE | NO_CLUSTER) {
        Failure::Refused
    } else {
        return None;
    };
    Some(failure)
}

/// Whether a connection to the upstream was at hand, for all that these flags say.
pub(crate) fn connected(flags: i64) -> bool {
    use flag::*;
    flags & (UPSTREAM_CONNECTION_FAILURE | NO_HEALTHY_UPSTREAM | DNS_FAILURE | NO_ROUTE | NO_CLUSTER) == 0
}

/// Envoy has one flag for every way in which connecting fails; its details have the kernel's words.
fn connecting(details: &str) -> Failure {
    let says = |words: &[&str]| words.iter().any(|word| details.contains(word));
    if says(&["timeout", "timed_out"]) {
        Failure::Timeout
    } else if says(&["unreachable", "No_route"]) {
        Failure::Unreachable
    } else if says(&["TLS", "SSL"]) {
        Failure::Tls
    } else if says(&["termination", "reset_by_peer"]) {
        Failure::ConnectionReset
    } else {
        Failure::ConnectionRefused
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Envoy's flags.
    pub(crate) flags: i64,
    /// Why the upstream failed, if it did.
    pub(crate) failure: Option<Failure>,
    /// The status of an answer that Envoy gave in the upstream's place.
    pub(crate) answered: Option<u16>,
    /// Whether the answer came to its end.
    pub(crate) whole: bool,
}

/// What that was for the exchange.
pub(crate) fn outcome(ending: Ending) -> Outcome {
    let Ending { flags, failure, answered, whole } = ending;
    let gone = flags
        & (flag::DOWNSTREAM_CONNECTION_TERMINATION
            | flag::DOWNSTREAM_REMOTE_RESET
            | flag::DOWNSTREAM_PROTOCOL_ERROR)
        != 0;
    match (answered, failure) {
        (Some(_), Some(failure)) => Outcome::Failed { failure, answered },
        (Some(_), None) => Outcome::Complete,
        // A caller that went away is why Envoy reset the upstream, not the other way round.
        (None, _) if gone && !whole => Outcome::CallerGone,
        (None, Some(failure)) if !whole => Outcome::Failed { failure, answered: None },
        (None, _) if whole => Outcome::Complete,
        (None, _) => Outcome::CallerGone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(flags: i64, details: &str, answered: Option<u16>, whole: bool) -> Outcome {
        let failure = failure(flags, || details.to_owned());
        outcome(Ending { flags, failure, answered, whole })
    }

    #[test]
    fn flags_are_read_as_envoy_means_them() {
        let failed = |failure, answered| Outcome::Failed { failure, answered };
        let refused = "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
        let slow = "upstream_reset_before_response_started{connection_timeout}";
        for (flags, details, answered, whole, expected) in [
            (0, "via_upstream", None, true, Outcome::Complete),
            (0, "", None, false, Outcome::CallerGone),
            (0x20, refused, Some(503), true, failed(Failure::ConnectionRefused, Some(503))),
            (0x20, slow, Some(503), true, failed(Failure::Timeout, Some(503))),
            (0x4, "response_timeout", Some(504), true, failed(Failure::Timeout, Some(504))),
            (
                0x40,
                "upstream_reset_after_response_started",
                None,
                false,
                failed(Failure::ConnectionReset, None),
            ),
            (0x4000, "downstream_remote_disconnect", None, false, Outcome::CallerGone),
            (0x4000 | 0x40, "", None, false, Outcome::CallerGone),
            (0x100, "route_not_found", Some(404), true, failed(Failure::Refused, Some(404))),
            (0x1000, "ext_authz_denied", Some(403), true, Outcome::Complete),
            (0x400_0000, "dns_resolution_failure", Some(503), true, failed(Failure::Dns, Some(503))),
        ] {
            assert_eq!(ended(flags, details, answered, whole), expected, "{flags:x} {details}");
        }
    }

    #[test]
    fn a_connection_that_failed_was_never_at_hand() {
        for (flags, expected) in [(0, true), (0x4, true), (0x40, true), (0x20, false), (0x400_0000, false)] {
            assert_eq!(connected(flags), expected, "{flags:x}");
        }
    }
}
