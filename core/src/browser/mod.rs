//! What a browser is believed at an edge (rule 10): that a request of a page of the same origin is part of an
//! operation whose trace began with a gesture, and what the page tells of that gesture afterwards. The browser
//! chooses ids of a trace that is its own and nothing else: not the name of the service, not what is sampled, not
//! the name of a span. Everything is bounded and counted by reason. Only the sidecar calls this; it opens nothing
//! and reads no clock.

mod cookie;
mod spans;
mod traces;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cookie::{Ticket, cut};
pub use traces::Chosen;

use crate::batch::SpanSink;
use crate::carrier::Carrier;
use crate::exchange::{Exchange, Now};
use crate::ids::{Ids, SpanId, TraceId};
use crate::limits;
use crate::names::header;
use crate::operation::Operation;
use crate::propagation::traceparent;
use spans::Reader;
use traces::{Claim, Traces};

/// Where the script is.
pub const SCRIPT_PATH: &str = "/_throughline/ops.js";
/// Where spans are sent to.
pub const SPANS_PATH: &str = "/_throughline/v1/traces";

/// What bounds browsers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Traces begun by browsers, and bodies with spans of theirs, a second from one address.
    pub address_per_second: u64,
    /// The same from all.
    pub per_second: u64,
    /// Bytes of an attribute's text.
    pub attribute_bytes_max: Option<usize>,
}

/// A request of a page that goes on with the page's trace.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The trace, by the page's word.
    pub trace_id: TraceId,
    /// Its parent there.
    pub span_id: SpanId,
    /// What the trace is decided by: the page chose the trace's own id, and could choose one that is always sampled.
    pub drawn: TraceId,
    /// Whether an exchange of the trace is recorded already: then this one follows.
    pub chosen: bool,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $label:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$of])* $variant),* }
        impl $name {
            /// Every one, in the order of its counter.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The label of the metric.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }
        }
    };
}

reasons! {
    /// What became of a trace that a page of the same origin asked to go on with.
    Asked {
        /// It goes on.
        Continued = "continued",
        /// It is another address's: a trace of our own begins, with a link.
        ForeignTrace = "foreign_trace",
        /// So many began that this one is a stranger's: a trace of our own begins, with a link.
        Rate = "rate",
    }
}

reasons! {
    /// What became of a body with spans.
    Body {
        /// Read; its spans are counted apart.
        Read = "read",
        /// Not from a page of the same origin.
        Foreign = "foreign",
        /// Not declared as `application/json`, or compressed.
        Type = "type",
        /// Longer than [`limits::BROWSER_BODY_BYTES_MAX`].
        TooLarge = "too_large",
        /// Too many came, or too many are being read.
        Rate = "rate",
        /// It broke off, or took too long.
        Broken = "broken",
        /// No JSON, or not the shape of OTLP.
        NoOtlp = "no_otlp",
        /// Tracing is off.
        Off = "off",
    }
}

reasons! {
    /// What became of a span of a browser.
    Told {
        /// It goes to the collector.
        Taken = "taken",
        /// Its trace is not sampled.
        Unsampled = "unsampled",
        /// No request of this trace came, or so long ago that it is forgotten.
        UnknownTrace = "unknown_trace",
        /// Its trace is another address's.
        ForeignTrace = "foreign_trace",
        /// The operation was told of before.
        Repeated = "repeated",
        /// No valid ids, kind or place below the operation; or not the name that its requests had.
        Shape = "shape",
        /// It ends before it begins, lies in the future or too far back, or took too long.
        Time = "time",
        /// One too many for a body.
        OverLimit = "over_limit",
    }
}

/// Counters of what browsers sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// By [`Asked::ALL`].
    pub asked: [u64; Asked::ALL.len()],
    /// By [`Body::ALL`].
    pub bodies: [u64; Body::ALL.len()],
    /// By [`Told::ALL`].
    pub told: [u64; Told::ALL.len()],
    /// Attributes that are on no list or have no value of their kind.
    pub attributes_dropped: u64,
    /// Traces that are remembered.
    pub traces_held: u64,
}

