//! What an operator changes while the process runs: the mode, the base rate, on-demand rules that end by
//! themselves. Two layers, calls over a document; both hosts read the same document, and what a sidecar shows as
//! its status is one. Never reads a clock: whoever asks says what time it is, so a rule ends even if nobody calls.

mod read;
mod rule;
mod value;

use std::sync::Arc;

use crate::events::json::write_string;
use crate::limits::RULES_MAX;
use crate::mode::Mode;
use crate::sampling::{Ratio, Root, Sampler};
use crate::settings::Mistake;
use read::{Reader, find};
pub use rule::Rule;
use rule::{Choice, Ends};
pub use value::Value;

/// The rules that decide, shared with the exchanges that began under them.
pub(crate) type Rules = Arc<[Rule]>;

/// What one side has said.
#[derive(Clone, PartialEq, Default, Debug)]
struct Layer {
    mode: Option<Mode>,
    base_rate: Option<Ratio>,
    rules: Vec<Rule>,
}

/// The state, and what it is made of.
#[derive(Debug)]
pub(crate) struct Control {
    /// Tracing is disabled for good.
    disabled: bool,
    service: String,
    settings: (Mode, Sampler),
    calls: Layer,
    document: Layer,
    /// Rules of the document that calls have disabled, until the document is another one.
    disabled_by_calls: Vec<String>,
    mode: Mode,
    sampler: Sampler,
    /// Rules about this service; none where there are none, which costs an exchange nothing.
    rules: Option<Rules>,
}

/// What a call to enable a rule came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Enabled {
    /// The rule.
    pub rule: Rule,
    /// Whether a rule of the same name was there before.
    pub replaced: bool,
}

