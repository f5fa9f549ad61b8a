//! What all exchanges of a process share: the settings that decide, the exchanges in flight, the routes, the
//! numbers. One short lock at the beginning and one at the end of an exchange; no lock is held while a host
//! does anything.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::edge::{self, Edge, Trust};
use super::extract::{Context, Invalids, Propagators, Reading, Seen};
use super::inject::{Formats, PeerHeader, Plan, State};
use super::messages::{EventContext, MessageNames, Messaging};
use super::phases::Phases;
use super::propagated::Propagation;
use super::record::{self, Buffers};
use super::steer::Steer;
use super::{
    Destination, Doubt, Exchange, Keeping, Now, RequestHead, ResponseHeaders, Summary, Trace, Tracing,
};
use crate::adaptive::{Adaptive, Watch};
use crate::batch::{Books, Dropped, SpanSink};
use crate::browser::Page;
use crate::bucket::Bucket;
use crate::carrier::Carrier;
use crate::classify::{Direction, Outcome, is_grpc};
use crate::control::{Control, Enabled, Value};
use crate::ids::{Flags, Ids, SpanId, TraceId};
use crate::in_flight::{InFlight, Inbound, Place};
use crate::intern::Interner;
use crate::keep::{Keep, KeepReason, Learned, Slow};
use crate::limits;
use crate::mesh::Mesh;
use crate::metrics::{Aggregation, Counted, Deed, Labels, Method, Numbers, Requests, Tally};
use crate::mode::Mode;
use crate::names::{OTHER, TRACESTATE_KEY, attribute};
use crate::operation::Operation;
use crate::otlp::metrics::Metrics;
use crate::otlp::{Attributes, Kind, Parent, Span, link};
use crate::peer::Peer;
use crate::prometheus::Exemplar;
use crate::propagation::{baggage, tracestate};
use crate::redact::Query;
use crate::route::{Pattern, Routes, template};
use crate::sampling::{Decision, Ratio, Reason, Sampler, erase_probability};
use crate::settings::Mistake;

/// What the application gets when we start a trace and decide not to sample it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RootUnsampled {
    /// The context with the sampled flag off.
    Flag,
    /// Nothing, so that the application's own SDK decides.
    Silent,
}

/// The settings that decide.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether anything may ever be traced. If not, the mode is `off` and stays so. Metrics are counted either
    /// way.
    pub enabled: bool,
    /// What is traced, until the mode is changed.
    pub mode: Mode,
    /// Whether sampled exchanges become spans (there is an exporter).
    pub recording: bool,
    /// The name of the service, which rules may be about.
    pub service: String,
    /// The sampler.
    pub sampler: Sampler,
    /// What is kept although the head said no.
    pub keep: Keep,
    /// Whom inbound requests come from.
    pub trust: Trust,
    /// When more is sampled by itself.
    pub adaptive: Adaptive,
    /// Spans a second that the sidecar chooses to make, at the most; 0 for no bound. What a parent chose, and what
    /// others wait for, counts too, and is made all the same.
    pub spans_per_second: u64,
    /// Formats read and written.
    pub propagators: Propagators,
    /// Configured route patterns, first match counts.
    pub routes: Vec<Pattern>,
    /// Distinct routes of the service.
    pub routes_max: usize,
    /// What is recorded of queries.
    pub query: Query,
    /// What is inside.
    pub mesh: Mesh,
    /// The value of `throughline-peer` by which this sidecar names itself.
    pub peer_header: Vec<u8>,
    /// Whether destinations outside the mesh get our `traceparent`.
    pub egress_traceparent: bool,
    /// What callers are told of the trace.
    pub response_headers: ResponseHeaders,
    /// What an application gets of an unsampled root.
    pub root_unsampled: RootUnsampled,
    /// Request headers recorded on spans.
    pub capture_request_headers: Vec<Box<str>>,
    /// Response headers recorded on spans.
    pub capture_response_headers: Vec<Box<str>>,
    /// How the context that an event carries is treated.
    pub event_context: EventContext,
    /// How spans of messages are named.
    pub message_names: MessageNames,
    /// How histograms are pushed.
    pub aggregation: Aggregation,
    /// Bytes of an attribute's text, when fewer than the limit of [`crate::limits`].
    pub attribute_bytes_max: Option<usize>,
}

/// Events that are counted but are no spans.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// `traceparent` headers that were no valid context.
    pub invalid_traceparent: u64,
    /// `tracestate` headers that were dropped beside a good `traceparent`.
    pub invalid_tracestate: u64,
    /// B3 headers that were no valid context.
    pub invalid_b3: u64,
    /// `uber-trace-id` headers that were no valid context.
    pub invalid_jaeger: u64,
    /// `X-Trace-Id` headers that were no trace id.
    pub invalid_trace_id: u64,
    /// Operation names that break the rule, and were left alone.
    pub operations_ignored: u64,
    /// Outbound calls on which something was restored.
    pub restored: u64,
    /// Outbound calls that carried no context although exchanges were in flight.
    pub calls_without_context: u64,
    /// Outbound calls with the context of a trace that none of the exchanges in flight had, though there were some.
    pub calls_of_other_traces: u64,
    /// Inbound exchanges that found no place among those in flight.
    pub in_flight_full: u64,
    /// Exchanges of kubelet's probes.
    pub probes: u64,
    /// Exchanges that became spans.
    pub recorded: u64,
    /// Exchanges that would have become spans but for the bound of spans a second.
    pub over_budget: u64,
    /// Exchanges that were kept although the head said no, in the order of [`KeepReason::ALL`].
    pub kept: [u64; KeepReason::ALL.len()],
}

impl Counters {
    /// Propagation headers that were unusable, by their names.
    #[must_use]
    pub fn invalid(&self) -> [(&'static str, u64); 5] {
        [
            ("traceparent", self.invalid_traceparent),
            ("tracestate", self.invalid_tracestate),
            ("b3", self.invalid_b3),
            ("uber-trace-id", self.invalid_jaeger),
            ("x-trace-id", self.invalid_trace_id),
        ]
    }
}

/// Shared by all exchanges of a process.
#[derive(Debug)]
pub struct Tracer {
    pub(super) config: Config,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: Control,
    /// Operations that strangers named, and the traces a second that they may have sampled.
    edge_operations: Interner,
    edge_sampled: Bucket,
    adaptive: Watch,
    /// Spans a second, where they are bounded.
    budget: Option<Bucket>,
    /// Spans of the host's own work.
    work: Bucket,
    in_flight: InFlight,
    routes: Routes,
    requests: Requests,
    /// How slow routes are, inbound and outbound.
    learned: [Learned; 2],
    /// By route: exchanges with calls that lost the context, and that handed it on.
    contexts: Vec<[u64; 2]>,
    /// Whether somebody was seen to write another context over ours.
    overwritten: bool,
    counters: Counters,
    untouched: Vec<(&'static str, u64)>,
    #[expect(
        clippy::vec_box,
        reason = "exchanges hold the box: taking one moves a pointer, not the buffers"
    )]
    spare: Vec<Box<Buffers>>,
}

/// What a request says of its operation.
struct Said {
    operation: Option<Operation>,
    /// Whether the baggage that was read is all that was sent. If not, it goes on as it came: rewriting it
    /// would lose what is the user's.
    baggage_is_whole: bool,
}

/// What a stranger at an edge said.
struct Stranger {
    /// He wants the trace sampled.
    sampled: bool,
    /// He named an operation that is not believed.
    operation_disbelieved: bool,
    /// It was taken out of the baggage.
    baggage_changed: bool,
}

