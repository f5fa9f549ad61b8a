//! What the chart accepts, from the tables of settings: each row is asked by its own reader what it takes, so the
//! schema can't say anything else. Must never know a setting by itself.

use serde_json::{Map, Value, json};
use throughline_core::settings::{BROWSER_ROWS, FLOW_ROWS, ROWS, Row};
use throughline_injector::settings as injector;

/// The part that is not settings, with a place for each table.
const FRAME: &str = include_str!("frame.json");
/// No reader takes it but one that takes anything.
const NONSENSE: &str = "\u{1}";

/// What the chart fills in itself of the injector's settings, since other objects depend on it.
pub const OF_THE_CHART: &[&str] = &[
    "listen",
    "admin-listen",
    "namespace",
    "service",
    "webhook",
    "secret",
    "lease",
    "identity",
    "kubeconfig",
    "sidecar-settings",
    "wasm-url",
];
/// The same of the flow server's.
pub const OF_THE_CHART_FLOW: &[&str] = &["listen", "otlp-grpc", "otlp-http", "token-file", "data-dir"];

/// A setting of any program.
pub struct Setting {
    /// As flag, and as key of a `settings` in the chart.
    pub key: &'static str,
    /// Its environment variables.
    pub env: Vec<String>,
    /// As it would be written; empty for none.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
    check: Check,
}

type Check = Box<dyn Fn(&str) -> Result<(), String>>;

impl Setting {
    /// Whether a text could be its value; `Err` is what would be right.
    pub fn check(&self, text: &str) -> Result<(), String> {
        (self.check)(text)
    }

    /// A boolean as the chart writes it: YAML makes `true` of `on`.
    fn takes(&self, boolean: bool) -> bool {
        let text = match (self.key.starts_with("otel-"), boolean) {
            (true, true) => "true",
            (true, false) => "false",
            (false, true) => "on",
            (false, false) => "off",
        };
        self.check(text).is_ok()
    }
}

fn of_core(rows: impl IntoIterator<Item = &'static Row>) -> Vec<Setting> {
    let setting = |row: &'static Row| Setting {
        key: row.key,
        env: row.env.iter().map(|name| (*name).to_owned()).collect(),
        default: row.default,
        help: row.help,
        check: Box::new(|text| (row.check)(text).map_err(|want| want.into_owned())),
    };
    rows.into_iter().map(setting).collect()
}

/// The settings of the sidecar that may be given to it: not those that the injector sets itself.
pub fn sidecar() -> Vec<Setting> {
    let mut settings = of_core(ROWS.iter().chain(BROWSER_ROWS));
    settings.retain(|setting| !injector::OURS.contains(&setting.key));
    settings
}

/// The settings of the flow server.
pub fn flow() -> Vec<Setting> {
    of_core(FLOW_ROWS)
}

/// The settings of the injector.
pub fn injector() -> Vec<Setting> {
    let setting = |row: &'static injector::Row| Setting {
        key: row.key,
        env: vec![row.env()],
        default: row.default,
        help: row.help,
        check: Box::new(|text| injector_takes(row.key, text)),
    };
    injector::ROWS.iter().map(setting).collect()
}

/// What it says of this one alone: others may contradict it. One mode wants the place of the module beside it.
fn injector_takes(key: &str, text: &str) -> Result<(), String> {
    let module = ("wasm-url".to_owned(), "oci://registry.example.com/filter:1".to_owned());
    let flags = [module, (key.to_owned(), text.to_owned())];
    let Err(told) = injector::Settings::read(&flags, std::iter::empty()) else { return Ok(()) };
    let begins = format!("--{key}=");
    let own = told.iter().find(|mistake| mistake.starts_with(&begins));
    own.map_or(Ok(()), |mistake| Err(mistake.split_once(": want ").map_or("", |(_, want)| want).to_owned()))
}

/// The schema of the chart's values.
pub fn schema() -> Result<Value, serde_json::Error> {
    let mut frame: Value = serde_json::from_str(FRAME)?;
    fill(&mut frame);
    Ok(frame)
}

