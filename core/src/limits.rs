//! Every bound of `core`, with its unit and its reason. What is over a bound is dropped or cut as the line
//! says, and counted by the part that meets it; nothing here ever fails a user's request.

/// Members of a `tracestate` list (W3C Trace Context §3.3.1.1: at most 32). More: the header is dropped.
pub const TRACESTATE_MEMBERS_MAX: usize = 32;
/// Characters of a `tracestate` key (§3.3.1.3.1).
pub const TRACESTATE_KEY_MAX: usize = 256;
/// Characters of a `tracestate` value (§3.3.1.3.2).
pub const TRACESTATE_VALUE_MAX: usize = 256;
/// Characters of `tracestate` that we carry; §3.3.1.5 asks for at least 512. Whole members are cut.
pub const TRACESTATE_BYTES_MAX: usize = 2048;
/// When cutting, members longer than this go first (§3.3.1.5).
pub const TRACESTATE_CUT_FIRST: usize = 128;

/// Members of a `baggage` list that must be carried (W3C Baggage §3.3.2). More: the surplus is cut.
pub const BAGGAGE_MEMBERS_MAX: usize = 64;
/// Bytes of `baggage` that must be carried (W3C Baggage §3.3.2). More: whole members are cut from the right.
pub const BAGGAGE_BYTES_MAX: usize = 8192;

/// Bytes of an operation name: enough for any sensible name, small enough for a header. Longer: ignored.
pub const OPERATION_BYTES_MAX: usize = 128;

/// Several header lines of one list (`tracestate`, `baggage`) that are joined. More: the list is invalid.
pub const HEADER_LINES_MAX: usize = 16;
/// Bytes of one attribute value; longer ones are cut at a character's border.
pub const ATTRIBUTE_VALUE_BYTES_MAX: usize = 4096;
/// Bytes of one service or namespace name in `throughline-peer`. Longer: the name is ignored.
pub const PEER_NAME_BYTES_MAX: usize = 128;
/// Links of a span that starts a trace although exchanges are in flight.
pub const LINKS_MAX: usize = 4;
/// Inbound exchanges remembered while in flight, to restore what an application does not forward.
/// More: they are served and traced, but nothing is restored from them.
pub const IN_FLIGHT_MAX: usize = 16_384;
/// Inbound exchanges of one trace that an outbound call is looked up in; more are not compared.
pub const IN_FLIGHT_PER_TRACE_MAX: usize = 64;
/// Bytes of baggage or tracestate remembered per exchange in flight. Longer: not restored.
pub const RESTORED_BYTES_MAX: usize = 8192;
/// Segments of a path that a template is made of; the rest becomes `/*`.
pub const ROUTE_SEGMENTS_MAX: usize = 24;
/// Bytes of a route template. Longer: no route.
pub const ROUTE_BYTES_MAX: usize = 256;
/// Buffers kept for the next exchange, so that a steady state allocates nothing.
pub const SPARE_BUFFERS_MAX: usize = 256;
/// Bytes a buffer may have grown to and still be kept for the next exchange.
pub const SPARE_BUFFER_BYTES_MAX: usize = 16_384;

/// Distinct operations in metric labels; further ones count as `_other`. Spans keep the real name.
pub const METRIC_OPERATIONS_MAX: usize = 200;
/// Distinct peers (service and namespace) in metric labels; further ones count as `_other`.
pub const METRIC_PEERS_MAX: usize = 500;
/// Distinct hosts and ports of outbound requests in metric labels; further ones count as `_other`.
pub const METRIC_ADDRESSES_MAX: usize = 200;
/// Distinct `error.type` values in metric labels; further ones count as `_other`.
pub const METRIC_ERRORS_MAX: usize = 100;
/// Series of the request metrics, OpenTelemetry's own default; further combinations add to the overflow series.
pub const METRIC_SERIES_MAX: usize = 2_000;
/// Buckets of one exponential histogram, 4 bytes each: at the finest scale a range of 1 to 1,000. A wider one takes a
/// coarser scale. All series of requests together hold 5 MB of them at the most, and only where a setting asks for them.
pub const METRIC_EXPONENTIAL_BUCKETS_MAX: usize = 640;
/// Topics, subscriptions and types of events in metric labels; further ones count as `_other`.
pub const METRIC_DESTINATIONS_MAX: usize = 200;
/// Series of message metrics; further combinations add to the overflow series.
pub const METRIC_MESSAGE_SERIES_MAX: usize = 500;
/// Pairs of services in the service graph; further ones count as `_other`.
pub const METRIC_EDGES_MAX: usize = 300;
/// Names of spans, by kind and status, in the span metrics; further ones count as `_other`.
pub const METRIC_SPAN_NAMES_MAX: usize = 500;