/// What an outbound call found out about the exchange it belongs to.
#[derive(Debug, Default)]
struct Belonging {
    inbound: Option<Inbound>,
    place: Option<Place>,
    /// Whether somebody else wrote the context that the application copied.
    overwritten: bool,
    /// Whether there were exchanges in flight that a call without context may belong to.
    in_flight: bool,
    /// The newest of them that are sampled.
    candidates: Vec<(TraceId, SpanId, Flags)>,
}

impl Tracer {
    /// A tracer of these settings. `seed` is the host's random number: it keeps callers from choosing keys
    /// that collide.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let shared = Shared {
            control: Control::new(config.enabled, config.mode, config.sampler, &config.service),
            edge_operations: Interner::new(edge::operations_max(&config.trust), seed),
            edge_sampled: match &config.trust {
                Trust::Edge(edge) => Bucket::new(edge.sampled_per_second, edge.sampled_per_second),
                Trust::Mesh => Bucket::new(0, 0),
            },
            adaptive: Watch::new(config.adaptive),
            budget: (config.spans_per_second > 0)
                .then(|| Bucket::new(config.spans_per_second, config.spans_per_second)),
            work: Bucket::new(limits::WORK_SPANS_PER_SECOND_MAX, limits::WORK_SPANS_AT_ONCE_MAX),
            in_flight: InFlight::new(seed),
            routes: Routes::new(config.routes_max, seed),
            requests: Requests::new(config.aggregation, seed),
            learned: Default::default(),
            contexts: Vec::new(),
            overwritten: false,
            counters: Counters::default(),
            untouched: Vec::new(),
            spare: Vec::new(),
        };
        Self { config, shared: Mutex::new(shared) }
    }

    /// A request begins: reads its context, decides, and writes into its headers what goes on.
    pub fn begin(
        &self,
        head: &RequestHead<'_>,
        carrier: &mut impl Carrier,
        now: Now,
        ids: &mut impl Ids,
    ) -> Exchange {
        self.begin_of(head, carrier, now, ids, None)
    }

    /// As [`Tracer::begin`], for a request by which a page goes on with a trace of its own.
    pub fn begin_of_page(
        &self,
        head: &RequestHead<'_>,
        carrier: &mut impl Carrier,
        now: Now,
        ids: &mut impl Ids,
        page: &Page,
    ) -> Exchange {
        self.begin_of(head, carrier, now, ids, Some(page))
    }

    fn begin_of(
        &self,
        head: &RequestHead<'_>,
        carrier: &mut impl Carrier,
        now: Now,
        ids: &mut impl Ids,
        page: Option<&Page>,
    ) -> Exchange {
        let mut exchange = self.blank(head, now);
        let seen = Seen::of(carrier);
        if is_probe(head, &seen) {
            exchange.tracing = Tracing::Ignored;
            self.lock().counters.probes += 1;
            return exchange;
        }
        exchange.grpc = seen.content_type.is_some_and(is_grpc);
        if !exchange.grpc {
            template(&self.config.routes, head.path, &mut exchange.buffers.route);
        } else if head.path.len() <= limits::ROUTE_BYTES_MAX {
            exchange.buffers.route.extend_from_slice(head.path);
        }
        if head.direction == Direction::Outbound {
            record::address(head, &mut exchange.buffers.host);
        }
        if !exchange.steer.mode.traces_exchanges() {
            exchange.operation = self.operation(&seen, &mut exchange.buffers.baggage).operation;
            return exchange;
        }
        if exchange.steer.mode == Mode::Full && self.config.recording {
            exchange.phases = Some(Phases::new(ids));
        }
        let at_edge = head.direction == Direction::Inbound && self.config.trust != Trust::Mesh;
        // What a stranger calls an event is a request like any other.
        if !at_edge && seen.may_carry_messages(head.method) {
            exchange.messaging = Messaging::of_head(head, carrier);
        }
        exchange.keeping = self.keeping(&exchange);
        exchange.steer.look_at(|name| carrier.get(name));
        let (trace, plan) = match head.direction {
            Direction::Inbound => self.begin_inbound(&mut exchange, head, &seen, ids, page),
            Direction::Outbound => self.begin_outbound(&mut exchange, head, &seen, ids),
        };
        if let Keeping::Open { by_head } = &mut exchange.keeping {
            let operation = exchange.operation.as_ref().map(Operation::as_str);
            *by_head = self.config.keep.by_head(operation, &exchange.buffers.route, |name| carrier.get(name));
        }
        if trace.recorded || exchange.keeping != Keeping::Never {
            let names = &self.config.capture_request_headers;
            capture(names, attribute::REQUEST_HEADER_PREFIX, carrier, &mut exchange.buffers.attributes);
        }
        if seen.keep {
            carrier.remove(crate::names::header::KEEP); // it belongs on answers, and is no application's business
        }
        if at_edge {
            edge::strip_request(carrier);
        }
        let operation = exchange.operation.as_ref();
        plan.write(&trace, operation, &self.config.peer_header, &mut exchange.buffers, carrier);
        exchange.tracing = Tracing::On(trace);
        if let Some(messaging) = &mut exchange.messaging {
            messaging.plan = Some(plan);
            self.messages_of_head(&mut exchange, carrier, now, ids);
        }
        exchange
    }

    fn blank(&self, head: &RequestHead<'_>, now: Now) -> Exchange {
        let (buffers, steer) = {
            let mut shared = self.lock();
            let Shared { control, adaptive, .. } = &mut *shared;
            let raised = adaptive.rate(now);
            let steer = Steer::new(control.mode(), control.sampler(), control.rules(), raised, now);
            (shared.spare.pop(), steer)
        };
        Exchange {
            direction: head.direction,
            https: head.scheme == super::Scheme::Https,
            steer,
            tracing: Tracing::Off,
            started: now,
            method: Method::of(head.method),
            operation: None,
            peer: None,
            caller_is_sidecar: false,
            inside: false,
            grpc: false,
            grpc_status: None,
            http_status: None,
            messaging: None,
            keeping: Keeping::Never,
            kept: None,
            left_out: false,
            told: false,
            http2: head.version == super::Version::Http2,
            first_byte: None,
            phases: None,
            buffers: buffers.unwrap_or_default(),
        }
    }

    /// Whether an exchange may be kept at its end.
    fn keeping(&self, exchange: &Exchange) -> Keeping {
        match exchange.steer.mode {
            // In `full` the bound of spans a second may have said no.
            Mode::Hybrid | Mode::Full if self.config.recording => Keeping::Open { by_head: None },
            Mode::Off | Mode::SystemOnly | Mode::Hybrid | Mode::Full => Keeping::Never,
        }
    }

    /// What only the head knows: as attributes if there will be a span, else remembered if there may be one.
    fn write_down(&self, exchange: &mut Exchange, head: &RequestHead<'_>, seen: &Seen<'_>, trace: &Trace) {
        // A message may move the exchange into a sampled trace.
        if trace.recorded || exchange.messaging.is_some() {
            let operation = exchange.operation.as_ref();
            record::request(&self.config, head, seen.user_agent, operation, &mut exchange.buffers);
            if head.direction == Direction::Inbound {
                record::peer(exchange.peer.as_ref(), &mut exchange.buffers.attributes);
            }
        } else if exchange.keeping != Keeping::Never {
            exchange.buffers.remembered.fill(&self.config, head, seen);
        }
    }

    /// What is traced from here on. Exchanges that have begun go on as they began.
    pub fn set_mode(&self, mode: Mode) {
        self.lock().control.set_mode(mode);
    }

    /// Samples what a rule is about for a while: `{source_id, operation | route | service | header, rate,
    /// duration}`.
    ///
    /// # Errors
    /// Every mistake of the wish.
    pub fn enable(&self, wish: &Value, now: Now) -> Result<Enabled, Vec<Mistake>> {
        self.lock().control.enable(wish, unix_seconds(now))
    }

    /// Ends a rule: `{source_id}`, or what it is about; `{all: true}` ends all that were enabled by calls. Says how
    /// many there were.
    ///
    /// # Errors
    /// Every mistake of the wish.
    pub fn disable(&self, wish: &Value, now: Now) -> Result<usize, Vec<Mistake>> {
        self.lock().control.disable(wish, unix_seconds(now))
    }

    /// Changes mode and base rate: `{mode, base_rate}`; with `null` they are again what the document or the settings
    /// say.
    ///
    /// # Errors
    /// Every mistake of the wish.
    pub fn change(&self, wish: &Value) -> Result<(), Vec<Mistake>> {
        self.lock().control.change(wish)
    }

    /// Takes over a whole document: `{mode, base_rate, rules}`, such as [`Tracer::status`] of another host is one.
    /// Says whether anything changed.
    ///
    /// # Errors
    /// Every mistake of the document; the last good one stays.
    pub fn control(&self, document: &Value, now: Now) -> Result<bool, Vec<Mistake>> {
        self.lock().control.apply(document, unix_seconds(now))
    }

    /// Mode, base rate and rules as the document that [`Tracer::control`] reads, and what happened so far beside
    /// them, as JSON.
    #[must_use]
    pub fn status(&self, now: Now, books: Books) -> String {
        let mut shared = self.lock();
        let (base, raised) = (shared.control.base_rate(), shared.adaptive.rate(now));
        let active = raised.is_some();
        let current =
            raised.map_or(base.probability(), |raised| raised.probability().max(base.probability()));
        let named = |rows: &[(&str, u64)]| {
            let rows: Vec<String> = rows.iter().map(|(key, count)| format!("\"{key}\":{count}")).collect();
            format!("{{{}}}", rows.join(","))
        };
        let Counters { recorded, kept, .. } = shared.counters;
        let kept: Vec<_> = KeepReason::ALL.iter().map(|reason| reason.as_str()).zip(kept).collect();
        let dropped: Vec<_> = Dropped::ALL.iter().map(|reason| reason.as_str()).zip(books.dropped).collect();
        let mut service = Vec::new();
        crate::events::json::write_string(&self.config.service, &mut service);
        let status = format!(
            "{{\"service\":{},\"unix_seconds\":{},\"rate\":{current},\"exchanges_recorded\":{recorded},\"exchanges_kept\":{},\
             \"over_budget\":{},\"adaptive\":{{\"active\":{},\"rate\":{}}},\"spans\":{},\"spans_dropped\":{},\
             \"in_flight\":{}}}",
            String::from_utf8_lossy(&service),
            unix_seconds(now),
            named(&kept),
            shared.counters.over_budget,
            active,
            self.config.adaptive.rate.probability(),
            named(&[("created", books.created), ("exported", books.exported), ("held", books.held)]),
            named(&dropped),
            shared.in_flight.len(),
        );
        shared.control.json(unix_seconds(now), &status)
    }

    /// The share of traces that the sampler takes.
    #[must_use]
    pub fn base_rate(&self) -> Ratio {
        self.lock().control.base_rate()
    }

    /// The share of new traces that is sampled at this moment, and whether it was raised.
    #[must_use]
    pub fn rate(&self, now: Now) -> (Ratio, bool) {
        let mut shared = self.lock();
        let base = shared.control.base_rate();
        match shared.adaptive.rate(now) {
            Some(raised) if raised.probability() > base.probability() => (raised, true),
            Some(_) => (base, true),
            None => (base, false),
        }
    }

    /// On-demand rules that have not ended.
    #[must_use]
    pub fn rules_active(&self, now: Now) -> usize {
        self.lock().control.active(unix_seconds(now)).count()
    }

    /// What is traced.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.lock().control.mode()
    }

    pub(super) fn may_tell_of_work(&self, now: Now) -> bool {
        let mut shared = self.lock();
        shared.control.mode().traces_own_work() && shared.work.take(1, now)
    }

    /// ARCHITECTURE.md, rule 1: the caller's context is the parent of a server span, which is the application's
    /// parent.
    fn begin_inbound(
        &self,
        exchange: &mut Exchange,
        head: &RequestHead<'_>,
        seen: &Seen<'_>,
        ids: &mut impl Ids,
        page: Option<&Page>,
    ) -> (Trace, Plan) {
        let mut reading = seen.context(self.config.propagators);
        let said = self.operation(seen, &mut exchange.buffers.baggage);
        exchange.operation = said.operation;
        let stranger = match &self.config.trust {
            Trust::Mesh => {
                exchange.peer = seen.peer.and_then(Peer::parse);
                exchange.caller_is_sidecar = exchange.peer.is_some();
                None
            }
            Trust::Edge(edge) => {
                let mut stranger = self.meet_stranger(edge, exchange, &mut reading);
                if let Some(page) = page {
                    // What it wanted to go on with it may, so there is nothing to link to; and its flag says nothing:
                    // pages always set it.
                    exchange.buffers.links.clear();
                    stranger.sampled = false;
                    reading.context = Some(of_page(page));
                }
                Some(stranger)
            }
        };
        let state_ok = read_tracestate(seen, reading.context, &mut exchange.buffers.tracestate);
        exchange.steer.find_rules(exchange.operation.as_ref(), &exchange.buffers.route);
        let held_own = tracestate::remove(&mut exchange.buffers.tracestate, TRACESTATE_KEY);

        let mut trace = match page {
            Some(page) => self.continue_page(exchange, page, ids),
            None => self.continue_or_start(exchange, &reading, ids),
        };
        if stranger.as_ref().is_some_and(|stranger| stranger.sampled) && !trace.flags.sampled() {
            self.grant_stranger(exchange, &mut trace);
        }
        if let Some(context) = reading.context {
            erase_if_overridden(&context, &trace, &mut exchange.buffers.tracestate);
            // No phantom parents (rule 3): a mesh peer exports no span of a trace that it does not sample.
            // Nor does the sidecar of an application that copied its headers past it.
            let from_mesh = exchange.peer.is_some() || held_own;
            let exported = context.sampled != Some(false) || !from_mesh;
            trace.parent =
                context.span_id.filter(|_| exported).map(|span_id| Parent { span_id, remote: true });
            if !exported && exchange.caller_is_sidecar {
                trace.doubt = context.span_id.map(Doubt::Caller);
            }
        }
        self.write_down(exchange, head, seen, &trace);
        let starts_unsampled = reading.context.is_none() && !trace.flags.sampled();
        let silent = match self.config.root_unsampled {
            RootUnsampled::Silent => starts_unsampled,
            RootUnsampled::Flag => false,
        };
        // An application that is told nothing has nothing to forward: no call of its belongs to the exchange.
        let inbound = (!silent).then(|| Inbound {
            trace_id: trace.trace_id,
            span_id: trace.span_id,
            flags: trace.flags,
            operation: exchange.operation,
            kept: false,
            luggage: record::luggage(&mut exchange.buffers),
            calls_with_context: 0,
            calls_without_context: 0,
        });
        trace.in_flight = self.remember(inbound, reading.invalid, state_ok);

        let (formats, state) = if silent {
            (Formats::withheld(), State::Withheld)
        } else {
            (Formats::everything(self.config.propagators), State::WithOwn)
        };
        let plan = Plan {
            formats,
            had_context: reading.context.is_some(),
            debug: reading.context.is_some_and(|context| context.debug),
            state,
            operation_header: exchange.operation.is_some() && seen.operation.is_none(),
            operation_disbelieved: stranger.as_ref().is_some_and(|stranger| stranger.operation_disbelieved),
            operation_baggage: said.baggage_is_whole && self.is_for_baggage(exchange),
            restored_baggage: stranger.is_some_and(|stranger| stranger.baggage_changed),
            peer: PeerHeader::Removed,
            had_peer: seen.peer.is_some(),
            had_tracestate: !seen.tracestate.is_empty(),
        };
        (trace, plan)
    }

    /// Rule 10: the stranger's context becomes a link, and his operation counts only within its bounds.
    fn meet_stranger(&self, edge: &Edge, exchange: &mut Exchange, reading: &mut Reading) -> Stranger {
        let outside = reading.context.take();
        let sampled = outside.and_then(|context| context.sampled).or(reading.hint) == Some(true);
        reading.hint = None;
        edge::link_to(outside, &mut exchange.buffers.links);
        let believed = exchange.operation.filter(|operation| {
            edge.lists(operation)
                .unwrap_or_else(|| self.lock().edge_operations.number(operation.as_str()) != Interner::OTHER)
        });
        let operation_disbelieved = believed.is_none() && exchange.operation.is_some();
        self.lock().counters.operations_ignored += u64::from(operation_disbelieved);
        exchange.operation = believed;
        let baggage_changed = edge::strip_baggage(&mut exchange.buffers.baggage, believed.as_ref());
        Stranger { sampled, operation_disbelieved, baggage_changed }
    }

    /// A stranger's own flag counts within what strangers may have.
    fn grant_stranger(&self, exchange: &Exchange, trace: &mut Trace) {
        let now = exchange.started;
        if !exchange.steer.mode.traces_exchanges() || !self.lock().edge_sampled.take(1, now) {
            return;
        }
        let wanted = Decision { sampled: true, reason: Reason::Edge };
        let Decision { sampled, reason } = self.afford(&exchange.steer, wanted, now);
        trace.flags = trace.flags.with_sampled(sampled);
        trace.recorded = sampled && self.config.recording;
        trace.reason = reason;
    }

    /// ARCHITECTURE.md, rule 1: the application's context is the parent of a client span, which is the next hop's
    /// parent. Rules 2, 5 and 6 say what is restored, and for whom.
    fn begin_outbound(
        &self,
        exchange: &mut Exchange,
        head: &RequestHead<'_>,
        seen: &Seen<'_>,
        ids: &mut impl Ids,
    ) -> (Trace, Plan) {
        let mut reading = seen.context(self.config.propagators);
        let said = self.operation(seen, &mut exchange.buffers.baggage);
        exchange.operation = said.operation;
        let state_ok = read_tracestate(seen, reading.context, &mut exchange.buffers.tracestate);
        let named = tracestate::find(&exchange.buffers.tracestate, TRACESTATE_KEY).and_then(SpanId::parse);
        tracestate::remove(&mut exchange.buffers.tracestate, TRACESTATE_KEY);
        let had_own = self.config.propagators.tracecontext && may_hold_own(seen);
        let belonging = self.belonging(&reading, named, state_ok);
        if let (Some(context), Some(inbound)) = (&mut reading.context, &belonging.inbound)
            && context.span_id.is_none()
        {
            // A trace id by itself stands for the exchange in flight that it names.
            let Inbound { span_id, flags, .. } = *inbound;
            *context = Context { span_id: Some(span_id), flags, sampled: Some(flags.sampled()), ..*context };
        }
        let inside = match head.destination {
            Destination::Routed => true,
            Destination::Named => self.config.mesh.inside(head.host_and_port().0),
        };
        exchange.inside = inside;

        let inbound_operation = belonging.inbound.as_ref().and_then(|inbound| inbound.operation.as_ref());
        let operation = exchange.operation.as_ref().or(inbound_operation);
        exchange.steer.find_rules(operation, &exchange.buffers.route);
        let mut trace = self.continue_or_start(exchange, &reading, ids);
        if let Some(context) = reading.context {
            self.place_under(&mut trace, &context, &belonging);
            erase_if_overridden(&context, &trace, &mut exchange.buffers.tracestate);
        }
        for (trace_id, span_id, flags) in &belonging.candidates {
            link(&mut exchange.buffers.links, *trace_id, *span_id, *flags);
        }
        let restored = match &belonging.inbound {
            Some(inbound) => restore(inbound, seen, inside, exchange),
            None => Restored::default(),
        };
        if inside && restored.anything() {
            self.lock().counters.restored += 1;
        }
        self.write_down(exchange, head, seen, &trace);
        if restored.operation {
            Attributes::of_span(&mut exchange.buffers.attributes).text(attribute::RESTORED, b"operation");
        }
        let plan = Plan {
            formats: if inside {
                Formats::everything(self.config.propagators)
            } else {
                Formats::outside(self.config.propagators, seen, self.config.egress_traceparent)
            },
            had_context: reading.context.is_some(),
            debug: reading.context.is_some_and(|context| context.debug),
            state: if had_own { State::OwnTakenOut } else { State::AsItIs },
            operation_header: exchange.operation.is_some() && inside && seen.operation.is_none(),
            operation_disbelieved: false,
            operation_baggage: inside && said.baggage_is_whole && self.is_for_baggage(exchange),
            restored_baggage: restored.baggage,
            peer: if inside { PeerHeader::Own } else { PeerHeader::Removed },
            had_peer: seen.peer.is_some(),
            had_tracestate: !seen.tracestate.is_empty(),
        };
        (trace, plan)
    }

    /// The operation, where the baggage lacks it: it goes on as header and as baggage, whichever of the two
    /// came.
    fn is_for_baggage(&self, exchange: &Exchange) -> bool {
        let lacks_it = || baggage::find(&exchange.buffers.baggage, attribute::OPERATION).is_none();
        exchange.operation.is_some() && self.config.propagators.baggage && lacks_it()
    }

    /// The operation by header, else by baggage, which is read into `list` on the way.
    fn operation(&self, seen: &Seen<'_>, list: &mut Vec<u8>) -> Said {
        let mut baggage_is_whole = true;
        if !seen.baggage.is_empty() && self.config.propagators.baggage {
            let cut = baggage::join(seen.baggage.iter(), list);
            baggage_is_whole = cut == baggage::Cut::default() && !seen.baggage.over_limit();
        }
        let by_header = seen.operation();
        let by_baggage = || {
            let value = baggage::find(list, attribute::OPERATION)?;
            let operation = Operation::parse(value.as_bytes());
            if operation.is_none() {
                self.lock().counters.operations_ignored += 1;
            }
            operation
        };
        let operation = match by_header {
            Ok(Some(operation)) => Some(operation),
            Ok(None) => by_baggage(),
            Err(()) => {
                self.lock().counters.operations_ignored += 1;
                by_baggage()
            }
        };
        Said { operation, baggage_is_whole }
    }

    fn continue_or_start(&self, exchange: &Exchange, reading: &Reading, ids: &mut impl Ids) -> Trace {
        let trace_id = reading.context.map_or_else(|| ids.trace_id(), |context| context.trace_id);
        let parent_sampled = match reading.context {
            Some(context) => context.sampled,
            None => reading.hint,
        };
        let Decision { sampled, reason } =
            self.afford(&exchange.steer, exchange.steer.decide(trace_id, parent_sampled), exchange.started);
        let flags = match reading.context {
            // The random flag is copied as received when a trace goes on.
            Some(context) => context.flags.with_sampled(sampled),
            None => Flags::start(sampled),
        };
        Trace {
            trace_id,
            span_id: ids.span_id(),
            flags,
            parent: None,
            doubt: None,
            recorded: sampled && self.config.recording,
            reason,
            in_flight: None,
        }
    }

    /// A page's trace goes on, and is decided here: by an id that we drew, since the page chose the trace's own.
    fn continue_page(&self, exchange: &Exchange, page: &Page, ids: &mut impl Ids) -> Trace {
        let followed = Decision { sampled: true, reason: Reason::Parent };
        let wanted = if page.chosen { followed } else { exchange.steer.decide(page.drawn, None) };
        let Decision { sampled, reason } = self.afford(&exchange.steer, wanted, exchange.started);
        Trace {
            trace_id: page.trace_id,
            span_id: ids.span_id(),
            flags: Flags::default().with_sampled(sampled),
            parent: None,
            doubt: None,
            recorded: sampled && self.config.recording,
            reason,
            in_flight: None,
        }
    }

    /// Spans that a page told of count against the bound of spans a second: its exchanges name them as parents, so
    /// they are made, and less is left for others.
    pub fn owe_for_page(&self, spans: u64, now: Now) {
        self.owe(spans, now);
    }

    /// Holds a decision against the bound of spans a second. What a parent chose is followed and counts all the
    /// same: the others of its trace hang under it.
    pub(super) fn afford(&self, steer: &Steer, decision: Decision, now: Now) -> Decision {
        if !decision.sampled || self.config.spans_per_second == 0 {
            return decision;
        }
        let whole = if steer.mode == Mode::Full { limits::SPANS_OF_FULL_EXCHANGE } else { 1 };
        let spans = whole.min(self.config.spans_per_second);
        let mut shared = self.lock();
        let Shared { budget: Some(budget), counters, .. } = &mut *shared else { return decision };
        if decision.reason == Reason::Parent {
            budget.owe(spans, now);
            return decision;
        }
        let sampled = budget.take(spans, now);
        counters.over_budget += u64::from(!sampled);
        Decision { sampled, ..decision }
    }

    /// Spans that are made whatever the bound of spans a second says count against it: later ones are left out.
    pub(super) fn owe(&self, spans: u64, now: Now) {
        if self.config.spans_per_second == 0 {
            return;
        }
        if let Some(budget) = &mut self.lock().budget {
            budget.owe(spans, now);
        }
    }

    /// Finds the client span's parent and, where the application's own SDK did not sample, follows our own
    /// inbound decision instead (rules 2 and 3).
    fn place_under(&self, trace: &mut Trace, context: &Context, belonging: &Belonging) {
        let by_application = context.span_id.map(|span_id| Parent { span_id, remote: true });
        if context.sampled != Some(false) {
            trace.parent = by_application;
            return;
        }
        let Some(inbound) = &belonging.inbound else { return };
        let is_ours = context.span_id == Some(inbound.span_id);
        // Where somebody writes over our context towards the application, what it copies is what our span will be
        // called.
        let copied = context.span_id.filter(|_| belonging.overwritten);
        let inbound_id = copied.unwrap_or(inbound.span_id);
        if !is_ours && inbound.flags.sampled() && trace.reason == Reason::Parent {
            trace.flags = trace.flags.with_sampled(true);
            trace.recorded = self.config.recording;
        }
        if inbound.flags.sampled() || inbound.kept {
            trace.parent = Some(Parent { span_id: inbound_id, remote: false });
        } else {
            trace.doubt = belonging.place.map(|place| Doubt::Inbound(place, inbound.span_id));
        }
        // What an operator asked for is worth the whole way to it, as what is kept is.
        if trace.recorded && trace.reason == Reason::OnDemand {
            self.lock().tell_inbound(trace);
        }
    }

    fn belonging(&self, reading: &Reading, named: Option<SpanId>, state_ok: bool) -> Belonging {
        let mut shared = self.lock();
        shared.count_invalid(reading.invalid, state_ok);
        let mut belonging = Belonging::default();
        if let Some(context) = reading.context {
            let found = shared.in_flight.find(context.trace_id, named.or(context.span_id));
            // Our own member names one exchange: when that is over, no other one of its trace stands in for it.
            let is_named = |span_id| named.is_none_or(|named| named == span_id);
            if let Some((place, inbound)) = found.filter(|(_, inbound)| is_named(inbound.span_id)) {
                inbound.calls_with_context = inbound.calls_with_context.saturating_add(1);
                belonging.inbound = Some(inbound.clone());
                belonging.place = Some(place);
                belonging.overwritten = shared.overwritten && named.is_none();
            } else if named.is_none() && shared.in_flight.len() > 0 {
                // By our member a call is known that comes too late: it has the trace that it was given.
                shared.counters.calls_of_other_traces += 1;
            }
            return belonging;
        }
        // Rule 8: no guessed parents; the candidates are told by links.
        shared.in_flight.newest(limits::LINKS_MAX, |inbound| {
            inbound.calls_without_context = inbound.calls_without_context.saturating_add(1);
            belonging.in_flight = true;
            // A link to a span that nobody exports would lead nowhere.
            if inbound.flags.sampled() {
                belonging.candidates.push((inbound.trace_id, inbound.span_id, inbound.flags));
            }
        });
        if belonging.in_flight {
            shared.counters.calls_without_context += 1;
        }
        belonging
    }

    fn remember(&self, inbound: Option<Inbound>, invalid: Invalids, state_ok: bool) -> Option<Place> {
        let mut shared = self.lock();
        shared.count_invalid(invalid, state_ok);
        let place = shared.in_flight.insert(inbound?);
        if place.is_none() {
            shared.counters.in_flight_full += 1;
        }
        place
    }

    /// The exchange is over: counts it, hands its span to the sink, and says what it was.
    pub fn end(
        &self,
        mut exchange: Exchange,
        outcome: Outcome,
        now: Now,
        sink: &mut impl SpanSink,
    ) -> Summary {
        let (status, verdict) = exchange.verdict(outcome);
        let duration_nanos = now.nanos_since(exchange.started);
        let mut recorded = false;
        if !matches!(exchange.tracing, Tracing::Ignored) {
            let mut shared = self.lock();
            let (route, counted) = shared.count(&exchange, outcome, status, verdict.error, duration_nanos);
            if let Tracing::On(mut trace) = exchange.tracing {
                // Only admitted routes name spans: the others would make as many names as paths.
                let named = route != 0 && shared.routes.name(route) != OTHER;
                let slow_over = self.slow_over(&mut shared, &exchange, route, duration_nanos);
                let failed =
                    verdict.error.is_some() && !status.is_some_and(|code| (400..500).contains(&code));
                if shared.control.base_rate().probability() < self.config.adaptive.rate.probability() {
                    shared.adaptive.record(exchange.direction, duration_nanos, failed, now);
                }
                let waited_for_kept = shared.forget(trace.in_flight, route);
                if exchange.kept.is_none() && exchange.may_be_kept(&trace) {
                    let verdicts = (status, verdict);
                    let own = exchange.worth_keeping(&self.config.keep, verdicts, duration_nanos, slow_over);
                    let own = own.filter(|_| !exchange.left_out);
                    let kept = if waited_for_kept { Some(KeepReason::Downstream) } else { own };
                    exchange.kept = shared.keep(kept, &mut trace, now);
                }
                let kept = exchange.kept;
                recorded = trace.recorded || kept.is_some();
                shared.counters.recorded += u64::from(recorded);
                let end_unix_nanos = exchange.started.unix_nanos.saturating_add(duration_nanos);
                if recorded {
                    let Trace { trace_id, span_id, .. } = trace;
                    let (nanos, unix_nanos) = (duration_nanos, end_unix_nanos);
                    shared.requests.exemplify(counted, Exemplar { trace_id, span_id, nanos, unix_nanos });
                }
                drop(shared);
                // A caller that hung up may not have read that it should keep its own span.
                if let Some(Doubt::Caller(span_id)) = trace.doubt
                    && exchange.told
                    && outcome != Outcome::CallerGone
                {
                    trace.parent = Some(Parent { span_id, remote: true });
                }
                exchange.end_messages(end_unix_nanos, verdict.status, now, sink);
                if recorded {
                    self.recall(&mut exchange);
                    exchange.finish_attributes(status, verdict, outcome);
                    if let Some(phases) = exchange.phases.as_ref().filter(|_| trace.recorded) {
                        let broke_off = matches!(outcome, Outcome::Failed { .. });
                        phases.hand_out(&trace, exchange.started, duration_nanos, broke_off, now, sink);
                    }
                    let names = self.config.message_names;
                    let ending = Ending { named, names, kept, status: verdict.status, end_unix_nanos, now };
                    hand_out(&mut exchange, trace, ending, sink);
                }
            }
        }
        let summary = Summary {
            direction: exchange.direction,
            ids: exchange.ids(),
            recorded,
            duration_nanos,
            http_status: status,
            error: verdict.error,
            operation: exchange.operation,
            ignored: matches!(exchange.tracing, Tracing::Ignored),
        };
        self.recycle(exchange.buffers);
        summary
    }

    /// Whether an exchange is kept by what is known so far, and why; `said` by the sidecar of the next hop.
    pub(super) fn keep_now(
        &self,
        exchange: &mut Exchange,
        said: bool,
        outcome: Outcome,
    ) -> Option<KeepReason> {
        let Tracing::On(mut trace) = exchange.tracing else { return None };
        let tells = exchange.direction == Direction::Outbound || exchange.caller_is_sidecar;
        if !tells || !exchange.may_be_kept(&trace) {
            return None; // the end is soon enough
        }
        let verdicts = exchange.verdict(outcome);
        let nanos = exchange.first_byte.map_or(0, |at| at.saturating_sub(exchange.started.mono_nanos));
        let fixed = self.config.keep.slow_over(&exchange.buffers.route);
        let mut reason = exchange.worth_keeping(&self.config.keep, verdicts, nanos, fixed);
        reason = reason.filter(|_| !exchange.left_out);
        if said {
            reason = Some(KeepReason::Downstream);
        }
        if reason.is_none() && exchange.direction == Direction::Outbound {
            return None;
        }
        let mut shared = self.lock();
        if reason.is_none() {
            let waited_for_kept = trace.in_flight.is_some_and(|place| shared.in_flight.is_kept(place));
            let learned = fixed.is_none() && shared.learned_over(exchange).is_some_and(|over| nanos > over);
            let found = [(waited_for_kept, KeepReason::Downstream), (learned, KeepReason::Slow)];
            reason = found.into_iter().find_map(|(holds, reason)| holds.then_some(reason));
        }
        let at = exchange.first_byte.unwrap_or(exchange.started.mono_nanos);
        let kept = shared.keep(reason, &mut trace, Now { mono_nanos: at, ..exchange.started });
        drop(shared);
        exchange.left_out |= reason.is_some() && kept.is_none();
        exchange.tracing = Tracing::On(trace);
        kept
    }

    /// What was remembered of the head becomes attributes.
    fn recall(&self, exchange: &mut Exchange) {
        if !exchange.buffers.remembered.is_there() {
            return;
        }
        let remembered = std::mem::take(&mut exchange.buffers.remembered);
        if let Some((head, agent)) = remembered.head() {
            let operation = exchange.operation.as_ref();
            record::request(&self.config, &head, agent, operation, &mut exchange.buffers);
            if head.direction == Direction::Inbound {
                record::peer(exchange.peer.as_ref(), &mut exchange.buffers.attributes);
            }
        }
        exchange.buffers.remembered = remembered;
    }

    /// Nanoseconds above which this exchange is slow; its route learns from it afterwards.
    fn slow_over(&self, shared: &mut Shared, exchange: &Exchange, route: u16, nanos: u64) -> Option<u64> {
        let fixed = self.config.keep.slow_over(&exchange.buffers.route);
        if fixed.is_some() || self.config.keep.slow != Slow::P99 || shared.routes.name(route) == OTHER {
            return fixed;
        }
        let learned = shared.learned.get_mut(exchange.direction as usize).filter(|_| route != 0)?;
        let slow_over = learned.slow_over(route);
        learned.record(route, nanos);
        slow_over
    }

    fn recycle(&self, mut buffers: Box<Buffers>) {
        if !buffers.clear() {
            return;
        }
        let mut shared = self.lock();
        if shared.spare.len() < limits::SPARE_BUFFERS_MAX {
            shared.spare.push(buffers);
        }
    }

    /// An exchange that a message moved to another trace is remembered there.
    pub(super) fn move_in_flight(
        &self,
        trace: &mut Trace,
        operation: Option<Operation>,
        buffers: &mut Buffers,
    ) {
        let luggage = record::luggage(buffers);
        let mut shared = self.lock();
        // An application that was to be told nothing was not remembered; a message's trace it is told of.
        let before = trace.in_flight.and_then(|place| shared.in_flight.remove(place));
        let kept = before.as_ref().is_some_and(|before| before.kept);
        let (calls_with_context, calls_without_context) =
            before.map_or((0, 0), |before| (before.calls_with_context, before.calls_without_context));
        let Trace { trace_id, span_id, flags, .. } = *trace;
        let inbound = Inbound {
            trace_id,
            span_id,
            flags,
            operation,
            kept,
            luggage,
            calls_with_context,
            calls_without_context,
        };
        trace.in_flight = shared.in_flight.insert(inbound);
    }

    /// Whether the exchange that a call names is in flight here.
    pub(super) fn knows(&self, trace_id: crate::ids::TraceId, named: SpanId) -> bool {
        let mut shared = self.lock();
        let found = shared.in_flight.find(trace_id, Some(named));
        found.is_some_and(|(_, inbound)| inbound.span_id == named)
    }

    /// Somebody writes another context over ours, towards the application ([`Exchange::adopt`]).
    pub fn told_overwritten(&self) {
        self.lock().overwritten = true;
    }

    pub(super) fn insert_lent(&self, inbound: Inbound) -> Option<Place> {
        self.lock().in_flight.insert(inbound)
    }

    pub(super) fn is_kept(&self, place: Place) -> bool {
        self.lock().in_flight.is_kept(place)
    }

    pub(super) fn mark_kept(&self, place: Place, span_id: SpanId) {
        self.lock().in_flight.keep(place, span_id);
    }

    pub(super) fn remove_lent(&self, place: Place) {
        drop(self.lock().in_flight.remove(place));
    }

    /// A message on its way, to be counted when its exchange is over.
    pub(super) fn message(
        &self,
        deed: Deed,
        pubsub: bool,
        destination: &str,
        operation: Option<&Operation>,
        lag_nanos: Option<u64>,
    ) -> Tally {
        let operation = operation.map_or("", Operation::as_str);
        self.lock().requests.message(deed, pubsub, destination, operation, lag_nanos)
    }

    /// Messages that were handed on while their exchange goes on.
    pub(super) fn messages_handed_on(&self, tallies: &[Tally]) {
        self.lock().requests.messages(tallies, None, 0);
    }

    /// A body with messages goes on as it is, for this reason.
    pub fn count_untouched(&self, reason: &'static str) {
        let counts = &mut self.lock().untouched;
        if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == reason) {
            *count += 1;
        } else if counts.len() < limits::UNTOUCHED_REASONS_MAX {
            counts.push((reason, 1));
        }
    }

    /// Bodies with messages that went on as they were, by reason.
    #[must_use]
    pub fn untouched(&self) -> Vec<(&'static str, u64)> {
        self.lock().untouched.clone()
    }

    /// Events counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Inbound exchanges in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight.len()
    }

    /// Visits routes with inbound exchanges whose outbound calls carried no context, and how many these were.
    pub fn context_dropped(&self, mut visit: impl FnMut(&str, u64)) {
        self.contexts(|route, dropped, _| {
            if dropped > 0 {
                visit(route, dropped);
            }
        });
    }

    /// Visits routes with inbound exchanges that had outbound calls: how many of them lost the context, and how many
    /// handed it on.
    pub fn contexts(&self, mut visit: impl FnMut(&str, u64, u64)) {
        let (counts, routes) = {
            let shared = self.lock();
            if shared.contexts.is_empty() {
                return;
            }
            (shared.contexts.clone(), shared.routes.clone())
        };
        for (number, [dropped, forwarded]) in counts.into_iter().enumerate() {
            visit(routes.name(u16::try_from(number).unwrap_or(0)), dropped, forwarded);
        }
    }

    /// The mode that the settings say.
    #[must_use]
    pub fn mode_configured(&self) -> Mode {
        if self.config.enabled { self.config.mode } else { Mode::Off }
    }

    /// The request metrics of this moment, to be written for Prometheus; with those of the service graph if asked
    /// for.
    #[must_use]
    pub fn numbers(&self, with_graph: bool) -> Numbers {
        let (requests, routes) = {
            let shared = self.lock();
            (shared.requests.for_page(), shared.routes.clone())
        };
        Numbers::new(requests, routes, &self.config.service, with_graph)
    }

    /// The metrics of exchanges, messages and contexts as encoded OTLP metrics, over the time from `start` to `now`.
    #[must_use]
    pub fn otlp_metrics(&self, start_unix_nanos: u64, now_unix_nanos: u64) -> Vec<u8> {
        let (requests, routes, propagation) = self.counts();
        let mut metrics = Metrics::new(start_unix_nanos, now_unix_nanos);
        requests.tell(&|number| routes.name(number), &mut metrics);
        propagation.tell(&routes, &mut metrics);
        metrics.encode()
    }

    /// The numbers of one moment: copied, because writing them out takes too long to make exchanges wait.
    fn counts(&self) -> (Requests, Routes, Propagation) {
        let shared = self.lock();
        let propagation = Propagation {
            counters: shared.counters,
            contexts: shared.contexts.clone(),
            untouched: shared.untouched.clone(),
        };
        (shared.requests.clone(), shared.routes.clone(), propagation)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic elsewhere must not stop the tracing of everybody: the numbers are still good enough.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn count_invalid(&mut self, invalid: Invalids, state_ok: bool) {
        let counters = &mut self.counters;
        counters.invalid_traceparent += u64::from(invalid.traceparent);
        counters.invalid_b3 += u64::from(invalid.b3);
        counters.invalid_jaeger += u64::from(invalid.jaeger);
        counters.invalid_trace_id += u64::from(invalid.trace_id);
        counters.invalid_tracestate += u64::from(!state_ok);
    }

    /// Nanoseconds above which the exchange's route is slow, as learned.
    fn learned_over(&self, exchange: &Exchange) -> Option<u64> {
        let route = self.routes.known(&exchange.buffers.route)?;
        self.learned.get(exchange.direction as usize)?.slow_over(route)
    }

    fn count(
        &mut self,
        exchange: &Exchange,
        outcome: Outcome,
        status: Option<u16>,
        error: Option<crate::classify::ErrorType>,
        nanos: u64,
    ) -> (u16, Counted) {
        let is_inbound = exchange.direction == Direction::Inbound;
        let route = if (is_inbound || exchange.grpc) && !exchange.buffers.route.is_empty() {
            self.routes.admit(&exchange.buffers.route, is_served(exchange, outcome, status))
        } else {
            0
        };
        let address = std::str::from_utf8(&exchange.buffers.host).unwrap_or_default();
        let labels = Labels {
            direction: exchange.direction,
            https: exchange.https,
            messages: exchange.messaging.as_ref().and_then(|messaging| messaging.metric_kind(is_inbound)),
            grpc: exchange.grpc,
            method: exchange.method,
            status,
            error,
            route,
            operation: exchange.operation.as_ref().map_or("", Operation::as_str),
            peer: exchange.peer.as_ref().map(|peer| (&*peer.service, &*peer.namespace)),
            address: if is_inbound { "" } else { address },
        };
        if let Some(messaging) = &exchange.messaging {
            self.requests.messages(messaging.tallies(), error, nanos);
        }
        (route, self.requests.record(&labels, nanos))
    }

    /// An inbound exchange leaves the table; says whether one that it waited for was kept. Calls without context,
    /// and none with one: the application drops it on this route.
    fn forget(&mut self, place: Option<Place>, route: u16) -> bool {
        let Some(inbound) = place.and_then(|place| self.in_flight.remove(place)) else { return false };
        let forwarded = inbound.calls_with_context > 0;
        if forwarded || inbound.calls_without_context > 0 {
            let number = usize::from(route);
            if self.contexts.len() <= number {
                self.contexts.resize(number + 1, [0; 2]);
            }
            if let Some(count) =
                self.contexts.get_mut(number).and_then(|row| row.get_mut(usize::from(forwarded)))
            {
                *count += 1;
            }
        }
        inbound.kept
    }

    /// Counts what is kept, and tells the inbound exchange that waits for it. One that is over already can't be
    /// told: then it is no parent either.
    fn keep(&mut self, reason: Option<KeepReason>, trace: &mut Trace, now: Now) -> Option<KeepReason> {
        let reason = reason?;
        if let Some(budget) = &mut self.budget {
            if reason == KeepReason::Downstream {
                budget.owe(1, now); // those that it waited for name it as their parent
            } else if !budget.take(1, now) {
                self.counters.over_budget += 1;
                return None;
            }
        }
        if let Some(count) = self.counters.kept.get_mut(reason as usize) {
            *count += 1;
        }
        self.tell_inbound(trace);
        Some(reason)
    }

    fn tell_inbound(&mut self, trace: &mut Trace) {
        if let Some(Doubt::Inbound(place, span_id)) = trace.doubt
            && self.in_flight.keep(place, span_id)
        {
            trace.parent = Some(Parent { span_id, remote: false });
            trace.doubt = None;
        }
    }
}