fn fill(value: &mut Value) {
    match value {
        Value::Object(object) => match object.get("$settings").and_then(Value::as_str) {
            Some("sidecar") => *value = table(&sidecar(), &[]),
            Some("flow") => *value = table(&flow(), OF_THE_CHART_FLOW),
            Some("injector") => *value = table(&injector(), OF_THE_CHART),
            Some(_) | None => object.values_mut().for_each(fill),
        },
        Value::Array(list) => list.iter_mut().for_each(fill),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn table(settings: &[Setting], without: &[&str]) -> Value {
    let shown = settings.iter().filter(|setting| !without.contains(&setting.key));
    let properties: Map<String, Value> =
        shown.map(|setting| (setting.key.to_owned(), shape(setting))).collect();
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

/// What a value may look like. `null` is always right: it takes a default of the chart away.
pub fn shape(setting: &Setting) -> Value {
    let default = if setting.default.is_empty() { "unset" } else { setting.default };
    let description = format!("{} Default: {default}.", setting.help);
    let mut shape = match setting.check(NONSENSE) {
        Ok(()) => {
            json!({"type": ["string", "number", "array", "null"], "items": {"type": ["string", "number"]}})
        }
        Err(_) if setting.check(",").is_ok() => {
            json!({"type": ["string", "array", "null"], "items": {"type": ["string", "number"]}})
        }
        Err(want) => narrow(setting, &want),
    };
    if let Value::Object(shape) = &mut shape {
        shape.insert("description".to_owned(), Value::String(description));
    }
    shape
}

fn narrow(setting: &Setting, want: &str) -> Value {
    let says = |word: &str| want.split(|c: char| !c.is_alphanumeric()).any(|part| part == word);
    let meant =
        |boolean: bool| if boolean { says("on") || says("true") } else { says("off") || says("false") };
    let booleans: Vec<bool> =
        [true, false].into_iter().filter(|boolean| meant(*boolean) && setting.takes(*boolean)).collect();
    if let Some(words) = choices(setting, want) {
        let mut all: Vec<Value> = words.into_iter().map(Value::String).collect();
        let default = Value::String(setting.default.to_owned());
        if !setting.default.is_empty() && !all.contains(&default) {
            all.push(default);
        }
        all.extend(booleans.into_iter().map(Value::Bool));
        all.push(Value::Null);
        return json!({"enum": all});
    }
    let mut types = vec!["string", "null"];
    let mut shape = Map::new();
    if let Some((least, most)) = bounds(setting, want) {
        types.push("integer");
        shape.insert("minimum".to_owned(), json!(least));
        shape.insert("maximum".to_owned(), json!(most));
        if setting.check("off").is_err() {
            shape.insert("pattern".to_owned(), json!("^[0-9]*$"));
        }
    } else if setting.check("0.5").is_ok() {
        types.push("number");
        if setting.check("0").is_ok() && setting.check("1").is_ok() && setting.check("1.1").is_err() {
            shape.insert("minimum".to_owned(), json!(0));
            shape.insert("maximum".to_owned(), json!(1));
        }
    } else if setting.check("1").is_ok() {
        types.push("integer");
    }
    if let Some(boolean) = booleans.first() {
        types.push("boolean");
        if booleans.len() == 1 {
            shape.insert("not".to_owned(), json!({"const": !boolean}));
        }
    }
    shape.insert("type".to_owned(), json!(types));
    Value::Object(shape)
}

/// The words of a want such as "one of grpc, http/protobuf" or "on or off", if its reader takes each of them.
fn choices(setting: &Setting, want: &str) -> Option<Vec<String>> {
    let list = want.strip_prefix("one of ").unwrap_or(want).replace(" or ", ", ");
    let words: Vec<String> = list.split(", ").map(|word| word.trim_matches(',').to_owned()).collect();
    let taken = words.iter().all(|word| setting.check(word).is_ok());
    (words.len() > 1 && taken).then_some(words)
}

/// The bounds of a want such as "a whole number from 1 to 200", if its reader keeps them.
fn bounds(setting: &Setting, want: &str) -> Option<(u64, u64)> {
    let (_, range) = want.split_once(" from ")?;
    let (least, most) = range.split_once(" to ")?;
    let (least, most): (u64, u64) = (least.parse().ok()?, most.parse().ok()?);
    let inside = [least, most].iter().all(|number| setting.check(&number.to_string()).is_ok());
    let above = setting.check(&most.checked_add(1)?.to_string()).is_err();
    let below = least.checked_sub(1).is_none_or(|number| setting.check(&number.to_string()).is_err());
    (inside && above && below && setting.check("0.5").is_err()).then_some((least, most))
}
