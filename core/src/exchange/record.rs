//! What is written down of a request while its head is at hand: attributes as OTLP bytes, the lists as they
//! came. Into buffers that are used again, so that a steady state allocates nothing.

use std::net::IpAddr;
use std::sync::Arc;

use super::remember::Remembered;
use super::{Config, RequestHead};
use crate::classify::Direction;
use crate::in_flight::Luggage;
use crate::limits::{RESTORED_BYTES_MAX, SPARE_BUFFER_BYTES_MAX};
use crate::metrics::Method;
use crate::names::attribute;
use crate::operation::Operation;
use crate::otlp::Attributes;
use crate::peer::Peer;
use crate::redact;

/// The memory of one exchange.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Encoded attributes of the span.
    pub(super) attributes: Vec<u8>,
    /// Encoded links of the span.
    pub(super) links: Vec<u8>,
    /// Route template; for gRPC the path.
    pub(super) route: Vec<u8>,
    /// `host:port` that an outbound request names.
    pub(super) host: Vec<u8>,
    /// `tracestate` in normal form, without our member.
    pub(super) tracestate: Vec<u8>,
    /// `baggage` in normal form.
    pub(super) baggage: Vec<u8>,
    /// The head of an exchange that may be kept.
    pub(super) remembered: Remembered,
    /// For whatever needs a moment's memory.
    pub(super) scratch: Vec<u8>,
    /// What the exchange in flight leaves behind, shared with the calls that belong to it.
    luggage: Arc<Luggage>,
}

impl Buffers {
    /// Empties them; false when they grew so large that they are better let go.
    pub(super) fn clear(&mut self) -> bool {
        let Self { attributes, links, route, host, tracestate, baggage, remembered, scratch, luggage } = self;
        let mut bytes = luggage.baggage.capacity() + luggage.tracestate.capacity() + remembered.capacity();
        remembered.clear();
        for buffer in [attributes, links, route, host, tracestate, baggage, scratch] {
            buffer.clear();
            bytes += buffer.capacity();
        }
        bytes <= SPARE_BUFFER_BYTES_MAX
    }
}

/// The attributes of a request's head (HTTP span conventions).
pub(super) fn request(
    config: &Config,
    head: &RequestHead<'_>,
    agent: Option<&[u8]>,
    operation: Option<&Operation>,
    buffers: &mut Buffers,
) {
    let mut attributes = Attributes::of_span(&mut buffers.attributes).within(config.attribute_bytes_max);
    let method = Method::of(head.method);
    attributes.text(attribute::HTTP_REQUEST_METHOD, method.as_str().as_bytes());
    if !method.is_known() {
        attributes.text(attribute::HTTP_REQUEST_METHOD_ORIGINAL, head.method.as_bytes());
    }
    let (host, port) = head.host_and_port();
    if !host.is_empty() {
        attributes.text(attribute::SERVER_ADDRESS, bare(host));
    }
    attributes.text(attribute::NETWORK_PROTOCOL_VERSION, head.version.as_str().as_bytes());
    if let Some(operation) = operation {
        attributes.text(attribute::OPERATION, operation.as_str().as_bytes());
    }
    match head.direction {
        Direction::Inbound => server(config, head, agent, port, buffers),
        Direction::Outbound => client(config, head, port, buffers),
    }
}

fn server(
    config: &Config,
    head: &RequestHead<'_>,
    agent: Option<&[u8]>,
    port: Option<u16>,
    buffers: &mut Buffers,
) {
    let mut attributes = Attributes::of_span(&mut buffers.attributes).within(config.attribute_bytes_max);
    if let Some(port) = port {
        attributes.int(attribute::SERVER_PORT, u64::from(port));
    }
    attributes.text(attribute::URL_PATH, head.path);
    attributes.text(attribute::URL_SCHEME, head.scheme.as_str().as_bytes());
    if let Some(query) = head.query.filter(|query| !query.is_empty() && config.query.recorded()) {
        buffers.scratch.clear();
        config.query.append(query, &mut buffers.scratch);
        attributes.text(attribute::URL_QUERY, &buffers.scratch);
    }
    if let Some(caller) = head.caller {
        let mut text = AddressText { bytes: [0; 48], len: 0 };
        attributes.text(attribute::CLIENT_ADDRESS, text.of(caller));
    }
    if let Some(agent) = agent {
        attributes.text(attribute::USER_AGENT_ORIGINAL, agent);
    }
}

