//! What kubectl reads otherwise than we do. Its YAML is 1.1, where `yes` and `on` are booleans and `0644` is 420; ours is
//! 1.2, where they are strings. Must never change what kubectl would have read.

use serde_yaml::{Mapping, Value};

/// Words that are booleans there, beside `true` and `false`.
const TRUE: [&str; 8] = ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON"];
const FALSE: [&str; 8] = ["n", "N", "no", "No", "NO", "off", "Off", "OFF"];

/// Fields that are booleans, where such a word can't have been meant as a string.
const BOOLEANS: [&str; 19] = [
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "optional",
    "paused",
    "privileged",
    "readOnly",
    "readOnlyRootFilesystem",
    "runAsNonRoot",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "stdin",
    "stdinOnce",
    "suspend",
    "tty",
];
/// Fields that are modes of files, which people write in octal.
const MODES: [&str; 2] = ["defaultMode", "mode"];

/// Stands for the quote around a string until the text is written; nobody's text has it.
const QUOTE: &str = "throughline0quote0a7c1e";

/// Reads a document: merges (`<<`) are done, and fields have the type that kubectl gives them.
///
/// # Errors
/// What is no YAML.
pub fn read(text: &str) -> Result<Value, serde_yaml::Error> {
    let mut value: Value = serde_yaml::from_str(text)?;
    value.apply_merge()?;
    Ok(each(value, &|key, value| {
        let Value::String(word) = &value else { return value };
        let is = |known: &[&str], one: &str| known.contains(&one);
        if is(&BOOLEANS, key) {
            match word.as_str() {
                word if is(&TRUE, word) => return Value::Bool(true),
                word if is(&FALSE, word) => return Value::Bool(false),
                _ => return value,
            }
        }
        let octal = word.strip_prefix('0').and_then(|digits| u32::from_str_radix(digits, 8).ok());
        match octal {
            Some(mode) if is(&MODES, key) => Value::Number(mode.into()),
            _ => value,
        }
    }))
}

/// As text that kubectl reads as we do: strings that would be something else there are quoted.
///
/// # Errors
/// What can't be written as YAML.
pub fn write(value: &Value) -> Result<String, serde_yaml::Error> {
    let marked = each(value.clone(), &|_, value| match value {
        Value::String(word) if is_other(&word) => Value::String(format!("{QUOTE}{word}{QUOTE}")),
        value => value,
    });
    Ok(serde_yaml::to_string(&marked)?.replace(QUOTE, "'"))
}

/// Whether a string that is plain for us is something else for kubectl. All of these are single plain words.
fn is_other(word: &str) -> bool {
    let number = || {
        let digits = word.trim_start_matches(['+', '-', '.']);
        word.contains('_')
            && digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '_' | '.' | 'x' | 'o' | '+' | '-'))
    };
    TRUE.contains(&word) || FALSE.contains(&word) || number()
}

/// Every value below this one with its key, the keys of mappings too (without one).
fn each(value: Value, with: &impl Fn(&str, Value) -> Value) -> Value {
    fn under(key: &str, value: Value, with: &impl Fn(&str, Value) -> Value) -> Value {
        match value {
            Value::Mapping(map) => {
                let mut out = Mapping::with_capacity(map.len());
                for (name, value) in map {
                    let value = under(name.as_str().unwrap_or_default(), value, with);
                    out.insert(under("", name, with), value);
                }
                Value::Mapping(out)
            }
            Value::Sequence(all) => {
                Value::Sequence(all.into_iter().map(|one| under("", one, with)).collect())
            }
            other => with(key, other),
        }
    }
    under("", value, with)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(text: &str) -> String {
        write(&read(text).unwrap()).unwrap()
    }

    #[test]
    fn strings_stay_strings_for_kubectl() {
        for (text, expected) in [
            ("value: \"on\"", "value: 'on'\n"),
            ("args: [\"yes\", \"n\", yesterday]", "args:\n- 'yes'\n- 'n'\n- yesterday\n"),
            ("value: \"1_000\"", "value: '1_000'\n"),
            ("value: some_name", "value: some_name\n"),
            ("\"y\": \"5\"", "'y': '5'\n"),
            ("text: |\n  yes\n  on: off\n", "text: |\n  yes\n  on: off\n"),
        ] {
            assert_eq!(both(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_string_for_kubectl_is_none_for_us() {
        for (text, expected) in [
            ("hostNetwork: yes", "hostNetwork: true\n"),
            ("tty: off", "tty: false\n"),
            ("defaultMode: 0644", "defaultMode: 420\n"),
            ("mode: 420", "mode: 420\n"),
            ("name: 0644", "name: '0644'\n"),
            ("a: &a {b: 1}\nc: {<<: *a, d: 2}", "a:\n  b: 1\nc:\n  d: 2\n  b: 1\n"),
        ] {
            assert_eq!(both(text), expected, "{text}");
        }
    }
}