impl Counters {
    fn asked(&mut self, asked: Asked) {
        add(&mut self.asked, asked as usize, 1);
    }

    fn told(&mut self, told: Told, spans: u64) {
        add(&mut self.told, told as usize, spans);
    }
}

fn add(counters: &mut [u64], at: usize, count: u64) {
    if let Some(counter) = counters.get_mut(at) {
        *counter += count;
    }
}

/// A body of spans, as its sender had it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// The bytes.
    pub body: &'a [u8],
    /// The sender's address.
    pub address: IpAddr,
    /// The sender's `User-Agent`.
    pub agent: Option<&'a [u8]>,
    /// When it was there.
    pub now: Now,
}

/// What was taken of a body.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Taken {
    /// Spans that go to the collector.
    pub taken: u64,
    /// Spans that do not.
    pub rejected: u64,
}

/// What is remembered of all browsers.
#[derive(Debug)]
pub struct Pages {
    shared: Mutex<Shared>,
    attribute_bytes_max: Option<usize>,
}

#[derive(Debug)]
struct Shared {
    traces: Traces,
    counters: Counters,
}

impl Pages {
    /// Nobody is known. `seed` is the host's random number: it keeps callers from choosing keys that collide.
    #[must_use]
    pub fn new(config: &Config, seed: u64) -> Self {
        let shared = Shared { traces: Traces::new(config, seed), counters: Counters::default() };
        Self { shared: Mutex::new(shared), attribute_bytes_max: config.attribute_bytes_max }
    }

    /// A request begins: whether it is one of a page of the same origin that goes on with a trace of its own. A
    /// navigation has no headers of the page's: its cookie (`ticket`) becomes the headers that it would have had.
    pub fn arrive(
        &self,
        carrier: &mut impl Carrier,
        ticket: Option<Ticket>,
        address: IpAddr,
        now: Now,
        ids: &mut impl Ids,
    ) -> Option<Page> {
        let seen = Seen::of(carrier);
        if !seen.same_origin() {
            return None;
        }
        if let Some(ticket) = ticket.filter(|_| seen.navigates && seen.traceparents == 0) {
            carrier.set(traceparent::HEADER, &ticket.traceparent());
            carrier.set(header::OPERATION, ticket.operation.as_str().as_bytes());
        } else if seen.traceparents != 1 {
            return None; // several are none (W3C Trace Context §3.2)
        }
        let parent = traceparent::parse(carrier.get(traceparent::HEADER)?).ok()?;
        let mut shared = self.lock();
        let Shared { traces, counters } = &mut *shared;
        let claim = traces.claim(parent.trace_id, parent.span_id, address, now, || ids.trace_id());
        let (asked, page) = match claim {
            Claim::Holds { drawn, chosen } => {
                let page = Page { trace_id: parent.trace_id, span_id: parent.span_id, drawn, chosen };
                (Asked::Continued, Some(page))
            }
            Claim::Foreign => (Asked::ForeignTrace, None),
            Claim::Rate => (Asked::Rate, None),
        };
        counters.asked(asked);
        page
    }

    /// The exchange of a page's request was decided: its operation is the one that is believed, and its decision
    /// the one that the page's own spans follow.
    pub fn decided(&self, page: &Page, exchange: &Exchange) {
        let Some(decided) = exchange.decided() else { return };
        let chosen = decided.recorded.then_some(Chosen::Sampled(decided.by));
        self.lock().traces.note(page.trace_id, decided.operation, chosen);
    }

    /// An exchange of the trace was kept at its end although its head said no.
    pub fn kept(&self, trace_id: TraceId) {
        self.lock().traces.note(trace_id, None, Some(Chosen::Kept));
    }