/// The context of a page's request: its trace and its parent, and nothing else of what it sent.
fn of_page(page: &Page) -> Context {
    Context {
        trace_id: page.trace_id,
        span_id: Some(page.span_id),
        flags: Flags::default(),
        sampled: None,
        debug: false,
        w3c: false,
    }
}

fn unix_seconds(now: Now) -> u64 {
    now.unix_nanos / 1_000_000_000
}

/// Whether somebody serves what was asked for. A caller may ask for anything, so a server's answer has to say
/// it; what the application calls is its own word, which holds while nobody answers.
fn is_served(exchange: &Exchange, outcome: Outcome, status: Option<u16>) -> bool {
    let known = |status| {
        !matches!(status, 404 | 405)
            && exchange.grpc_status.is_none_or(|grpc| grpc.as_str() != "UNIMPLEMENTED")
    };
    match (exchange.direction, outcome) {
        (Direction::Inbound, Outcome::Failed { answered: Some(_), .. }) => false,
        (Direction::Inbound, _) => status.is_some_and(known),
        (Direction::Outbound, _) => status.is_none_or(known),
    }
}

/// Whether the application's list names our exchange, or is one that nobody can read to the end.
fn may_hold_own(seen: &Seen<'_>) -> bool {
    let holds_own = |line| tracestate::find(line, TRACESTATE_KEY).is_some();
    seen.tracestate.over_limit() || seen.tracestate.iter().any(holds_own)
}

