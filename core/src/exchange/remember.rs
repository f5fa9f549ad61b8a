//! What only the head knows of an exchange that is not sampled but may be kept: its bytes, copied into one buffer
//! that is used again. They become attributes only when the exchange is kept.

use std::net::IpAddr;

use super::extract::Seen;
use super::{Config, Destination, RequestHead, Scheme, Version};
use crate::classify::Direction;
use crate::limits::ATTRIBUTE_VALUE_BYTES_MAX;

/// The head of a request, remembered.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    bytes: Vec<u8>,
    head: Option<Head>,
}

/// Where each part ends in the bytes, and what is no bytes.
#[derive(Clone, Copy, Debug)]
struct Head {
    direction: Direction,
    scheme: Scheme,
    version: Version,
    caller: Option<IpAddr>,
    method_ends: usize,
    authority_ends: usize,
    path_ends: usize,
    query_ends: Option<usize>,
    /// Whether a user agent stands last.
    agent: bool,
}

impl Remembered {
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.head = None;
    }

    pub(super) fn is_there(&self) -> bool {
        self.head.is_some()
    }

    /// Copies what the attributes will be made of.
    pub(super) fn fill(&mut self, config: &Config, head: &RequestHead<'_>, seen: &Seen<'_>) {
        self.bytes.clear();
        let method_ends = self.push(head.method.as_bytes());
        let authority_ends = self.push(head.authority);
        let path_ends = self.push(head.path);
        let query_ends = head.query.filter(|_| config.query.recorded()).map(|query| self.push(query));
        let agent = seen.user_agent.filter(|_| head.direction == Direction::Inbound);
        if let Some(agent) = agent {
            self.push(agent);
        }
        self.head = Some(Head {
            direction: head.direction,
            scheme: head.scheme,
            version: head.version,
            caller: head.caller,
            method_ends,
            authority_ends,
            path_ends,
            query_ends,
            agent: agent.is_some(),
        });
    }

    /// More than a value's limit would be cut when it is written down.
    fn push(&mut self, part: &[u8]) -> usize {
        self.bytes.extend_from_slice(part.get(..ATTRIBUTE_VALUE_BYTES_MAX).unwrap_or(part));
        self.bytes.len()
    }

    /// The head and the user agent, as they were.
    pub(super) fn head(&self) -> Option<(RequestHead<'_>, Option<&[u8]>)> {
        let head = self.head?;
        let part = |from: usize, to: usize| self.bytes.get(from..to).unwrap_or_default();
        let rest = head.query_ends.unwrap_or(head.path_ends);
        let request = RequestHead {
            direction: head.direction,
            method: std::str::from_utf8(part(0, head.method_ends)).unwrap_or_default(),
            scheme: head.scheme,
            authority: part(head.method_ends, head.authority_ends),
            path: part(head.authority_ends, head.path_ends),
            query: head.query_ends.map(|ends| part(head.path_ends, ends)),
            version: head.version,
            caller: head.caller,
            destination: Destination::Named,
        };
        Some((request, head.agent.then(|| part(rest, self.bytes.len()))))
    }
}
