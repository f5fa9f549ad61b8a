//! Settings written as YAML, or as JSON, which is YAML too: read into the pairs that `throughline-core`'s table
//! of settings takes. Knows no setting, and opens no file.

use serde_yaml::Value;

/// The keys and values of a mapping, each value as a flag would say it. `name` is what the text is called in
/// messages.
///
/// # Errors
/// Every mistake, one sentence each.
pub fn pairs(text: &str, name: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let parsed: Value =
        serde_yaml::from_str(text).map_err(|error| vec![format!("{name}: want YAML or JSON: {error}")])?;
    let mapping = match parsed {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(mapping) => mapping,
        _ => return Err(vec![format!("{name}: want a YAML mapping of settings")]),
    };
    let (mut pairs, mut mistakes) = (Vec::new(), Vec::new());
    for (key, value) in mapping {
        match (key.as_str(), scalar(&value)) {
            (Some(key), Some(value)) => pairs.push((key.to_owned(), value)),
            _ => mistakes.push(format!(
                "{} in {name}: want a text, a number, true, false, or a list of these",
                scalar(&key).unwrap_or_else(|| "a key".into())
            )),
        }
    }
    if mistakes.is_empty() { Ok(pairs) } else { Err(mistakes) }
}

/// A value as a flag would say it; lists are joined by commas.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        Value::Sequence(values) => Some(values.iter().map(scalar).collect::<Option<Vec<_>>>()?.join(",")),
        Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let expected =
            vec![pair("routes", "/a/{id},/b"), pair("ratio", "0.5"), pair("on", "true"), pair("x", "")];
        assert_eq!(pairs("routes: [\"/a/{id}\", /b]\nratio: 0.5\non: true\nx:\n", "f").unwrap(), expected);
        let json = r#"{"routes": ["/a/{id}", "/b"], "ratio": 0.5, "on": true, "x": null}"#;
        assert_eq!(pairs(json, "f").unwrap(), expected);
        assert_eq!(pairs("", "f").unwrap(), []);
    }

    #[test]
    fn mistakes_are_told_together() {
        let said = pairs("a: {b: 1}\nc: [[{d: 1}]]\ne: 1\n", "f").unwrap_err();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("a in f: want a text"), "{said:?}");
        assert!(pairs("- a\n", "f").unwrap_err()[0].contains("want a YAML mapping"));
        assert!(pairs("a: [", "f").unwrap_err()[0].contains("want YAML or JSON"));
    }
}
