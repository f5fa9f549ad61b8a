//! The built module itself: what it asks of its host, and how large it is.

use wasmi::{Engine, Module};

use crate::host::module_bytes;

/// What a module may weigh, stripped: it is fetched by every proxy of a mesh.
const MODULE_BYTES_MAX: usize = 400_000;

/// What the filter calls.
const IMPORTS: &[&str] = &[
    "env proxy_continue_stream",
    "env proxy_define_metric",
    "env proxy_done",
    "env proxy_get_buffer_bytes",
    "env proxy_get_header_map_pairs",
    "env proxy_get_header_map_value",
    "env proxy_get_property",
    "env proxy_get_shared_data",
    "env proxy_get_status",
    "env proxy_grpc_call",
    "env proxy_http_call",
    "env proxy_increment_metric",
    "env proxy_log",
    "env proxy_remove_header_map_value",
    "env proxy_replace_header_map_value",
    "env proxy_set_buffer_bytes",
    "env proxy_set_effective_context",
    "env proxy_set_shared_data",
    "env proxy_set_tick_period_milliseconds",
    "wasi_snapshot_preview1 clock_time_get",
    "wasi_snapshot_preview1 environ_get",
    "wasi_snapshot_preview1 environ_sizes_get",
    "wasi_snapshot_preview1 fd_write",
    "wasi_snapshot_preview1 proc_exit",
    "wasi_snapshot_preview1 random_get",
];

#[test]
fn the_module_asks_its_host_for_nothing_but_what_is_listed() {
    let engine = Engine::default();
    let module = Module::new(&engine, module_bytes()).unwrap();
    let found: Vec<String> =
        module.imports().map(|import| format!("{} {}", import.module(), import.name())).collect();
    let unknown: Vec<&String> = found.iter().filter(|one| !IMPORTS.contains(&one.as_str())).collect();
    assert!(unknown.is_empty(), "a host may not have these: {unknown:?}");
    let gone: Vec<&&str> = IMPORTS.iter().filter(|one| !found.iter().any(|other| other == **one)).collect();
    assert!(gone.is_empty(), "take these from the list, they are not imported any more: {gone:?}");
    assert!(module.get_export("proxy_abi_version_0_2_1").is_some(), "the version of the ABI");
}

#[test]
fn the_module_is_small() {
    let bytes = module_bytes().len();
    assert!(bytes <= MODULE_BYTES_MAX, "{bytes} bytes, want {MODULE_BYTES_MAX} at the most");
}