/// The list in normal form, when it counts; false when it was there but broken.
fn read_tracestate(seen: &Seen<'_>, context: Option<Context>, list: &mut Vec<u8>) -> bool {
    if seen.tracestate.is_empty() || !context.is_some_and(|context| context.w3c) {
        return true; // without a valid `traceparent`, `tracestate` is discarded (W3C Trace Context §3.3)
    }
    if seen.tracestate.over_limit() {
        return false;
    }
    tracestate::join(seen.tracestate.iter(), list).is_ok()
}

/// A probability that a parent claimed is false once its decision was overridden.
fn erase_if_overridden(context: &Context, trace: &Trace, list: &mut Vec<u8>) {
    if context.sampled.is_some_and(|sampled| sampled != trace.flags.sampled()) {
        erase_probability(list);
    }
}

/// Bytes of our own member of `tracestate` with its comma: `tl=` and sixteen digits.
const OWN_MEMBER_BYTES: usize = 20;

/// What was taken from the inbound exchange because the application did not forward it.
#[derive(Clone, Copy, Default, Debug)]
struct Restored {
    operation: bool,
    baggage: bool,
    tracestate: bool,
}

impl Restored {
    fn anything(self) -> bool {
        self.operation || self.baggage || self.tracestate
    }
}

/// Spans always say the operation; everything else is restored only for destinations inside.
fn restore(inbound: &Inbound, seen: &Seen<'_>, inside: bool, exchange: &mut Exchange) -> Restored {
    let mut restored = Restored::default();
    if exchange.operation.is_none() && seen.operation.is_none() && inbound.operation.is_some() {
        exchange.operation = inbound.operation;
        restored.operation = true;
    }
    let Some(luggage) = inbound.luggage.as_ref().filter(|_| inside) else { return restored };
    if seen.baggage.is_empty() && !luggage.baggage.is_empty() {
        exchange.buffers.baggage.extend_from_slice(&luggage.baggage);
        restored.baggage = true;
    }
    // A list that was full had to let its last members go for our own: they come back too.
    let list = &exchange.buffers.tracestate;
    let was_cut = luggage.tracestate.len() > list.len() && luggage.tracestate.starts_with(list);
    let was_full = || {
        tracestate::members(&luggage.tracestate).count() >= limits::TRACESTATE_MEMBERS_MAX
            || luggage.tracestate.len() + OWN_MEMBER_BYTES > limits::TRACESTATE_BYTES_MAX
    };
    if was_cut && !seen.tracestate.is_empty() && was_full() {
        exchange.buffers.tracestate.clear();
        exchange.buffers.tracestate.extend_from_slice(&luggage.tracestate);
        restored.tracestate = true;
    }
    if seen.tracestate.is_empty() && !luggage.tracestate.is_empty() {
        exchange.buffers.tracestate.extend_from_slice(&luggage.tracestate);
        restored.tracestate = true;
    }
    restored
}

