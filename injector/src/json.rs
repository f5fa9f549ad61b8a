//! Reading raw JSON without a panic and without a type: what is missing is `None`, what is of another kind too.
//! Must never change a value.

use serde_json::Value;

/// The text at a pointer such as `/metadata/name`.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

/// The items of the list at a pointer; none where there is no list.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text under a key of a map such as `labels`. The key may hold slashes.
pub fn entry<'a>(value: &'a Value, pointer: &str, key: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_object()?.get(key)?.as_str()
}

/// The pairs of a map of texts; others are left out.
pub fn pairs<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = value.pointer(pointer).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// One part of a JSON pointer (RFC 6901 section 3).
pub fn escaped(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}
