//! A document as a small tree, whatever it was written in: JSON is read here, YAML by the host that has a reader
//! for it. Bounded in bytes, depth and entries; says nothing of what a document means.

use crate::decimal;
use crate::events::Untouched;
use crate::events::json::{Kind, Scanner, unescape};
use crate::limits::{CONTROL_BYTES_MAX, CONTROL_DEPTH_MAX};

/// One value of a document.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// `null`, or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// Values in order.
    List(Vec<Value>),
    /// Keys and values, in the order of the text.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// Reads a JSON text (RFC 8259). `Err` says what was expected.
    ///
    /// # Errors
    /// What would be right, in words that follow "want".
    pub fn json(text: &[u8]) -> Result<Self, &'static str> {
        if text.len() > CONTROL_BYTES_MAX {
            return Err("a document of 256 KiB at the most");
        }
        let wrong = |_: Untouched| "JSON";
        let mut scanner = Scanner::new(text).map_err(wrong)?;
        let value = read(&mut scanner, 0)?;
        scanner.finish().map_err(wrong)?;
        Ok(value)
    }

    /// The value as a mistake shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => decimal::shown(*value),
            Self::Text(text) => text.chars().take(100).flat_map(char::escape_debug).collect(),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

fn read(scanner: &mut Scanner<'_>, depth: usize) -> Result<Value, &'static str> {
    let wrong = |_: Untouched| "JSON";
    if depth > CONTROL_DEPTH_MAX {
        return Err("a document that is not nested so deeply");
    }
    match scanner.kind() {
        Kind::Object => {
            let (mut level, mut map) = (scanner.enter_object().map_err(wrong)?, Vec::new());
            while let Some(key) = scanner.next_key(&mut level).map_err(wrong)? {
                let key = unescape(key.text(scanner.text())).ok_or("JSON")?.into_owned();
                map.push((key, read(scanner, depth + 1)?));
            }
            Ok(Value::Map(map))
        }
        Kind::Array => {
            let (mut level, mut list) = (scanner.enter_array().map_err(wrong)?, Vec::new());
            while scanner.next_element(&mut level).map_err(wrong)? {
                list.push(read(scanner, depth + 1)?);
            }
            Ok(Value::List(list))
        }
        Kind::Text => {
            let text = scanner.skip().map_err(wrong)?.text(scanner.text());
            let bare = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
            Ok(Value::Text(unescape(bare).ok_or("JSON")?.into_owned()))
        }
        Kind::Scalar | Kind::Null => match scanner.skip().map_err(wrong)?.text(scanner.text()) {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            number => decimal::parse(number).map(Value::Number).ok_or("JSON"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_the_tree_that_it_says() {
        let text = br#" {"a":[1,-2.5e1,true,null,"x\u00e9\n"], "b":{}} "#;
        let number = Value::Number;
        assert_eq!(
            Value::json(text),
            Ok(Value::Map(vec![
                (
                    "a".into(),
                    Value::List(vec![
                        number(1.0),
                        number(-25.0),
                        Value::Bool(true),
                        Value::Null,
                        Value::Text("x\u{e9}\n".into())
                    ])
                ),
                ("b".into(), Value::Map(vec![])),
            ]))
        );
    }

    #[test]
    fn what_is_no_json_or_too_much_of_it_is_refused() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        let large = format!("\"{}\"", "x".repeat(CONTROL_BYTES_MAX));
        for bad in ["", "{", "{}x", "{\"a\":}", "'a'", "nul", "{\"a\":1,}", &deep, &large] {
            assert!(Value::json(bad.as_bytes()).is_err(), "{}", bad.get(..20).unwrap_or(bad));
        }
        assert!(Value::json(b"\xff").is_err());
    }
}
