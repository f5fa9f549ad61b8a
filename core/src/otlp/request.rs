//! The envelope of an export: resource and scope around encoded spans or metrics
//! (`ExportTraceServiceRequest`, `ExportMetricsServiceRequest`: same shape, same numbers).

use super::Attributes;
use super::wire::{delimited, delimited_len, head};
use crate::names;

/// The parts of an envelope that never change, encoded once.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// `ResourceSpans.resource` as a field.
    resource: Vec<u8>,
    /// `ScopeSpans.scope` as a field.
    scope: Vec<u8>,
}

const RESOURCE_SPANS: u8 = 1;
const RESOURCE: u8 = 1;
const SCOPE_SPANS: u8 = 2;
const SCOPE: u8 = 1;

impl Envelope {
    /// An envelope for a resource of these attributes.
    #[must_use]
    pub fn new<'a>(resource: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut attributes = Vec::new();
        for (key, value) in resource {
            Attributes::of_resource(&mut attributes).text(key, value.as_bytes());
        }
        let mut scope = Vec::new();
        delimited(&mut scope, 1, names::SCOPE.as_bytes());
        delimited(&mut scope, 2, names::VERSION.as_bytes());
        let mut envelope = Self { resource: Vec::new(), scope: Vec::new() };
        delimited(&mut envelope.resource, RESOURCE, &attributes);
        delimited(&mut envelope.scope, SCOPE, &scope);
        envelope
    }

    /// Bytes that come before `items` bytes of encoded spans or metrics.
    #[must_use]
    pub fn prefix(&self, items: usize) -> Vec<u8> {
        let scope_spans = self.scope.len() + items;
        let resource_spans = self.resource.len() + delimited_len(scope_spans);
        let mut out = Vec::with_capacity(self.resource.len() + self.scope.len() + 16);
        head(&mut out, RESOURCE_SPANS, resource_spans);
        out.extend_from_slice(&self.resource);
        head(&mut out, SCOPE_SPANS, scope_spans);
        out.extend_from_slice(&self.scope);
        out
    }
}