fn client(config: &Config, head: &RequestHead<'_>, port: Option<u16>, buffers: &mut Buffers) {
    let mut attributes = Attributes::of_span(&mut buffers.attributes).within(config.attribute_bytes_max);
    let port = port.map_or(head.scheme.default_port(), u64::from);
    attributes.int(attribute::SERVER_PORT, port);
    let url = &mut buffers.scratch;
    url.clear();
    url.extend_from_slice(head.scheme.as_str().as_bytes());
    url.extend_from_slice(b"://");
    redact::append_authority(head.authority, url);
    url.extend_from_slice(head.path);
    if let Some(query) = head.query.filter(|query| !query.is_empty() && config.query.recorded()) {
        url.push(b'?');
        config.query.append(query, url);
    }
    attributes.text(attribute::URL_FULL, url);
}

/// The caller, by its own word.
pub(super) fn peer(peer: Option<&Peer>, out: &mut Vec<u8>) {
    let Some(peer) = peer else { return };
    let mut attributes = Attributes::of_span(out);
    attributes.text(attribute::PEER_SERVICE, peer.service.as_bytes());
    if !peer.namespace.is_empty() {
        attributes.text(attribute::PEER_NAMESPACE, peer.namespace.as_bytes());
    }
}

/// The lists that an outbound call may need again; none where there are none.
pub(super) fn luggage(buffers: &mut Buffers) -> Option<Arc<Luggage>> {
    let Buffers { baggage, tracestate, luggage, .. } = buffers;
    if baggage.is_empty() && tracestate.is_empty() {
        return None;
    }
    if Arc::get_mut(luggage).is_none() {
        *luggage = Arc::default(); // a call still reads the last exchange's
    }
    let Luggage { baggage: kept_baggage, tracestate: kept_tracestate } = Arc::get_mut(luggage)?;
    for (kept, list) in [(kept_baggage, baggage), (kept_tracestate, tracestate)] {
        kept.clear();
        if list.len() <= RESTORED_BYTES_MAX {
            kept.extend_from_slice(list);
        }
    }
    Some(Arc::clone(luggage))
}

/// `host:port` that a request names, the port as its scheme has it where none is written.
pub(super) fn address(head: &RequestHead<'_>, out: &mut Vec<u8>) {
    let (host, port) = head.host_and_port();
    if host.is_empty() {
        return;
    }
    out.extend_from_slice(bare(host));
    out.push(b':');
    let port = port.map_or(head.scheme.default_port(), u64::from);
    let (mut digits, mut rest) = ([0; 5], port);
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        (*digit, rest, first) = (b'0' + (rest % 10) as u8, rest / 10, at);
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

/// An IPv6 host without its brackets.
pub(super) fn bare(host: &[u8]) -> &[u8] {
    host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host)
}

/// An address as text, in place.
struct AddressText {
    bytes: [u8; 48],
    len: usize,
}

impl AddressText {
    fn of(&mut self, address: IpAddr) -> &[u8] {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                for (at, part) in address.octets().into_iter().enumerate() {
                    if at > 0 {
                        self.push(b'.');
                    }
                    if part >= 100 {
                        self.push(b'0' + part / 100);
                    }
                    if part >= 10 {
                        self.push(b'0' + part / 10 % 10);
                    }
                    self.push(b'0' + part % 10);
                }
            }
            IpAddr::V6(address) => {
                let _ = std::fmt::Write::write_fmt(self, format_args!("{address}"));
            }
        }
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }
}

impl std::fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in ["0.0.0.0", "10.1.20.255", "100.109.9.99", "::1", "2001:db8::17", "::ffff:0:0:1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(AddressText { bytes: [0; 48], len: 0 }.of(address), text.as_bytes());
        }
        let mapped = "::ffff:10.0.0.5".parse().unwrap();
        assert_eq!(AddressText { bytes: [0; 48], len: 0 }.of(mapped), b"10.0.0.5");
    }
}