/// Records the headers that the user asked for, each with all of its values.
pub(super) fn capture(names: &[Box<str>], prefix: &str, carrier: &impl Carrier, out: &mut Vec<u8>) {
    for name in names {
        let mut values: Vec<&[u8]> = Vec::new();
        carrier.for_each(&mut |field, value| {
            if field == &**name {
                values.push(value);
            }
        });
        if !values.is_empty() {
            Attributes::of_span(out).texts(prefix, name, &values);
        }
    }
}

/// Probes of the kubelet leave no spans and no lines (rule 12). A request with a context or a peer's name is
/// none, whatever it calls itself.
fn is_probe(head: &RequestHead<'_>, seen: &Seen<'_>) -> bool {
    const KUBELET: &[u8] = b"kube-probe/";
    let plain = seen.peer.is_none() && !seen.has_traceparent();
    head.direction == Direction::Inbound
        && plain
        && seen.user_agent.is_some_and(|agent| agent.starts_with(KUBELET))
}

/// What is known at the end of an exchange.
struct Ending {
    /// Its route may name spans.
    named: bool,
    names: MessageNames,
    /// Why it is there although the head said no.
    kept: Option<KeepReason>,
    status: crate::otlp::Status,
    end_unix_nanos: u64,
    now: Now,
}

