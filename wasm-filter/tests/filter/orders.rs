//! Callbacks in every order that Envoy may choose, by a seed: several streams at once, both plugins, a collector
//! that does what it likes. Whatever happens, nothing traps, nothing hangs, and the books end even.

use crate::host::*;
use crate::scene::*;

/// Random numbers by a seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// From 0 to one less than `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// How far a half has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Nothing,
    Body,
    End,
}

/// A stream that is open.
struct Open {
    id: u32,
    request: At,
    response: At,
    /// Every byte that was sent.
    bytes: [Vec<u8>; 2],
    logged: bool,
}

const BODIES: [&[u8]; 8] = [
    b"",
    b"{",
    b"}",
    b"{\"message\":{\"data\":\"aGk=\"},\"subscription\":\"projects/p/subscriptions/s\"}",
    b"{\"messages\":[{\"data\":\"aGk=\"}]}",
    b"\0\0\0\0\x02hi",
    b"\0\0\0\0",
    b"\xff\xfe\xfd",
];

fn head(dice: &mut Dice) -> Fields {
    let paths = [
        "/",
        "/push",
        "/v1/projects/p/topics/t:publish",
        "/v1/projects/p/subscriptions/s:pull",
        "/google.pubsub.v1.Publisher/Publish",
        "/google.pubsub.v1.Subscriber/Pull",
        "/google.pubsub.v1.Subscriber/StreamingPull",
        "/shop.Cart/Add",
    ];
    let path = dice.pick(&paths);
    let mut head = request(dice.pick(&["GET", "POST", "CONNECT", "BREW"]), path, &[]);
    let kinds = ["application/json", "application/grpc", "application/cloudevents+json", "text/plain"];
    head.extend(fields(&[("content-type", dice.pick(&kinds))]));
    for (name, value) in [
        ("traceparent", SAMPLED),
        ("traceparent", UNSAMPLED),
        ("traceparent", "00-nonsense"),
        ("tracestate", "vendor=1,tl=a1b2c3d4e5f60718"),
        ("x-operation-name", "checkout"),
        ("expect", "100-continue"),
        ("content-encoding", "gzip"),
        ("content-length", "30"),
        ("content-length", "99999999"),
    ] {
        if dice.below(6) == 0 {
            head.extend(fields(&[(name, value)]));
        }
    }
    head
}

/// One step of one half.
fn step(vm: &mut Vm, dice: &mut Dice, open: &mut Open, side: Side) {
    let at = if side == Side::Request { &mut open.request } else { &mut open.response };
    match *at {
        At::Nothing => {
            let end = dice.below(3) == 0;
            let head = match side {
                Side::Request => head(dice),
                Side::Response => {
                    let status = dice.pick(&["200", "204", "404", "503", "x"]);
                    answer(status, &[("content-type", dice.pick(&["application/json", "application/grpc"]))])
                }
            };
            vm.head(open.id, side, head, end);
            *at = if end { At::End } else { At::Body };
        }
        At::Body if dice.below(6) == 0 => {
            vm.trailers(open.id, side, fields(&[("grpc-status", dice.pick(&["0", "14", "x"]))]));
            *at = At::End;
        }
        At::Body => {
            let piece = dice.pick(&BODIES);
            let end = dice.below(4) == 0;
            open.bytes[side as usize].extend_from_slice(piece);
            vm.body(open.id, side, piece, end);
            if end {
                *at = At::End;
            }
        }
        At::End => {}
    }
}

/// The end of a stream: logged or not.
fn close(vm: &mut Vm, dice: &mut Dice, open: &mut Open) {
    if dice.below(3) == 0 {
        let flags = dice.pick(&[0i64, 0x4, 0x20, 0x40, 0x4000, i64::MIN, -1]);
        vm.stream(open.id).properties.insert(b"response\0flags".to_vec(), property_number(flags));
    }
    if dice.below(8) > 0 && !open.logged {
        vm.log(open.id);
    }
    let stream = vm.delete(open.id);
    for (half, bytes) in stream.halves.iter().zip(&open.bytes) {
        if half.ended {
            assert!(half.head.is_some() && half.sent.len() >= bytes.len(), "bytes were lost: {half:?}");
        }
    }
}

fn order(vm: &mut Vm, roots: [u32; 2], dice: &mut Dice) {
    let mut streams: Vec<Open> = Vec::new();
    for _ in 0..40 {
        match dice.below(12) {
            0 | 1 if streams.len() < 6 => {
                let id = vm.open(dice.pick(&roots));
                let bytes = [Vec::new(), Vec::new()];
                streams.push(Open { id, request: At::Nothing, response: At::Nothing, bytes, logged: false });
            }
            2 => vm.pass([1, 30, 200, 1_500][dice.below(4)]),
            3 => {
                for call in vm.calls() {
                    match dice.below(4) {
                        0 => vm.refuse_grpc(&call, 14, b"\xff"),
                        1 => vm.refuse_grpc(&call, 3, b""),
                        2 => vm.answer_grpc(&call, b"\x0a\x02\x08\x01"),
                        _ => take(vm, &call),
                    }
                }
            }
            4 => vm.state().dispatch = dice.pick(&[status::OK, status::OK, status::INTERNAL_FAILURE]),
            5 if !streams.is_empty() => {
                let place = dice.below(streams.len());
                close(vm, dice, &mut streams.swap_remove(place));
            }
            6 if !streams.is_empty() => {
                // Envoy may log a stream before its end (access log on start, or each minute).
                let place = dice.below(streams.len());
                let open = &mut streams[place];
                if dice.below(4) == 0 {
                    vm.log(open.id);
                    open.logged = true;
                }
            }
            _ if !streams.is_empty() => {
                let place = dice.below(streams.len());
                let open = &mut streams[place];
                let side = match (open.request, dice.below(3)) {
                    (At::Nothing, _) => Side::Request,
                    (_, 0) => Side::Response,
                    _ => Side::Request,
                };
                step(vm, dice, open, side);
            }
            _ => {}
        }
    }
    for mut open in streams {
        close(vm, dice, &mut open);
    }
}

/// Twenty orders for each seed.
fn orders_end_well(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut vm = Envoy::new().worker();
        let more = "hold-headers: on\notel-bsp-max-export-batch-size: 5\notel-bsp-max-queue-size: 20\n";
        let roots = ["inbound", "outbound"].map(|side| vm.plugin(&configuration(side, more)));
        for part in 0..20 {
            order(&mut vm, roots, &mut Dice(1_000 * seed + part));
            vm.envoy.books();
        }
        vm.state().dispatch = status::OK;
        for call in vm.calls() {
            take(&mut vm, &call);
        }
        exchange(&mut vm, roots[0], request("GET", "/well", &[]), "200");
        let spans = collect_all(&mut vm);
        assert!(spans.iter().any(|span| span.get("url.path") == "/well"), "seed {seed}");
        let books = vm.envoy.books();
        assert_eq!(books.held, 0, "seed {seed}: {books:?}");
        assert!(vm.memory_bytes() < 16 * 1024 * 1024, "seed {seed}: {} bytes", vm.memory_bytes());
    }
}

// Two thousand orders, in parts that run side by side.

#[test]
fn orders_of_events_end_well_first_part() {
    orders_end_well(0..25);
}

#[test]
fn orders_of_events_end_well_second_part() {
    orders_end_well(25..50);
}

#[test]
fn orders_of_events_end_well_third_part() {
    orders_end_well(50..75);
}

#[test]
fn orders_of_events_end_well_fourth_part() {
    orders_end_well(75..100);
}
