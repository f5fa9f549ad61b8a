//! What browsers send. Input: a line of `Cookie` up to the first zero byte, then a body of spans. The other cookies stay;
//! of a body nothing is taken but spans of the one trace that a page began, and no more than there may be.
#![no_main]
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::browser::{Config, Pages, Sent, Ticket, cut};
use throughline_core::exchange::Now;
use throughline_core::ids::{Ids, RandomIds};

const PARENT: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01";
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn cookies(line: &[u8]) -> Option<Ticket> {
    let (rest, ticket) = cut(line)?;
    assert!(rest.len() < line.len());
    assert_eq!(cut(&rest), None, "one look takes all of them");
    ticket
}

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let ticket = parts.next().and_then(cookies);
    let body = parts.next().unwrap_or_default();

    let config = Config { address_per_second: 1, per_second: 1, attribute_bytes_max: None };
    let pages = Pages::new(&config, 7);
    let mut ids = RandomIds::seeded([1, 2, 3, 4]);
    let now = Now { unix_nanos: 1_763_600_000_000_000_000, mono_nanos: 1 };
    let mut carrier = vec![
        ("sec-fetch-site".to_owned(), b"same-origin".to_vec()),
        ("sec-fetch-mode".to_owned(), b"navigate".to_vec()),
    ];
    if ticket.is_none() {
        carrier.push(("traceparent".to_owned(), PARENT.as_bytes().to_vec()));
    }
    let page = pages.arrive(&mut carrier, ticket, ADDRESS, now, &mut ids);
    assert!(page.is_some(), "the first one is within its share");
    pages.kept(page.map_or_else(|| ids.trace_id(), |page| page.trace_id));

    let mut batch = Batch::new(Bounds { queue_spans_max: 1000, chunk_spans_max: 1000, flush_after_ms: 0 });
    let sent = Sent { body, address: ADDRESS, agent: None, now };
    let taken = pages.take(&sent, &mut batch).unwrap_or_default();
    assert!(taken.taken <= 64);
    assert_eq!(batch.books().created, taken.taken);
    if let Some(chunk) = batch.poll_flush(now, true) {
        let trace = page.map(|page| *page.trace_id.bytes()).unwrap_or_default();
        let traces = chunk.bytes().windows(16).filter(|bytes| *bytes == trace).count();
        assert!(traces as u64 >= taken.taken, "every span is of the page's trace");
        let spans = chunk.spans();
        batch.settle(chunk, spans, Dropped::Failed);
    }
});