fn hand_out(exchange: &mut Exchange, mut trace: Trace, ending: Ending, sink: &mut impl SpanSink) {
    let Ending { named, names, kept, status, end_unix_nanos, now } = ending;
    if let Some(parent) = trace.parent.filter(|_| trace.doubt == Some(Doubt::Message)) {
        trace.parent = None;
        link(&mut exchange.buffers.links, trace.trace_id, parent.span_id, trace.flags.with_sampled(false));
    }
    if kept.is_some() {
        erase_probability(&mut exchange.buffers.tracestate);
    }
    let route = std::str::from_utf8(&exchange.buffers.route).unwrap_or_default();
    let mut attributes = Attributes::of_span(&mut exchange.buffers.attributes);
    match kept {
        Some(reason) => attributes.text(attribute::KEEP_REASON, reason.as_str().as_bytes()),
        None if trace.parent.is_none() || trace.reason == Reason::OnDemand => {
            attributes.text(attribute::SAMPLED_BY, trace.reason.as_str().as_bytes());
        }
        None => {}
    }
    let method = if exchange.method.is_known() { exchange.method.as_str() } else { "HTTP" };
    let grpc_method = route.strip_prefix('/').unwrap_or(route);
    let name: &[&str] = match (exchange.grpc, named, exchange.direction) {
        (true, true, _) => {
            attributes.text(attribute::RPC_SYSTEM_NAME, b"grpc");
            attributes.text(attribute::RPC_METHOD, grpc_method.as_bytes());
            &[grpc_method]
        }
        (true, false, _) => {
            attributes.text(attribute::RPC_SYSTEM_NAME, b"grpc");
            &["grpc"]
        }
        (false, true, Direction::Inbound) => {
            attributes.text(attribute::HTTP_ROUTE, route.as_bytes());
            &[method, " ", route]
        }
        (false, _, Direction::Inbound | Direction::Outbound) => &[method],
    };
    let kind = match exchange.direction {
        Direction::Inbound => Kind::Server,
        Direction::Outbound => Kind::Client,
    };
    let messaging = exchange.messaging.as_deref();
    if let Some(messaging) = messaging {
        messaging.finish(exchange.direction, names, &mut exchange.buffers.attributes);
    }
    let of_messages = messaging.and_then(|messaging| messaging.span(exchange.direction, names));
    let owned = of_messages.as_ref().map(|(name, kind)| (name.each_ref().map(String::as_str), *kind));
    let (name, kind) = owned.as_ref().map_or((name, kind), |(name, kind)| (&name[..], *kind));
    let span = Span {
        trace_id: trace.trace_id,
        span_id: trace.span_id,
        flags: trace.flags,
        parent: trace.parent,
        trace_state: &exchange.buffers.tracestate,
        name,
        kind,
        start_unix_nanos: exchange.started.unix_nanos,
        end_unix_nanos,
        attributes: &exchange.buffers.attributes,
        links: &exchange.buffers.links,
        status,
    };
    sink.span(&span, now);
}
