//! W3C Trace Context, level 2, from the caller's end: an application that copies the headers it got, behind
//! the sidecar, with the outbound port as its proxy. What the next hop receives is held against the standard.

use throughline_tests::ask::BOTH;
use throughline_tests::prelude::*;
use throughline_tests::service::Seen;
use throughline_tests::service::calling_over;

const T: &str = "12345678901234567890123456789012";
const S: &str = "1234567890123456";

/// What the next hop must receive.
enum Expect {
    /// The caller's trace, with these flags and these members of `tracestate`.
    Continues(&'static str, &'static [&'static str]),
    /// The caller's trace; the members may be kept or not.
    ContinuesWithAnyState,
    /// Another trace, without the caller's `tracestate`.
    Restarts,
}

use Expect::{Continues, ContinuesWithAnyState, Restarts};

/// One row: what it is about, the caller's header lines, what must arrive.
type Row = (&'static str, Vec<(&'static str, Vec<u8>)>, Expect);

fn parent(value: &str) -> (&'static str, Vec<u8>) {
    ("traceparent", value.replace("<T>", T).replace("<S>", S).into_bytes())
}

fn state(value: &str) -> (&'static str, Vec<u8>) {
    ("tracestate", value.as_bytes().to_vec())
}

fn traceparent_rows() -> Vec<Row> {
    let valid = || parent("00-<T>-<S>-01");
    let only = |about, value: &str, expect| (about, vec![parent(value), state("foo=1")], expect);
    vec![
        ("nothing was sent", vec![], Restarts),
        only("sampled", "00-<T>-<S>-01", Continues("01", &["foo=1"])),
        only("not sampled", "00-<T>-<S>-00", Continues("00", &["foo=1"])),
        only("random and sampled", "00-<T>-<S>-03", Continues("03", &["foo=1"])),
        only("random and not sampled", "00-<T>-<S>-02", Continues("02", &["foo=1"])),
        only("unknown flags are not sent on", "00-<T>-<S>-ff", Continues("03", &["foo=1"])),
        only("unknown flags without the known ones", "00-<T>-<S>-fc", Continues("00", &["foo=1"])),
        only("version ff", "ff-<T>-<S>-01", Restarts),
        only("version cc of 55 bytes", "cc-<T>-<S>-01", Continues("01", &["foo=1"])),
        only("version cc with more fields", "cc-<T>-<S>-01-what-comes", Continues("01", &["foo=1"])),
        only("version cc with a dash at its end", "cc-<T>-<S>-01-", Continues("01", &["foo=1"])),
        only("version cc with something else after the flags", "cc-<T>-<S>-01.what-comes", Restarts),
        only("version cc with three digits of flags", "cc-<T>-<S>-011", Restarts),
        only("version 01 with more fields", "01-<T>-<S>-00-x", Continues("00", &["foo=1"])),
        only("version 00 with more fields", "00-<T>-<S>-01-x", Restarts),
        only("version 00 with a dash at its end", "00-<T>-<S>-01-", Restarts),
        only("a version of one digit", "0-<T>-<S>-01", Restarts),
        only("a version of three digits", "000-<T>-<S>-01", Restarts),
        only("a version with a dot", ".0-<T>-<S>-01", Restarts),
        only("a version in capitals", "CC-<T>-<S>-01", Restarts),
        only("no version", "<T>-<S>-01", Restarts),
        only("a trace id of zeros", "00-00000000000000000000000000000000-<S>-01", Restarts),
        only("a trace id in capitals", "00-ABCDEF78901234567890123456789012-<S>-01", Restarts),
        only("a trace id with a dot", "00-.2345678901234567890123456789012-<S>-01", Restarts),
        only("a trace id too short", "00-1234567890123456789012345678901-<S>-01", Restarts),
        only("a trace id too long", "00-123456789012345678901234567890123-<S>-01", Restarts),
        only("a trace id of 20 bytes", "00-1234567890123456789012345678901234567890-<S>-01", Restarts),
        only("a parent id of zeros", "00-<T>-0000000000000000-01", Restarts),
        only("a parent id in capitals", "00-<T>-ABCDEF7890123456-01", Restarts),
        only("a parent id with a dot", "00-<T>-.234567890123456-01", Restarts),
        only("a parent id too short", "00-<T>-123456789012345-01", Restarts),
        only("a parent id too long", "00-<T>-12345678901234567-01", Restarts),
        only("no flags", "00-<T>-<S>", Restarts),
        only("empty flags", "00-<T>-<S>-", Restarts),
        only("flags of one digit", "00-<T>-<S>-1", Restarts),
        only("flags of three digits", "00-<T>-<S>-001", Restarts),
        only("flags of two bytes", "00-<T>-<S>-0101", Restarts),
        only("flags with a dot", "00-<T>-<S>-.0", Restarts),
        only("flags with a sign", "00-<T>-<S>-+1", Restarts),
        only("flags in capitals", "00-<T>-<S>-0A", Restarts),
        only("55 bytes with fewer dashes", "00-<T>0<S>001", Restarts),
        only("00- and 52 zeros", "00-0000000000000000000000000000000000000000000000000000", Restarts),
        only("underscores for dashes", "00_<T>_<S>_01", Restarts),
        only("an empty value", "", Restarts),
        only("two in one line", "00-<T>-<S>-01,00-<T>-<S>-01", Restarts),
        only("white space inside", "00 -<T>-<S>-01", Restarts),
        ("two lines", vec![valid(), valid(), state("foo=1")], Restarts),
        ("two lines, the first of which is bad", vec![parent("bad"), valid(), state("foo=1")], Restarts),
        ("two lines, the second of which is bad", vec![valid(), parent("bad"), state("foo=1")], Restarts),
        (
            "bytes that are no text",
            vec![("traceparent", [b"00-\xff\xfe".as_slice(), &[b'1'; 50]].concat())],
            Restarts,
        ),
        ("another name", vec![("trace-parent", valid().1), ("trace.parent", valid().1)], Restarts),
    ]
}

fn tracestate_rows() -> Vec<Row> {
    let valid = || parent("00-<T>-<S>-01");
    let with = |about, value: &str, expect| (about, vec![valid(), state(value)], expect);
    let lines = |about, values: &[&str], expect| {
        let lines = values.iter().map(|value| state(value));
        (about, std::iter::once(valid()).chain(lines).collect(), expect)
    };
    let members = |count: usize| (0..count).map(|number| format!("m{number}=1")).collect::<Vec<_>>();
    const ALL_32: [&str; 32] = [
        "m0=1", "m1=1", "m2=1", "m3=1", "m4=1", "m5=1", "m6=1", "m7=1", "m8=1", "m9=1", "m10=1", "m11=1",
        "m12=1", "m13=1", "m14=1", "m15=1", "m16=1", "m17=1", "m18=1", "m19=1", "m20=1", "m21=1", "m22=1",
        "m23=1", "m24=1", "m25=1", "m26=1", "m27=1", "m28=1", "m29=1", "m30=1", "m31=1",
    ];
    let key = |length: usize| "k".repeat(length);
    let value = |length: usize| format!("foo={}", "v".repeat(length));
    let broken = |about, text: &str| with(about, text, Continues("01", &[]));
    vec![
        ("a state without a parent", vec![state("foo=1")], Restarts),
        ("a state with a bad parent", vec![parent("00-<T>"), state("foo=1")], Restarts),
        with("two members keep their order", "foo=1,bar=2", Continues("01", &["foo=1", "bar=2"])),
        lines("two lines are joined in order", &["foo=1", "bar=2"], Continues("01", &["foo=1", "bar=2"])),
        lines(
            "three lines of several members",
            &["a=1,b=2", "c=3", "d=4,e=5"],
            Continues("01", &["a=1", "b=2", "c=3", "d=4", "e=5"]),
        ),
        lines("an empty line among others", &["foo=1", "", "bar=2"], Continues("01", &["foo=1", "bar=2"])),
        with("empty members", "foo=1,,bar=2,", Continues("01", &["foo=1", "bar=2"])),
        with("white space between members", "foo=1 \t , \t bar=2", Continues("01", &["foo=1", "bar=2"])),
        with("an empty state", "", Continues("01", &[])),
        with("a key twice", "foo=1,foo=2", ContinuesWithAnyState),
        with("keys with all that is allowed", "a0_-*/=1,1st=2", Continues("01", &["a0_-*/=1", "1st=2"])),
        with("a key of a tenant", "fw529a3039@dt=1", Continues("01", &["fw529a3039@dt=1"])),
        with("values with signs and blanks", "foo=a b!~:;|", Continues("01", &["foo=a b!~:;|"])),
        with("32 members", &members(32).join(","), Continues("01", &ALL_32)),
        broken("33 members", &members(33).join(",")),
        broken("a key in capitals", "FOO=1"),
        broken("a key with a blank", "foo =1"),
        broken("a key with a dot", "foo.bar=1"),
        broken("a key that begins with a sign", "@foo=1,bar=2"),
        broken("a key without a value", "foo"),
        broken("an empty key", "=1"),
        broken("an empty value", "foo=,bar=3"),
        broken("two equals signs", "foo=bar=baz"),
        broken("a good member before a bad one", "bar=2,foo"),
        with("a key of 256", &format!("{}=1", key(256)), ContinuesWithAnyState),
        broken("a key of 257", &format!("{}=1", key(257))),
        with("a value of 256", &value(256), ContinuesWithAnyState),
        broken("a value of 257", &value(257)),
        ("bytes that are no text", vec![valid(), ("tracestate", b"foo=\xff".to_vec())], Continues("01", &[])),
    ]
}

/// Sends one row and returns what the next hop received.
async fn sent_on(web: &Pod, next: &Service, lines: &[(&'static str, Vec<u8>)], protocol: Protocol) -> Seen {
    let before = next.seen().len();
    let ask = lines
        .iter()
        .fold(Ask::get(web.url("/")).over(protocol), |ask, (name, value)| ask.header(name, value));
    let answer = ask.send().await;
    assert_eq!(answer.status, 200, "{lines:?}");
    let seen = next.seen();
    assert_eq!(seen.len(), before + 1);
    seen.into_iter().next_back().expect("one request")
}

fn check_row(about: &str, protocol: Protocol, expect: &Expect, seen: &Seen) {
    let (arrived, members) = (seen.traceparent(), seen.tracestate());
    let what = format!("{about} ({protocol:?}): {arrived:?} {members:?}");
    assert_ne!(arrived.span, S, "the next hop must not take the caller for its parent: {what}");
    assert!(!members.iter().any(|member| member.starts_with("tl=")), "ours stays at home: {what}");
    match expect {
        Continues(flags, state) => {
            assert_eq!((arrived.trace.as_str(), arrived.flags.as_str()), (T, *flags), "{what}");
            assert_eq!(members, *state, "{what}");
        }
        ContinuesWithAnyState => assert_eq!(arrived.trace, T, "{what}"),
        Restarts => {
            assert_ne!(arrived.trace, T, "{what}");
            assert!(members.is_empty(), "{what}");
        }
    }
}

async fn check_all(rows: Vec<Row>) {
    for protocol in BOTH {
        let mesh = Mesh::new().await;
        let next = Service::playing(answer(200, "")).await;
        let web = mesh.pod("web").runs(calling_over(protocol, next.url("/"), Copying::TraceContext)).await;
        for (about, lines, expect) in &rows {
            let seen = sent_on(&web, &next, lines, protocol).await;
            check_row(about, protocol, expect, &seen);
        }
        assert_connected(&mesh.end([web]).await, &[S]);
    }
}

#[tokio::test]
async fn every_traceparent_is_continued_or_restarted_as_the_standard_says() {
    check_all(traceparent_rows()).await;
}

#[tokio::test]
async fn every_tracestate_is_kept_or_dropped_as_the_standard_says() {
    check_all(tracestate_rows()).await;
}

#[tokio::test]
async fn at_least_512_characters_of_tracestate_are_carried() {
    let mesh = Mesh::new().await;
    let next = Service::playing(answer(200, "")).await;
    let web = mesh.pod("web").runs(calling_over(Protocol::H1, next.url("/"), Copying::TraceContext)).await;
    let members: Vec<_> = (0..16).map(|number| format!("m{number:02}={}", "v".repeat(27))).collect();
    let whole = members.join(",");
    assert_eq!(whole.len(), 511);
    let seen = sent_on(&web, &next, &[parent("00-<T>-<S>-01"), state(&whole)], Protocol::H1).await;
    assert_eq!(seen.tracestate(), members);
    mesh.end([web]).await;
}

#[tokio::test]
async fn names_count_in_any_case_and_white_space_around_values_does_not() {
    let mesh = Mesh::new().await;
    let next = Service::playing(answer(200, "")).await;
    let web = mesh.pod("web").runs(calling_over(Protocol::H1, next.url("/"), Copying::TraceContext)).await;
    let rows = ["TraceParent: <P>\r\nTraceState: foo=1", "TRACEPARENT:\t <P> \t\r\nTRACESTATE: \t foo=1 \t"];
    for (number, row) in rows.iter().enumerate() {
        let lines = row.replace("<P>", &format!("00-{T}-{S}-01"));
        let request = format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{lines}\r\n\r\n");
        throughline_tests::wire::exchange(web.sidecar.inbound(), request).await;
        let seen = next.seen().remove(number);
        check_row(row, Protocol::H1, &Continues("01", &["foo=1"]), &seen);
    }
    mesh.end([web]).await;
}

#[tokio::test]
async fn a_trace_that_we_start_says_that_its_id_is_random() {
    let mesh = Mesh::new().await;
    let next = Service::playing(answer(200, "")).await;
    let web = mesh.pod("web").runs(calling_over(Protocol::H1, next.url("/"), Copying::TraceContext)).await;
    let first = sent_on(&web, &next, &[], Protocol::H1).await.traceparent();
    let second = sent_on(&web, &next, &[], Protocol::H1).await.traceparent();
    assert_eq!((first.flags.as_str(), second.flags.as_str()), ("03", "03"));
    assert_ne!(first.trace, second.trace);
    mesh.end([web]).await;
}

#[tokio::test]
async fn several_calls_of_one_request_have_parents_of_their_own() {
    let mesh = Mesh::new().await;
    let next = Service::playing(answer(200, "")).await;
    let url = next.url("/");
    let web = mesh
        .pod("web")
        .runs(script(move |visit| {
            let (url, headers) = (url.clone(), visit.request.headers().clone());
            async move {
                for _ in 0..3 {
                    visit.outbound.send(Ask::get(&url).copied(Copying::TraceContext.from(&headers))).await;
                }
                throughline_tests::service::response(200, "")
            }
        }))
        .await;
    Ask::get(web.url("/")).header("traceparent", format!("00-{T}-{S}-01")).send().await;
    let mut spans: Vec<_> = next.seen().iter().map(|seen| seen.traceparent().span).collect();
    assert!(next.seen().iter().all(|seen| seen.traceparent().trace == T));
    spans.sort();
    spans.dedup();
    assert_eq!(spans.len(), 3, "one span per call");
    let spans = mesh.end([web]).await;
    assert_eq!(spans.len(), 4);
    assert_connected(&spans, &[S]);
}