impl Enabled {
    /// The rule as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let mut out = Vec::new();
        self.rule.json(&mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

impl Control {
    pub(crate) fn new(enabled: bool, mode: Mode, sampler: Sampler, service: &str) -> Self {
        let mut control = Self {
            disabled: !enabled,
            service: service.to_owned(),
            settings: (mode, sampler),
            calls: Layer::default(),
            document: Layer::default(),
            disabled_by_calls: Vec::new(),
            mode,
            sampler,
            rules: None,
        };
        control.settle();
        control
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn sampler(&self) -> Sampler {
        self.sampler
    }

    pub(crate) fn rules(&self) -> Option<Rules> {
        self.rules.clone()
    }

    /// The share of roots that the sampler takes.
    pub(crate) fn base_rate(&self) -> Ratio {
        let (Sampler::Always(root) | Sampler::ParentBased(root)) = self.sampler;
        match root {
            Root::AlwaysOn => Ratio::ONE,
            Root::AlwaysOff => Ratio::ZERO,
            Root::Ratio(ratio) => ratio,
        }
    }

    /// Rules that have not ended: those of calls, and those of the document that no call has replaced or disabled.
    pub(crate) fn active(&self, unix_seconds: u64) -> impl Iterator<Item = &Rule> {
        self.rules_said().filter(move |rule| !rule.is_over(unix_seconds))
    }

    fn rules_said(&self) -> impl Iterator<Item = &Rule> {
        let holds = |rule: &&Rule| {
            !self.disabled_by_calls.contains(&rule.name)
                && !self.calls.rules.iter().any(|by_call| by_call.name == rule.name)
        };
        self.calls.rules.iter().chain(self.document.rules.iter().filter(holds))
    }

    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.calls.mode = Some(mode);
        self.settle();
    }

    /// `{source_id, operation | route | service | header, rate, duration}`.
    pub(crate) fn enable(&mut self, wish: &Value, unix_seconds: u64) -> Result<Enabled, Vec<Mistake>> {
        let mut reader = Reader::default();
        let rule = Rule::read(wish, "", Ends::After, unix_seconds, &mut reader);
        self.prune(unix_seconds);
        let same = |known: &Rule| rule.as_ref().is_some_and(|rule| known.name == rule.name);
        let replaced = self.rules_said().any(same);
        if !replaced && self.rules_said().count() >= RULES_MAX {
            reader.mistake("", "", "", &format!("at the most {RULES_MAX} rules at once: disable one first"));
        }
        let Some(rule) = reader.finish(rule)? else { return Err(Vec::new()) };
        self.calls.rules.retain(|known| known.name != rule.name);
        self.calls.rules.push(rule.clone());
        self.settle();
        Ok(Enabled { rule, replaced })
    }

    /// `{source_id}`, or what the rule was about, of the document's rules too, until the document changes; `{all:
    /// true}` for every rule of calls. How many there were.
    pub(crate) fn disable(&mut self, wish: &Value, unix_seconds: u64) -> Result<usize, Vec<Mistake>> {
        let mut reader = Reader::default();
        let map = reader.map(wish, "").unwrap_or_default();
        let known = ["source_id", "name", "operation", "route", "service", "header", "all"];
        reader.unknown(map, "", &known);
        let all = match find(map, "all") {
            Some(Value::Bool(all)) => *all,
            Some(other) => {
                reader.mistake("", "all", &other.shown(), "true or false");
                false
            }
            None => false,
        };
        let choice = if all || reader.mistakes() > 0 { None } else { Choice::read(map, "", &mut reader) };
        reader.finish(())?;
        self.prune(unix_seconds);
        let before = self.rules_said().count();
        self.calls.rules.retain(|rule| !all && choice.as_ref().is_none_or(|choice| choice.name != rule.name));
        if let Some(choice) = choice
            && self.document.rules.iter().any(|rule| rule.name == choice.name)
            && !self.disabled_by_calls.contains(&choice.name)
        {
            self.disabled_by_calls.push(choice.name);
        }
        self.settle();
        Ok(before - self.rules_said().count())
    }

    /// `{mode, base_rate}` by a call; what is `null` is as the document or the settings say.
    pub(crate) fn change(&mut self, wish: &Value) -> Result<(), Vec<Mistake>> {
        let mut reader = Reader::default();
        let map = reader.map(wish, "").unwrap_or_default();
        reader.unknown(map, "", &["mode", "base_rate"]);
        let (mode, base_rate) = (mode(map, &mut reader), reader.ratio(map, "", "base_rate"));
        reader.finish(())?;
        let says = |key| map.iter().any(|(known, _)| known == key);
        if says("mode") {
            self.calls.mode = mode;
        }
        if says("base_rate") {
            self.calls.base_rate = base_rate;
        }
        self.settle();
        Ok(())
    }

    /// A whole document: `{mode, base_rate, rules: [...]}`, which takes the place of the last one. With mistakes the
    /// last good one stays. Says whether anything changed.
    pub(crate) fn apply(&mut self, document: &Value, unix_seconds: u64) -> Result<bool, Vec<Mistake>> {
        let mut reader = Reader::default();
        let empty = Value::Map(Vec::new());
        let document = if *document == Value::Null { &empty } else { document };
        let map = reader.map(document, "").unwrap_or_default();
        // What a status tells beside the state is no part of it.
        reader.unknown(map, "", &["mode", "base_rate", "rules", "status"]);
        let layer = Layer {
            mode: mode(map, &mut reader),
            base_rate: reader.ratio(map, "", "base_rate"),
            rules: rules(map, unix_seconds, &mut reader),
        };
        self.prune(unix_seconds);
        let others =
            layer.rules.iter().filter(|rule| !self.calls.rules.iter().any(|call| call.name == rule.name));
        let rules = self.calls.rules.len() + others.count();
        if rules > RULES_MAX {
            let want = format!("at the most {RULES_MAX}, those of calls among them");
            reader.mistake("", "rules", &format!("{rules} rules"), &want);
        }
        let layer = reader.finish(layer)?;
        let changed = layer != self.document;
        if changed {
            self.disabled_by_calls.clear();
        }
        self.document = layer;
        self.prune(unix_seconds);
        Ok(changed)
    }

    /// The state as the document that [`Control::apply`] reads, with `status` as one more member.
    pub(crate) fn json(&self, unix_seconds: u64, status: &str) -> String {
        let mut out = b"{\"mode\":".to_vec();
        write_string(self.mode.as_str(), &mut out);
        out.extend_from_slice(
            format!(",\"base_rate\":{},\"rules\":[", self.base_rate().probability()).as_bytes(),
        );
        for (at, rule) in self.active(unix_seconds).enumerate() {
            if at > 0 {
                out.push(b',');
            }
            rule.json(&mut out);
        }
        out.extend_from_slice(format!("],\"status\":{status}}}").as_bytes());
        String::from_utf8(out).unwrap_or_default()
    }

    fn prune(&mut self, unix_seconds: u64) {
        for layer in [&mut self.calls, &mut self.document] {
            layer.rules.retain(|rule| !rule.is_over(unix_seconds));
        }
        self.settle();
    }

    /// What decides, of all that was said.
    fn settle(&mut self) {
        let (mode, sampler) = self.settings;
        let mode = self.calls.mode.or(self.document.mode).unwrap_or(mode);
        self.mode = if self.disabled { Mode::Off } else { mode };
        self.sampler = match (self.calls.base_rate.or(self.document.base_rate), sampler) {
            (None, sampler) => sampler,
            (Some(rate), Sampler::Always(_)) => Sampler::Always(Root::Ratio(rate)),
            (Some(rate), Sampler::ParentBased(_)) => Sampler::ParentBased(Root::Ratio(rate)),
        };
        let all = self.rules_said();
        let ours = |rule: &&Rule| rule.service.as_ref().is_none_or(|service| *service == self.service);
        let rules: Vec<Rule> = all.filter(ours).cloned().collect();
        self.rules = (!rules.is_empty()).then(|| rules.into());
    }
}

fn mode(map: &[(String, Value)], reader: &mut Reader) -> Option<Mode> {
    let value = find(map, "mode")?;
    let mode = match value {
        Value::Text(text) => Mode::parse(text),
        // YAML 1.1 reads a bare `off` as this.
        Value::Bool(false) => Some(Mode::Off),
        Value::Null | Value::Bool(true) | Value::Number(_) | Value::List(_) | Value::Map(_) => None,
    };
    if mode.is_none() {
        reader.mistake("", "mode", &value.shown(), "one of off, system-only, hybrid, full");
    }
    mode
}

fn rules(map: &[(String, Value)], now: u64, reader: &mut Reader) -> Vec<Rule> {
    let list = match find(map, "rules") {
        None => return Vec::new(),
        Some(Value::List(list)) => list,
        Some(other) => {
            reader.mistake("", "rules", &other.shown(), "a list of rules");
            return Vec::new();
        }
    };
    if list.len() > RULES_MAX {
        reader.mistake("", "rules", &format!("{} rules", list.len()), &format!("at the most {RULES_MAX}"));
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::with_capacity(list.len());
    for (at, value) in list.iter().enumerate() {
        let path = format!("rules[{at}]");
        let Some(rule) = Rule::read(value, &path, Ends::At, now, reader) else { continue };
        if rules.iter().any(|known| known.name == rule.name) {
            reader.mistake(&path, "source_id", &rule.name, "a name that no other rule has");
        }
        if !rule.is_over(now) {
            rules.push(rule);
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_763_600_000;

    fn control() -> Control {
        Control::new(true, Mode::Hybrid, Sampler::ParentBased(Root::AlwaysOff), "orders")
    }

    fn value(text: &str) -> Value {
        Value::json(text.as_bytes()).unwrap_or_else(|want| panic!("{text}: want {want}"))
    }

    fn names(control: &Control, at: u64) -> Vec<&str> {
        control.active(at).map(|rule| rule.name.as_str()).collect()
    }

    fn said<T: std::fmt::Debug>(result: Result<T, Vec<Mistake>>) -> Vec<String> {
        result.unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_is_called_by_its_source_or_by_what_it_is_about() {
        for (wish, name, operation) in [
            (r#"{"source_id":"a","operation":"checkout"}"#, "a", Some("checkout")),
            (r#"{"source_id":"checkout","rate":0.5,"duration":"90s"}"#, "checkout", Some("checkout")),
            (r#"{"name":"b","route":"/x"}"#, "b", None),
            (r#"{"route":"/x","header":"X-Tenant: blue"}"#, "route=/x,header=X-Tenant: blue", None),
        ] {
            let mut control = control();
            let enabled = control.enable(&value(wish), NOW).unwrap();
            assert_eq!(enabled.rule.name, name);
            assert_eq!(enabled.rule.operation.as_deref(), operation, "{wish}");
            assert!(control.enable(&value(wish), NOW).unwrap().replaced);
            assert_eq!(names(&control, NOW), [name]);
        }
    }

    #[test]
    fn durations_are_read_and_bounded_and_ten_minutes_by_default() {
        for (duration, seconds) in [
            ("", Some(600)),
            (r#","duration":"1m""#, Some(60)),
            (r#","duration":"1h30m""#, Some(5400)),
            (r#","duration":"24h""#, Some(86_400)),
            (r#","duration":120"#, Some(120)),
            (r#","duration":"59s""#, None),
            (r#","duration":"24h1s""#, None),
            (r#","duration":"10""#, None),
            (r#","duration":"m""#, None),
            (r#","duration":-60"#, None),
            (r#","duration":"99999999999999999999h""#, None),
        ] {
            let wish = value(&format!(r#"{{"operation":"a"{duration}}}"#));
            let enabled = control().enable(&wish, NOW);
            let lasts = enabled.as_ref().ok().map(|enabled| enabled.rule.expires_unix_seconds - NOW);
            assert_eq!(lasts, seconds, "{duration}");
        }
    }

    #[test]
    fn a_rule_ends_by_itself() {
        let mut control = control();
        control.enable(&value(r#"{"operation":"a","duration":"1m"}"#), NOW).unwrap();
        assert_eq!(names(&control, NOW + 59), ["operation=a"]);
        assert!(names(&control, NOW + 60).is_empty());
        assert!(control.json(NOW + 60, "{}").contains("\"rules\":[]"));
    }

    #[test]
    fn all_mistakes_are_told_together_and_the_last_good_state_stays() {
        let mut control = control();
        let good = format!(r#"{{"mode":"full","rules":[{{"operation":"a","expires":{}}}]}}"#, NOW + 60);
        assert_eq!(control.apply(&value(&good), NOW), Ok(true));
        assert_eq!(control.apply(&value(&good), NOW), Ok(false));
        let bad = r#"{"mode":"some","base_rate":2,"colour":"red","rules":[
            {"operation":"a","rate":"much","expires":1},
            {"rate":1,"expires":1763600060},
            {"operation":"a"},
            {"operation":"a","duration":"1m","expires":99999999999},
            7
        ]}"#;
        assert_eq!(
            said(control.apply(&value(bad), NOW)),
            [
                "colour: want one of mode, base_rate, rules, status",
                "mode=\"some\": want one of off, system-only, hybrid, full",
                "base_rate=\"2\": want a ratio from 0 to 1",
                "rules[0].rate=\"much\": want a ratio from 0 to 1",
                "rules[1]: want an operation, a route, a service or a header, or a source_id",
                "rules[2].expires: want seconds since 1970, 24 hours from now at the most",
                "rules[3].duration: want one of source_id, name, rate, expires, operation, route, service, header",
                "rules[3].expires=\"99999999999\": want seconds since 1970, 24 hours from now at the most",
                "rules[4]=\"7\": want a mapping of keys and values",
            ]
        );
        assert_eq!((control.mode(), names(&control, NOW)), (Mode::Full, vec!["operation=a"]));
        assert_eq!(said(control.enable(&value(r#"{"rate":-1,"duration":"1s"}"#), NOW)).len(), 3);
        assert_eq!(names(&control, NOW), ["operation=a"]);
    }

    #[test]
    fn a_call_wins_over_the_document_and_the_document_over_the_settings() {
        let mut control = control();
        assert_eq!((control.mode(), control.base_rate()), (Mode::Hybrid, Ratio::ZERO));
        control.apply(&value(r#"{"mode":"off","base_rate":0.25}"#), NOW).unwrap();
        assert_eq!((control.mode(), control.base_rate().probability()), (Mode::Off, 0.25));
        control.change(&value(r#"{"mode":"full"}"#)).unwrap();
        assert_eq!((control.mode(), control.base_rate().probability()), (Mode::Full, 0.25));
        control.change(&value(r#"{"mode":null,"base_rate":1}"#)).unwrap();
        assert_eq!((control.mode(), control.base_rate()), (Mode::Off, Ratio::ONE));
        control.apply(&Value::Null, NOW).unwrap();
        assert_eq!(control.mode(), Mode::Hybrid, "an empty document says nothing");
    }

    #[test]
    fn what_a_sidecar_shows_is_what_another_host_applies() {
        let mut shown = control();
        shown.change(&value(r#"{"mode":"full","base_rate":0.125}"#)).unwrap();
        let wish = r#"{"source_id":"a \"b\"","route":"/x/{id}","service":"stock","header":"x-tenant=blue","rate":0.5}"#;
        shown.enable(&value(wish), NOW).unwrap();
        shown.enable(&value(r#"{"operation":"checkout"}"#), NOW).unwrap();
        let text = shown.json(NOW, r#"{"counters":{"kept":1}}"#);
        let mut other = Control::new(true, Mode::Hybrid, Sampler::Always(Root::AlwaysOn), "stock");
        other.apply(&value(&text), NOW + 1).unwrap();
        assert_eq!(other.json(NOW + 1, "{}"), shown.json(NOW + 1, "{}"));
        let ours = |control: &Control| control.rules().map_or(0, |rules| rules.len());
        assert_eq!((ours(&shown), ours(&other)), (1, 2), "a rule about another service decides nothing here");
    }

    #[test]
    fn there_are_a_hundred_rules_at_the_most_and_ended_ones_make_room() {
        let mut control = control();
        for number in 0..RULES_MAX {
            control.enable(&value(&format!(r#"{{"operation":"op{number}","duration":"1m"}}"#)), NOW).unwrap();
        }
        let one_more = value(r#"{"operation":"more"}"#);
        assert_eq!(
            said(control.enable(&one_more, NOW)),
            ["want at the most 100 rules at once: disable one first"]
        );
        assert!(control.enable(&value(r#"{"operation":"op7"}"#), NOW).unwrap().replaced);
        assert_eq!(control.disable(&value(r#"{"operation":"op7"}"#), NOW), Ok(1));
        control.enable(&one_more, NOW).unwrap();
        control.enable(&value(r#"{"operation":"later"}"#), NOW + 60).unwrap();
        assert_eq!(names(&control, NOW + 60), ["operation=more", "operation=later"]);
        assert_eq!(control.disable(&value(r#"{"all":true}"#), NOW + 60), Ok(2));
        let many = (0..=RULES_MAX).map(|n| format!(r#"{{"operation":"{n}","expires":{NOW}}}"#));
        let many = format!(r#"{{"rules":[{}]}}"#, many.collect::<Vec<_>>().join(","));
        assert_eq!(said(control.apply(&value(&many), NOW)), ["rules=\"101 rules\": want at the most 100"]);
    }

    #[test]
    fn nothing_is_disabled_by_mistake() {
        let mut control = control();
        control.enable(&value(r#"{"source_id":"a"}"#), NOW).unwrap();
        for wish in ["{}", "[]", r#"{"all":"yes"}"#, r#"{"source":"a"}"#] {
            assert!(!said(control.disable(&value(wish), NOW)).is_empty(), "{wish}");
        }
        assert_eq!(control.disable(&value(r#"{"source_id":"b"}"#), NOW), Ok(0));
        assert_eq!(control.disable(&value(r#"{"source_id":"a"}"#), NOW), Ok(1));
    }

    #[test]
    fn calls_stand_over_the_document_and_its_rules_too() {
        let mut control = control();
        let rule = |name: &str, rate: &str| {
            format!(
                r#"{{"source_id":"{name}","operation":"checkout","rate":{rate},"expires":{}}}"#,
                NOW + 600
            )
        };
        let document = |rules: &[String]| value(&format!(r#"{{"rules":[{}]}}"#, rules.join(",")));
        let said = document(&[rule("a", "0.1"), rule("b", "0.2")]);
        assert_eq!(control.apply(&said, NOW), Ok(true));
        let wish = value(r#"{"source_id":"a","operation":"checkout","rate":1}"#);
        assert!(control.enable(&wish, NOW).unwrap().replaced);
        assert_eq!(names(&control, NOW), ["a", "b"]);
        let status = control.json(NOW, "{}");
        assert!(
            super::Control::new(true, Mode::Hybrid, Sampler::ParentBased(Root::AlwaysOff), "x")
                .apply(&value(&status), NOW)
                .is_ok(),
            "{status}"
        );
        assert_eq!(control.disable(&value(r#"{"source_id":"b"}"#), NOW), Ok(1));
        assert_eq!(control.disable(&value(r#"{"source_id":"b"}"#), NOW), Ok(0));
        assert_eq!(names(&control, NOW), ["a"]);
        assert_eq!(control.apply(&said, NOW), Ok(false), "the same document says nothing else");
        assert_eq!(names(&control, NOW), ["a"]);
        assert_eq!(control.apply(&document(&[rule("b", "0.3")]), NOW), Ok(true));
        assert_eq!(names(&control, NOW), ["a", "b"], "another document is believed again");
    }

    #[test]
    fn calls_and_document_together_are_bounded() {
        let mut control = control();
        for number in 0..60 {
            control.enable(&value(&format!(r#"{{"operation":"c{number}"}}"#)), NOW).unwrap();
        }
        let document = |count: usize| {
            let rules: Vec<String> =
                (0..count).map(|n| format!(r#"{{"header":"x-a: {n}","expires":{}}}"#, NOW + 600)).collect();
            value(&format!(r#"{{"rules":[{}]}}"#, rules.join(",")))
        };
        assert!(said(control.apply(&document(41), NOW))[0].contains("at the most 100"));
        assert_eq!(control.apply(&document(40), NOW), Ok(true));
        assert!(
            said(control.enable(&value(r#"{"operation":"one more"}"#), NOW))[0].contains("at the most 100")
        );
        assert_eq!(control.rules().unwrap().len(), RULES_MAX);
    }
}
