//! The functions of the proxy-wasm ABI 0.2.1 as the host offers them: numbers, pointers and lengths. Bytes only,
//! and every answer a status: the wrappers of the `proxy-wasm` crate end the whole VM on a status that they do
//! not expect, or on a header value that is not UTF-8. Nothing but `host.rs` may use this.

#![expect(unsafe_code, reason = "the host is reached by raw pointers, here and nowhere else")]

use std::ptr;

/// What the host said; 0 is well.
type Status = u32;
const OK: Status = 0;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, message: *const u8, bytes: usize) -> Status;
    fn proxy_set_tick_period_milliseconds(period: u32) -> Status;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, bytes: *mut usize) -> Status;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_bytes: usize,
        data: *mut *mut u8,
        bytes: *mut usize,
    ) -> Status;
    fn proxy_replace_header_map_value(
        map: u32,
        key: *const u8,
        key_bytes: usize,
        value: *const u8,
        value_bytes: usize,
    ) -> Status;
    fn proxy_remove_header_map_value(map: u32, key: *const u8, key_bytes: usize) -> Status;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        bytes_max: usize,
        data: *mut *mut u8,
        bytes: *mut usize,
    ) -> Status;
    fn proxy_set_buffer_bytes(
        buffer: u32,
        start: usize,
        replaced: usize,
        data: *const u8,
        bytes: usize,
    ) -> Status;
    fn proxy_get_property(
        path: *const u8,
        path_bytes: usize,
        data: *mut *mut u8,
        bytes: *mut usize,
    ) -> Status;
    fn proxy_get_shared_data(
        key: *const u8,
        key_bytes: usize,
        data: *mut *mut u8,
        bytes: *mut usize,
        version: *mut u32,
    ) -> Status;
    fn proxy_set_shared_data(
        key: *const u8,
        key_bytes: usize,
        data: *const u8,
        bytes: usize,
        version: u32,
    ) -> Status;
    fn proxy_define_metric(kind: u32, name: *const u8, bytes: usize, id: *mut u32) -> Status;
    fn proxy_increment_metric(id: u32, by: i64) -> Status;
    fn proxy_continue_stream(stream: u32) -> Status;
    fn proxy_set_effective_context(context: u32) -> Status;
    fn proxy_get_status(code: *mut u32, data: *mut *mut u8, bytes: *mut usize) -> Status;
    fn proxy_done() -> Status;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_bytes: usize,
        headers: *const u8,
        headers_bytes: usize,
        body: *const u8,
        body_bytes: usize,
        trailers: *const u8,
        trailers_bytes: usize,
        timeout_millis: u32,
        token: *mut u32,
    ) -> Status;
    fn proxy_grpc_call(
        target: *const u8,
        target_bytes: usize,
        service: *const u8,
        service_bytes: usize,
        method: *const u8,
        method_bytes: usize,
        metadata: *const u8,
        metadata_bytes: usize,
        message: *const u8,
        message_bytes: usize,
        timeout_millis: u32,
        token: *mut u32,
    ) -> Status;
}

/// Takes over bytes that the host put into memory of ours, by our own allocator.
fn take(data: *mut u8, bytes: usize) -> Vec<u8> {
    if data.is_null() || bytes == 0 {
        return Vec::new();
    }
    // SAFETY: the host got these bytes from `proxy_on_memory_allocate`, which hands out a boxed slice of exactly
    // this length, and they are handed to us once.
    unsafe { Vec::from_raw_parts(data, bytes, bytes) }
}

/// Runs a call that gives bytes.
fn given(call: impl FnOnce(*mut *mut u8, *mut usize) -> Status) -> Option<Vec<u8>> {
    let (mut data, mut bytes) = (ptr::null_mut(), 0);
    (call(&mut data, &mut bytes) == OK).then(|| take(data, bytes))
}

