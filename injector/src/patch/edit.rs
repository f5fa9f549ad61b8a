//! Operations of a JSON patch (RFC 6902), each tried on a copy as it is written, so that a patch that does not
//! apply is never sent. Must never write an operation that changes nothing.

use json_patch::PatchOperation;
use serde_json::{Value, json};

use crate::json::escaped;
use crate::pod::List;

/// A patch that is being written.
#[derive(Debug)]
pub(super) struct Edit {
    working: Value,
    operations: Vec<Value>,
}

impl Edit {
    pub(super) fn new(raw: &Value) -> Self {
        Self { working: raw.clone(), operations: Vec::new() }
    }

    pub(super) fn add(&mut self, pointer: &str, value: Value) -> Result<(), String> {
        self.operation(json!({"op": "add", "path": pointer, "value": value}))
    }

    pub(super) fn replace(&mut self, pointer: &str, value: Value) -> Result<(), String> {
        match self.working.pointer(pointer) {
            Some(there) if *there == value => Ok(()),
            _ => self.operation(json!({"op": "replace", "path": pointer, "value": value})),
        }
    }

    pub(super) fn remove(&mut self, pointer: &str) -> Result<(), String> {
        self.operation(json!({"op": "remove", "path": pointer}))
    }

    /// Puts containers into a list from this place on; makes the list where there is none.
    pub(super) fn insert(&mut self, list: List, at: usize, all: Vec<Value>) -> Result<(), String> {
        if all.is_empty() {
            return Ok(());
        }
        let pointer = format!("/spec/{}", list.name());
        if !self.working.pointer(&pointer).is_some_and(Value::is_array) {
            return self.add(&pointer, Value::Array(all));
        }
        for (offset, one) in all.into_iter().enumerate() {
            self.add(&format!("{pointer}/{}", at + offset), one)?;
        }
        Ok(())
    }

    /// Appends to a list of a container; makes the list where there is none.
    pub(super) fn append(&mut self, pointer: &str, value: Value) -> Result<(), String> {
        if self.working.pointer(pointer).is_some_and(Value::is_array) {
            self.add(&format!("{pointer}/-"), value)
        } else {
            self.add(pointer, json!([value]))
        }
    }

    pub(super) fn annotation(&mut self, key: &str, value: &str) -> Result<(), String> {
        if !self.working.get("metadata").is_some_and(Value::is_object) {
            self.add("/metadata", json!({}))?;
        }
        if !self.working.pointer("/metadata/annotations").is_some_and(Value::is_object) {
            return self.add("/metadata/annotations", json!({key: value}));
        }
        self.add(&format!("/metadata/annotations/{}", escaped(key)), json!(value))
    }

    fn operation(&mut self, operation: Value) -> Result<(), String> {
        apply(&mut self.working, std::slice::from_ref(&operation))?;
        self.operations.push(operation);
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<Value> {
        self.operations
    }
}

/// Applies operations as an API server does.
pub fn apply(document: &mut Value, operations: &[Value]) -> Result<(), String> {
    let read: Result<Vec<PatchOperation>, _> =
        operations.iter().map(|operation| serde_json::from_value(operation.clone())).collect();
    let read = read.map_err(|error| format!("the patch is none: {error}"))?;
    json_patch::patch_unsafe(document, &read).map_err(|error| format!("the patch does not apply: {error}"))
}