    /// Whether a body may be sent at all, before a byte of it is read.
    ///
    /// # Errors
    /// Why not.
    pub fn may_send(
        &self,
        carrier: &impl Carrier,
        length: Option<u64>,
        authority: &[u8],
        address: IpAddr,
        now: Now,
    ) -> Result<(), Body> {
        let seen = Seen::of(carrier);
        let judged = if !seen.is_of_own_page(authority) {
            Err(Body::Foreign)
        } else if !seen.is_json() {
            Err(Body::Type)
        } else if length.is_some_and(|length| length > limits::BROWSER_BODY_BYTES_MAX as u64) {
            Err(Body::TooLarge)
        } else if !self.lock().traces.may_send(address, now) {
            Err(Body::Rate)
        } else {
            Ok(())
        };
        judged.inspect_err(|body| self.count(*body))
    }

    /// Counts a body that the host has judged.
    pub fn count(&self, body: Body) {
        add(&mut self.lock().counters.bodies, body as usize, 1);
    }

    /// Takes the spans of a body: each is checked, written anew, and handed out.
    ///
    /// # Errors
    /// [`Body::NoOtlp`]: nothing was taken.
    pub fn take(&self, sent: &Sent<'_>, sink: &mut impl SpanSink) -> Result<Taken, Body> {
        let mut reader = Reader::default();
        if reader.read(sent.body).is_none() {
            self.count(Body::NoOtlp);
            return Err(Body::NoOtlp);
        }
        // Found under the lock, handed out behind it.
        let (operations, taken) = {
            let mut shared = self.lock();
            let Shared { traces, counters } = &mut *shared;
            add(&mut counters.bodies, Body::Read as usize, 1);
            counters.attributes_dropped += reader.attributes_dropped;
            let (operations, judged) = spans::judge(&mut reader, traces, sent);
            for (told, spans) in Told::ALL.iter().zip(judged) {
                counters.told(*told, spans);
            }
            let all: u64 = judged.iter().sum();
            let taken = judged.first().copied().unwrap_or(0);
            (operations, Taken { taken, rejected: all - taken })
        };
        for operation in &operations {
            operation.hand_out(sent, self.attribute_bytes_max, sink);
        }
        Ok(taken)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let shared = self.lock();
        Counters { traces_held: shared.traces.len() as u64, ..shared.counters }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an exchange of a page was decided to be.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// Whether it becomes a span whatever happens.
    pub recorded: bool,
    /// Why.
    pub by: &'static str,
    /// The operation, if it is believed.
    pub operation: Option<Operation>,
}

/// What browsers say of a request by fields that no page can write (Fetch Metadata, `Origin`).
#[derive(Default)]
struct Seen<'a> {
    site: Option<&'a [u8]>,
    several_sites: bool,
    origin: Option<&'a [u8]>,
    navigates: bool,
    traceparents: usize,
    content_type: Option<&'a [u8]>,
    encoded: bool,
}

impl<'a> Seen<'a> {
    fn of(carrier: &'a impl Carrier) -> Self {
        let mut seen = Self::default();
        carrier.for_each(&mut |name, value| match name {
            "sec-fetch-site" => seen.several_sites |= seen.site.replace(value).is_some(),
            "sec-fetch-mode" => seen.navigates = value == b"navigate",
            "origin" => seen.origin = Some(value),
            "content-type" => seen.content_type = Some(value),
            "content-encoding" => seen.encoded = true,
            traceparent::HEADER => seen.traceparents += 1,
            _ => {}
        });
        seen
    }

    fn same_origin(&self) -> bool {
        !self.several_sites && self.site == Some(b"same-origin")
    }

    /// Where a browser sends no Fetch Metadata, as to hosts without TLS, its `Origin` says whose page it was.
    fn is_of_own_page(&self, authority: &[u8]) -> bool {
        match (self.site, self.origin) {
            (Some(_), _) => self.same_origin(),
            (None, Some(origin)) => {
                let host = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://"));
                host.is_some_and(|host| !host.is_empty() && host.eq_ignore_ascii_case(authority))
            }
            (None, None) => false,
        }
    }

    fn is_json(&self) -> bool {
        let kind = self.content_type.unwrap_or_default().split(|byte| *byte == b';').next();
        !self.encoded && kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"application/json"))
    }
}