/// Bytes of finished spans held for export, however few they are. At the bound the oldest go first.
pub const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one encoded span. A larger one is dropped, as its batch would be refused.
pub const SPAN_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one batch: below the 4 MiB that gRPC servers accept by default.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Routes whose own slowness is learned, at some 400 bytes each. Further ones are slow by a fixed threshold or
/// never.
pub const LEARNED_ROUTES_MAX: usize = 1_000;
/// On-demand rules at once, of calls and of the document together: not more than a `u128` has bits.
pub const RULES_MAX: usize = 100;
/// Bytes of a rule's name, and of a service's.
pub const RULE_NAME_BYTES_MAX: usize = 128;
/// Bytes of a rule's header, value included.
pub const RULE_HEADER_BYTES_MAX: usize = 256;
/// Seconds that a rule lasts at the least.
pub const RULE_SECONDS_MIN: u64 = 60;
/// Seconds that a rule lasts at the most: nobody forgets it for longer.
pub const RULE_SECONDS_MAX: u64 = 24 * 3600;
/// Bytes of a control document.
pub const CONTROL_BYTES_MAX: usize = 256 * 1024;
/// Nesting of a control document.
pub const CONTROL_DEPTH_MAX: usize = 8;
/// Spans that one exchange is taken for in `full` mode when spans a second are bounded: its own and four children.
pub const SPANS_OF_FULL_EXCHANGE: u64 = 5;
/// Spans of a host's own work at once, and how many come back each second: trouble must not make more trouble.
pub const WORK_SPANS_AT_ONCE_MAX: u64 = 20;
/// Spans of a host's own work a second.
pub const WORK_SPANS_PER_SECOND_MAX: u64 = 1;

/// Attributes of one Pub/Sub message: the service refuses a publish with more, so ours are the first to go.
pub const PUBSUB_ATTRIBUTES_MAX: usize = 100;
/// Links of a pull's span to its messages; OpenTelemetry's default limit of links.
pub const MESSAGE_LINKS_MAX: usize = 128;
/// Reasons for leaving a body as it is that are counted apart.
pub const UNTOUCHED_REASONS_MAX: usize = 32;

/// Bytes of an inbound exchange that are told to the other workers of a host; longer lists stay behind.
pub const CROSSING_BYTES_MAX: usize = 2048;

/// Bytes of a body of spans from a browser: what a page may send while it is being left.
pub const BROWSER_BODY_BYTES_MAX: usize = 64 * 1024;
/// Spans of such a body. An operation has one, and one for each of its first 30 requests.
pub const BROWSER_SPANS_MAX: usize = 64;
/// Traces of pages that are remembered, at some 300 bytes each. Beyond it the oldest is forgotten.
pub const BROWSER_TRACES_MAX: usize = 8192;
/// Seconds for which one is remembered, and the longest that an operation may take.
pub const BROWSER_TRACE_SECONDS: u64 = 600;
/// Addresses whose share is counted apart; further ones have one together.
pub const BROWSER_ADDRESSES_MAX: usize = 4096;
/// Seconds' worth of an address's share that may be used at once: a page that is opened asks for much.
pub const BROWSER_BURST_SECONDS: u64 = 5;
/// Bytes of a path that a page tells.
pub const BROWSER_PATH_BYTES_MAX: usize = 512;
/// Milliseconds between a page's clock and ours that are taken for the time under way.
pub const BROWSER_CLOCK_MILLIS_MAX: u64 = 2000;
