//! What Envoy calls: the exports of the module by their names in the proxy-wasm ABI 0.2.1. Hands each on to the context
//! that it is for. Must never trap: what is for a context that is not there, or comes while another one is served, goes
//! on untouched. The dispatcher of the `proxy-wasm` crate panics there, and keeps a tenth of a module in tables of
//! functions that nobody calls.

#![expect(
    unsafe_code,
    reason = "the host knows the exports by their names, and puts its bytes into memory of ours"
)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::host::Action;
use crate::root::Root;
use crate::stream::Stream;

/// Envoy numbers its contexts; no stranger chooses these keys.
#[derive(Default)]
struct ByNumber(u64);

impl Hasher for ByNumber {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // The upper bits tell one group of the table from another.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Streams = HashMap<u32, Box<Stream>, BuildHasherDefault<ByNumber>>;

thread_local! {
    static ROOTS: RefCell<Vec<(u32, Root)>> = const { RefCell::new(Vec::new()) };
    static STREAMS: RefCell<Streams> = const { RefCell::new(HashMap::with_hasher(BuildHasherDefault::new())) };
}

fn with_stream(context: u32, run: impl FnOnce(&mut Stream) -> Action) -> Action {
    STREAMS.with(|streams| match streams.try_borrow_mut() {
        Ok(mut streams) => streams.get_mut(&context).map_or(Action::Continue, |stream| run(stream)),
        Err(_) => Action::Continue,
    })
}

/// True where there is no such root context.
fn with_root(context: u32, run: impl FnOnce(&mut Root) -> bool) -> bool {
    ROOTS.with(|roots| {
        let Ok(mut roots) = roots.try_borrow_mut() else { return true };
        roots.iter_mut().find(|(id, _)| *id == context).is_none_or(|(_, root)| run(root))
    })
}

#[cfg(target_os = "wasi")]
unsafe extern "C" {
    fn __wasm_call_ctors();
}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: the host calls this once, before anything else.
    unsafe { __wasm_call_ctors() };
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Memory that the host fills, and `host.rs` takes over.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(bytes: usize) -> *mut u8 {
    Box::into_raw(Box::<[u8]>::new_uninit_slice(bytes)).cast()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context: u32, root: u32) {
    if root == 0 {
        ROOTS.with(|roots| {
            if let Ok(mut roots) = roots.try_borrow_mut() {
                roots.push((context, Root::new(context)));
            }
        });
        return;
    }
    with_root(root, |root| {
        let stream = root.stream(context);
        STREAMS.with(|streams| match (stream, streams.try_borrow_mut()) {
            (Some(stream), Ok(mut streams)) => streams.insert(context, Box::new(stream)).is_none(),
            (None, _) | (Some(_), Err(_)) => false,
        })
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(_: u32, _: usize) -> bool {
    true
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(context: u32, bytes: usize) -> bool {
    with_root(context, |root| root.configure(bytes))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(context: u32) {
    with_root(context, |root| {
        root.tick();
        true
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(context: u32, _: usize, end: bool) -> Action {
    with_stream(context, |stream| stream.request_head(end))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_body(context: u32, bytes: usize, end: bool) -> Action {
    with_stream(context, |stream| stream.request_body(bytes, end))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_trailers(context: u32, _: usize) -> Action {
    with_stream(context, Stream::request_trailers)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(context: u32, _: usize, end: bool) -> Action {
    with_stream(context, |stream| stream.response_head(end))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_body(context: u32, bytes: usize, end: bool) -> Action {
    with_stream(context, |stream| stream.response_body(bytes, end))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_trailers(context: u32, _: usize) -> Action {
    with_stream(context, Stream::response_trailers)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(context: u32, token: u32, _: usize, body_bytes: usize, _: usize) {
    with_root(context, |root| {
        root.answered_http(token, body_bytes);
        true
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive(context: u32, token: u32, bytes: usize) {
    with_root(context, |root| {
        root.answered_grpc(token, 0, bytes);
        true
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_close(context: u32, token: u32, status: u32) {
    with_root(context, |root| {
        root.answered_grpc(token, status, 0);
        true
    });
}

/// Of a stream: it is done when Envoy says so. A root context may ask for time.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_done(context: u32) -> bool {
    with_root(context, Root::done)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(context: u32) {
    with_stream(context, |stream| {
        stream.end();
        Action::Continue
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(context: u32) {
    // What ends with a context may reach others: nothing is borrowed meanwhile.
    let stream = STREAMS.with(|streams| streams.try_borrow_mut().ok()?.remove(&context));
    if stream.is_none() {
        let root = ROOTS.with(|roots| {
            let mut roots = roots.try_borrow_mut().ok()?;
            let at = roots.iter().position(|(id, _)| *id == context)?;
            Some(roots.swap_remove(at))
        });
        drop(root);
    }
    drop(stream);
}
