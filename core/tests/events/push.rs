//! Deliveries by push: wrapped, unwrapped and bare.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::classify::Direction;
use throughline_core::exchange::{EventContext, MessageNames, Wanted};

use crate::harness::*;
use crate::json::{changes, decode64, encode64, leaves};
use crate::stage::*;

/// Headers of an unwrapped push with its metadata.
const METADATA: Fields<'_> = &[
    ("x-goog-pubsub-subscription-name", "projects/p/subscriptions/shipping"),
    ("x-goog-pubsub-message-id", "m1"),
    ("x-goog-pubsub-publish-time", "2025-11-20T00:53:15Z"),
    ("x-goog-pubsub-ordering-key", "k"),
    ("x-goog-pubsub-delivery-attempt", "2"),
];

fn consumer(name: &str) -> (&str, SpanKind, String, String) {
    (name, SpanKind::Consumer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned())
}

#[test]
fn a_wrapped_push_is_a_child_of_its_producer_and_moves_its_exchange() {
    let attributes = format!(
        r#","ce-traceparent":"{HOP}","googclient_traceparent":"{HOP}","ce-operationname":"checkout""#
    );
    let (message, transports) = (binary(&attributes), [None, Some(SAMPLED)]);
    for transport in transports {
        let mut stage = Stage::new();
        let fields: Vec<_> =
            [JSON].into_iter().chain(transport.map(|context| ("traceparent", context))).collect();
        let (mut exchange, mut headers) = stage.begin(&post(Direction::Inbound, "/hook"), &fields);
        assert_eq!(exchange.wanted(), Wanted::MaybePush);
        let before = pushed(&message);
        let after = stage.body(&mut exchange, &mut headers, before.as_bytes()).unwrap();
        let own = value(&headers, "traceparent").to_owned();
        assert_eq!(own, format!("00-{PRODUCER_TRACE}-{}-03", span_id(&exchange)));
        assert_eq!(value(&headers, "tracestate"), format!("tl={}", span_id(&exchange)));
        assert_eq!(value(&headers, "x-operation-name"), "checkout");
        assert_eq!(value(&headers, "baggage"), "app.operation.name=checkout");

        assert_eq!(stage.world.tracer.in_flight(), 1);
        let call = stage.call_with(&own);
        assert_eq!(value(&call, "x-operation-name"), "checkout", "restored from the exchange that moved");
        let of_call = stage.spans();
        assert_eq!(parent_of(&of_call[0]), span_id(&exchange));
        assert_eq!(text(&of_call[0], "throughline.restored"), "operation");

        stage.world.answer(&mut exchange, 200, &[]);
        let spans = stage.end(exchange);
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(place(span), consumer("shipping process"));
        let expected: Vec<String> = transport.map(ids).into_iter().collect();
        assert_eq!(links(span), expected, "the transport's context, where there is one");
        check_attributes(span, EVENT_ATTRIBUTES);
        check_attributes(
            span,
            &[
                ("messaging.system", "gcp_pubsub"),
                ("messaging.operation.name", "process"),
                ("messaging.operation.type", "process"),
                ("messaging.destination.subscription.name", "shipping"),
                ("app.operation.name", "checkout"),
                ("url.path", "/hook"),
            ],
        );
        let at = |name: &str| format!("message.attributes.{name}");
        let expected = [
            [at("ce-origintraceparent"), "-".to_owned(), HOP.to_owned()],
            [at("ce-traceparent"), HOP.to_owned(), own.clone()],
            [at("googclient_traceparent"), HOP.to_owned(), own],
        ];
        assert_eq!(changes(&before, std::str::from_utf8(&after).unwrap()), expected);
    }
}

#[test]
fn spans_of_deliveries_are_named_as_the_user_chose() {
    let mut stage = Stage::with(|config| config.message_names = MessageNames::Semconv);
    assert_eq!(stage.push(&[], &with_attributes("")).own().name, "process shipping");
}