pub(super) fn log(level: u32, message: &str) {
    // SAFETY: pointer and length are those of a live slice.
    unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

pub(super) fn tick_every(millis: u32) -> bool {
    // SAFETY: no pointers.
    unsafe { proxy_set_tick_period_milliseconds(millis) == OK }
}

pub(super) fn map(map: u32) -> Option<Vec<u8>> {
    // SAFETY: both pointers are those of live variables.
    given(|data, bytes| unsafe { proxy_get_header_map_pairs(map, data, bytes) })
}

pub(super) fn map_value(map: u32, key: &str) -> Option<Vec<u8>> {
    // SAFETY: pointers and lengths are those of live variables.
    given(|data, bytes| unsafe { proxy_get_header_map_value(map, key.as_ptr(), key.len(), data, bytes) })
}

pub(super) fn set_map_value(map: u32, key: &str, value: &[u8]) -> bool {
    // SAFETY: pointers and lengths are those of live slices.
    unsafe { proxy_replace_header_map_value(map, key.as_ptr(), key.len(), value.as_ptr(), value.len()) == OK }
}

pub(super) fn remove_map_value(map: u32, key: &str) {
    // SAFETY: pointer and length are those of a live slice.
    unsafe { proxy_remove_header_map_value(map, key.as_ptr(), key.len()) };
}

pub(super) fn buffer(buffer: u32, start: usize, bytes_max: usize) -> Option<Vec<u8>> {
    // SAFETY: both pointers are those of live variables.
    given(|data, bytes| unsafe { proxy_get_buffer_bytes(buffer, start, bytes_max, data, bytes) })
}

pub(super) fn set_buffer(buffer: u32, start: usize, replaced: usize, value: &[u8]) -> bool {
    // SAFETY: pointer and length are those of a live slice.
    unsafe { proxy_set_buffer_bytes(buffer, start, replaced, value.as_ptr(), value.len()) == OK }
}

/// `path` has its parts separated by zero bytes.
pub(super) fn property(path: &[u8]) -> Option<Vec<u8>> {
    // SAFETY: pointers and lengths are those of live variables.
    given(|data, bytes| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, bytes) })
}

pub(super) fn shared(key: &str) -> Option<(Vec<u8>, u32)> {
    let mut version = 0;
    // SAFETY: pointers and lengths are those of live variables.
    let value = given(|data, bytes| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, bytes, &mut version)
    });
    value.map(|value| (value, version))
}

/// `version` 0 writes over whatever is there.
pub(super) fn set_shared(key: &str, value: &[u8], version: u32) -> bool {
    // SAFETY: pointers and lengths are those of live slices.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), version) == OK }
}

pub(super) fn define_metric(kind: u32, name: &str) -> Option<u32> {
    let mut id = 0;
    // SAFETY: pointers and lengths are those of live variables.
    let status = unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) };
    (status == OK).then_some(id)
}

pub(super) fn add_to_metric(id: u32, by: i64) -> bool {
    // SAFETY: no pointers.
    unsafe { proxy_increment_metric(id, by) == OK }
}

pub(super) fn go_on(stream: u32) -> bool {
    // SAFETY: no pointers.
    unsafe { proxy_continue_stream(stream) == OK }
}

pub(super) fn speak_for(context: u32) -> bool {
    // SAFETY: no pointers.
    unsafe { proxy_set_effective_context(context) == OK }
}

pub(super) fn call_status() -> Option<(u32, Vec<u8>)> {
    let mut code = 0;
    // SAFETY: all pointers are those of live variables.
    let message = given(|data, bytes| unsafe { proxy_get_status(&mut code, data, bytes) });
    message.map(|message| (code, message))
}

pub(super) fn done() {
    // SAFETY: no pointers.
    unsafe { proxy_done() };
}

/// `headers` and `trailers` are lists as the host has them. Gives the call's token.
pub(super) fn call_http(
    cluster: &str,
    headers: &[u8],
    body: &[u8],
    trailers: &[u8],
    timeout_millis: u32,
) -> Option<u32> {
    let mut token = 0;
    // SAFETY: pointers and lengths are those of live variables.
    let status = unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body.as_ptr(),
            body.len(),
            trailers.as_ptr(),
            trailers.len(),
            timeout_millis,
            &mut token,
        )
    };
    (status == OK).then_some(token)
}

/// `target` is a `GrpcService`, `metadata` a list as the host has them. Gives the call's token.
pub(super) fn call_grpc(
    target: &str,
    service: &str,
    method: &str,
    metadata: &[u8],
    message: &[u8],
    timeout_millis: u32,
) -> Option<u32> {
    let mut token = 0;
    // SAFETY: pointers and lengths are those of live variables.
    let status = unsafe {
        proxy_grpc_call(
            target.as_ptr(),
            target.len(),
            service.as_ptr(),
            service.len(),
            method.as_ptr(),
            method.len(),
            metadata.as_ptr(),
            metadata.len(),
            message.as_ptr(),
            message.len(),
            timeout_millis,
            &mut token,
        )
    };
    (status == OK).then_some(token)
}