#[test]
fn an_event_inside_the_data_is_rewritten_there() {
    let event = format!(r#"{{{EVENT},"traceparent":"{HOP}","data":{{"a":1.0}}}}"#);
    let message = format!(
        r#"{{"attributes":{{"Content-Type":"application/cloudevents+json; charset=utf-8"}},"data":"{}"}}"#,
        encode64(&event)
    );
    let mut stage = Stage::new();
    let sent = stage.push(&[], &message);
    assert_eq!(place(sent.own()), consumer("shipping process"));
    let own = context(sent.own(), "03");
    let inside = decode64(&leaves(sent.text())["message.data"]);
    assert_eq!(changes(&event, &inside), [["origintraceparent", "-", HOP], ["traceparent", HOP, &own]]);
    assert!(inside.contains(r#""data":{"a":1.0}"#));
    check_attributes(sent.own(), EVENT_ATTRIBUTES);
}

#[test]
fn the_hops_context_goes_before_the_events_and_the_events_is_linked() {
    let attributes = format!(r#","ce-traceparent":"{FOREIGN}","googclient_traceparent":"{HOP}""#);
    let sent = Stage::new().push(&[], &binary(&attributes));
    assert_eq!(place(sent.own()), consumer("shipping process"));
    assert_eq!(links(sent.own()), [ids(FOREIGN)]);
    assert_eq!(leaves(sent.text())["message.attributes.ce-origintraceparent"], FOREIGN);
}

#[test]
fn three_deliveries_are_three_spans_of_one_parent() {
    let mut stage = Stage::new();
    let mut seen = Vec::new();
    for attempt in ["1", "2", "3"] {
        let message = with_attributes(&format!(r#""googclient_traceparent":"{HOP}""#));
        let body = format!(r#"{{"deliveryAttempt":{attempt},{}"#, &pushed(&message)[1..]);
        let sent = stage.inbound(&[], &body);
        assert_eq!((sent.spans.len(), place(sent.own())), (1, consumer("shipping process")));
        check_attributes(sent.own(), &[("messaging.gcp_pubsub.message.delivery_attempt", attempt)]);
        seen.push(sent.own().span_id.clone());
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
}

#[test]
fn an_unwrapped_push_is_told_by_its_head() {
    for (form, more, own_members) in [
        ("plain", &[("googclient_traceparent", HOP)][..], &[][..]),
        (
            "binary",
            &[
                ("ce-specversion", "1.0"),
                ("ce-id", "e1"),
                ("ce-source", "/shop"),
                ("ce-type", "order.placed"),
                ("ce-subject", "o7"),
                ("ce-traceparent", HOP),
                ("ce-operationname", "checkout"),
            ],
            &["ce-traceparent"],
        ),
    ] {
        let mut stage = Stage::new();
        let fields = [METADATA, more, &[("traceparent", SAMPLED)]].concat();
        let sent = stage.request(&post(Direction::Inbound, "/hook"), &fields, b"anything");
        assert_eq!((sent.spans.len(), sent.edited), (1, false), "{form}");
        assert_eq!(place(sent.own()), consumer("shipping process"), "{form}");
        assert_eq!(links(sent.own()), [ids(SAMPLED)]);
        let own = context(sent.own(), "03");
        assert_eq!(value(&sent.headers, "traceparent"), own);
        for name in own_members {
            assert_eq!(value(&sent.headers, name), own);
            assert_eq!(value(&sent.headers, "ce-origintraceparent"), HOP);
            assert_eq!(value(&sent.headers, "x-operation-name"), "checkout");
            check_attributes(sent.own(), EVENT_ATTRIBUTES);
        }
        check_attributes(
            sent.own(),
            &[
                ("messaging.message.id", "m1"),
                ("messaging.gcp_pubsub.message.ordering_key", "k"),
                ("messaging.gcp_pubsub.message.delivery_attempt", "2"),
                ("messaging.destination.subscription.name", "shipping"),
                ("throughline.message.age_ms", "5000"),
            ],
        );
    }
}

#[test]
fn an_unwrapped_structured_event_has_its_hop_in_the_head() {
    let event = format!(r#"{{{EVENT},"traceparent":"{FOREIGN}"}}"#);
    let cloud = ("content-type", "application/cloudevents+json");
    for (hop, parent, linked) in [(Some(HOP), PRODUCER, true), (None, "8888888888888888", false)] {
        let mut stage = Stage::new();
        let more = hop.map(|hop| ("googclient_traceparent", hop));
        let fields: Vec<_> = METADATA.iter().copied().chain(more).chain([cloud]).collect();
        let sent = stage.request(&post(Direction::Inbound, "/hook"), &fields, event.as_bytes());
        assert_eq!((sent.own().name.as_str(), parent_of(sent.own()).as_str()), ("shipping process", parent));
        assert_eq!(links(sent.own()).contains(&ids(FOREIGN)), linked);
        check_attributes(sent.own(), &[("messaging.message.id", "m1"), ("cloudevents.event_id", "e1")]);
        let own = value(&sent.headers, "traceparent");
        let expected = [["origintraceparent", "-", FOREIGN], ["traceparent", FOREIGN, own]];
        assert_eq!(changes(&event, sent.text()), expected);
    }
}

#[test]
fn an_unwrapped_push_without_metadata_is_what_its_event_says() {
    let event: Fields<'_> = &[
        ("ce-specversion", "1.0"),
        ("ce-id", "e1"),
        ("ce-source", "/shop"),
        ("ce-type", "order.placed"),
        ("ce-traceparent", HOP),
    ];
    let sent = Stage::new().request(&post(Direction::Inbound, "/hook"), event, b"anything");
    assert_eq!(place(sent.own()), consumer("order.placed process"));
    assert_eq!(text(sent.own(), "messaging.system"), "-");
    // Without an event in the head nothing tells it from any other request.
    let sent = Stage::new().request(&post(Direction::Inbound, "/hook"), &[], b"anything");
    assert_eq!((sent.own().kind(), sent.edited), (SpanKind::Server, false));
}

#[test]
fn a_bare_push_of_a_structured_event_is_that_event() {
    let event = format!(r#"{{{EVENT},"traceparent":"{HOP}","operationname":"checkout"}}"#);
    let sent = Stage::new().inbound(&[], &event);
    assert_eq!(place(sent.own()), consumer("order.placed process"));
    let own = context(sent.own(), "03");
    assert_eq!(changes(&event, sent.text()), [["origintraceparent", "-", HOP], ["traceparent", HOP, &own]]);
    assert_eq!(value(&sent.headers, "traceparent"), own);
    assert_eq!(value(&sent.headers, "x-operation-name"), "checkout");
}

#[test]
fn daprs_trace_id_and_values_of_any_kind_never_fail() {
    for (members, parent) in [
        (format!(r#""traceid":"{HOP}""#), PRODUCER),
        (format!(r#""traceid":"{FOREIGN}","traceparent":"{HOP}""#), PRODUCER),
        (format!(r#""traceid":7,"traceparent":"{HOP}""#), PRODUCER),
        (r#""traceparent":7,"tracestate":[],"operationname":{},"origintraceparent":null"#.to_owned(), ""),
        (r#""traceparent":null,"traceid":true"#.to_owned(), ""),
        (r#""traceparent":"","traceid":"00-0-0-0""#.to_owned(), ""),
    ] {
        let event = format!("{{{EVENT},{members}}}");
        let sent = Stage::new().inbound(&[], &event);
        assert_eq!(
            (sent.own().kind(), parent_of(sent.own()).as_str()),
            (SpanKind::Consumer, parent),
            "{members}"
        );
        assert_eq!(leaves(sent.text())["traceparent"], context(sent.own(), "03"), "{members}");
    }
    for kind in ["null", "7", "true", "[]", "{}", "\"\""] {
        let sent = Stage::new().push(&[], &with_attributes(&format!(r#""googclient_traceparent":{kind}"#)));
        assert_eq!((sent.own().kind(), parent_of(sent.own()).as_str()), (SpanKind::Consumer, ""), "{kind}");
        let attribute = &leaves(sent.text())["message.attributes.googclient_traceparent"];
        assert_eq!(*attribute, context(sent.own(), "03"));
    }
}

#[test]
fn preserve_places_the_span_and_leaves_the_message() {
    let there = format!(r#","ce-traceparent":"{HOP}","googclient_traceparent":"{HOP}""#);
    let mut stage = Stage::with(|config| config.event_context = EventContext::Preserve);
    let sent = stage.push(&[], &binary(&there));
    assert_eq!((sent.edited, place(sent.own())), (false, consumer("shipping process")));
    assert_eq!(value(&sent.headers, "traceparent"), context(sent.own(), "03"));
}

#[test]
fn the_users_tracestate_and_baggage_come_through() {
    let many: Vec<String> = (0..70).map(|number| format!("k{number}=v")).collect();
    let full = many.join(",");
    let message =
        with_attributes(&format!(r#""googclient_traceparent":"{SAMPLED}","operationname":"checkout""#));
    for baggage in ["user=u1", &full] {
        let mut stage = Stage::new();
        let fields = &[("traceparent", SAMPLED), ("tracestate", "vendor=1"), ("baggage", baggage)];
        let sent = stage.push(fields, &message);
        let own = hex(&sent.own().span_id);
        assert_eq!(
            value(&sent.headers, "tracestate"),
            format!("tl={own},vendor=1"),
            "the producer's is the transport's"
        );
        let told = value(&sent.headers, "baggage");
        assert!(told.starts_with(baggage), "no member of the user's is lost: {told}");
        assert_eq!(value(&sent.headers, "x-operation-name"), "checkout");
    }
    // Another trace's list is not this one's; the event brings its own, without another pod's member.
    let event = format!(r#","ce-traceparent":"{HOP}","ce-tracestate":"other=2,tl=00000000000000aa""#);
    let sent = Stage::new().push(&[("traceparent", SAMPLED), ("tracestate", "vendor=1")], &binary(&event));
    let own = hex(&sent.own().span_id);
    assert_eq!(value(&sent.headers, "tracestate"), format!("tl={own},other=2"));
    assert_eq!(sent.own().trace_state, "other=2");
}

#[test]
fn texts_of_events_are_cut_where_the_user_says() {
    let mut stage = Stage::with(|config| config.attribute_bytes_max = Some(5));
    let sent = stage.push(&[], &binary(""));
    check_attributes(sent.own(), &[("cloudevents.event_type", "order"), ("cloudevents.event_id", "e1")]);
}
