//! Where settings come from, which source wins, and how a mistake is told: with the name as the user spelled
//! it, the value, and what would be right.

use super::{Row, Want};

/// What a host found: each list as (name, value). Flags win over the environment, the environment over the
/// file; within the flags the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags, without dashes.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The keys of a file, and what the file is called.
    pub file: Vec<(String, String)>,
    /// The file's name, for messages.
    pub file_name: String,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake(String);

impl Mistake {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A good result, and what should be looked at all the same.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The result.
    pub value: T,
    /// One sentence each.
    pub warnings: Vec<String>,
}

impl Sources {
    /// The value of a row and the name it was found under; empty values count as unset.
    fn look_up<'a>(&'a self, row: &Row) -> Option<(String, &'a str, Origin)> {
        let value_of = |list: &'a [(String, String)], name: &str| {
            let found = list.iter().rev().find(|(key, value)| key == name && !value.trim().is_empty());
            found.map(|(_, value)| value.trim())
        };
        if let Some(value) = value_of(&self.flags, row.key) {
            return Some((format!("--{}", row.key), value, Origin::Said));
        }
        for name in row.env {
            if let Some(value) = value_of(&self.env, name) {
                return Some(((*name).to_owned(), value, Origin::Environment));
            }
        }
        let value = value_of(&self.file, row.key)?;
        Some((format!("{} in {}", row.key, self.file_name), value, Origin::Said))
    }

    /// Whether a row was given a value.
    pub(super) fn has(&self, rows: &[Row], key: &str) -> bool {
        rows.iter().find(|row| row.key == key).is_some_and(|row| self.look_up(row).is_some())
    }

    pub(super) fn mistake(&self, rows: &[Row], key: &str, want: &str) -> Mistake {
        let row = rows.iter().find(|row| row.key == key);
        match row.and_then(|row| self.look_up(row)) {
            Some((name, value, _)) => mistake(&name, value, want),
            None => Mistake(format!(
                "{}: want {want}",
                row.and_then(|row| row.env.first()).copied().unwrap_or(key)
            )),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// By a flag or in a file: meant for us.
    Said,
    /// By the environment, which others read too.
    Environment,
}

fn mistake(name: &str, value: &str, want: &str) -> Mistake {
    let shown: String = value.chars().take(100).flat_map(char::escape_debug).collect();
    Mistake(format!("{name}=\"{shown}\": want {want}"))
}

pub(super) struct Reader<'a> {
    sources: &'a Sources,
    /// Keys whose values do not matter.
    refused: Vec<String>,
    mistakes: Vec<Mistake>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources, rows: &[Row]) -> Self {
        let mut reader = Self { sources, refused: Vec::new(), mistakes: Vec::new(), warnings: Vec::new() };
        reader.unknown_names(rows);
        reader
    }

    /// A name that no row has is a mistake where it was meant for us, and a warning in the environment, where
    /// Kubernetes puts names of its own.
    fn unknown_names(&mut self, rows: &[Row]) {
        let keys = || rows.iter().map(|row| row.key);
        let is_key = |name: &str| keys().any(|key| key == name);
        for (name, _) in self.sources.flags.iter().filter(|(name, _)| !is_key(name)) {
            self.mistakes.push(Mistake(format!("--{name}: no such setting{}", nearest(name, keys()))));
        }
        for (name, _) in self.sources.file.iter().filter(|(name, _)| !is_key(name)) {
            let file = &self.sources.file_name;
            self.mistakes
                .push(Mistake(format!("{name} in {file}: no such setting{}", nearest(name, keys()))));
        }
        let env = || rows.iter().flat_map(|row| row.env.iter().copied());
        for (name, _) in self.sources.env.iter().filter(|(name, _)| name.starts_with("THROUGHLINE_")) {
            let hint = nearest(name, env());
            if !env().any(|known| known == name) && !hint.is_empty() {
                self.warnings.push(format!("{name}: no such setting{hint}"));
            }
        }
    }

    /// A key that has no meaning for this host is a mistake where it was meant for us.
    pub(super) fn refuse(&mut self, key: &str, why: &str) {
        let Sources { file, file_name, .. } = self.sources;
        if file.iter().any(|(name, _)| name == key) {
            self.mistakes.push(Mistake(format!("{key} in {file_name}: {why}")));
            self.refused.push(key.to_owned());
        }
    }

    /// The value of a row. A mistake is noted, and the default takes its place, so that all of them are told
    /// together; none only where the default itself is wrong.
    pub(super) fn value<T>(&mut self, row: &Row, read: &dyn Fn(&str) -> Result<T, Want>) -> T {
        if let Some((name, value, origin)) = self.looked_up(row) {
            match read(value) {
                Ok(value) => return value,
                Err(want) => self.wrong(row, &name, value, &want, origin),
            }
        }
        // A table whose own default is wrong could start nowhere; the tests read every default.
        read(row.default).unwrap_or_else(|_| std::process::abort())
    }

    fn looked_up(&self, row: &Row) -> Option<(String, &'a str, Origin)> {
        let refused = self.refused.iter().any(|key| key == row.key);
        self.sources.look_up(row).filter(|_| !refused)
    }

    fn wrong(&mut self, row: &Row, name: &str, value: &str, want: &Want, origin: Origin) {
        if row.lenient && origin == Origin::Environment {
            let default = if row.default.is_empty() { "nothing" } else { row.default };
            self.warnings.push(format!("{}; taking {default}", mistake(name, value, want)));
        } else {
            self.mistakes.push(mistake(name, value, want));
        }
    }

    pub(super) fn finish<T>(self, value: Option<T>) -> Result<Found<T>, Vec<Mistake>> {
        match value {
            Some(value) if self.mistakes.is_empty() => Ok(Found { value, warnings: self.warnings }),
            Some(_) | None => Err(self.mistakes),
        }
    }
}

/// The known name that a wrong one was probably meant to be, as the end of a sentence.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|name| (distance(wrong, name), name)).min();
    match near {
        Some((distance, name)) if distance <= 3 => format!(", did you mean {name}?"),
        Some(_) | None => String::new(),
    }
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let up = *cell;
            *cell = (diagonal + usize::from(x != y)).min(up + 1).min(left + 1);
            (diagonal, left) = (up, *cell);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::{ROWS, SamplerName, Settings};
    use super::*;
    use crate::metrics::Aggregation;

    fn sources(flags: &[(&str, &str)], env: &[(&str, &str)], file: &[(&str, &str)]) -> Sources {
        let own =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Sources { flags: own(flags), env: own(env), file: own(file), file_name: "proxy.yaml".into() }
    }

    fn mistakes(sources: &Sources) -> Vec<String> {
        Settings::resolve(sources).unwrap_err().iter().map(ToString::to_string).collect()
    }

    const MINIMUM: (&str, &str) = ("outbound-listen", "127.0.0.1:1");

    #[test]
    fn every_default_is_right() {
        let settings = Settings::resolve(&sources(&[MINIMUM], &[], &[])).unwrap().value;
        assert_eq!(settings.sampler, SamplerName::ParentBasedRatio);
        assert!(settings.enabled());
    }

    #[test]
    fn transparent_capture_has_ports_of_its_own_and_no_routes() {
        let capture = ("capture", "transparent");
        let settings = Settings::resolve(&sources(&[capture], &[], &[])).unwrap().value;
        assert_eq!(settings.inbound_listen, Some("0.0.0.0:15106".parse().unwrap()));
        assert_eq!(settings.outbound_listen, Some("127.0.0.1:15101".parse().unwrap()));
        let wrong = [capture, ("inbound-upstream", "127.0.0.1:1"), ("outbound-routes", "a=127.0.0.1:1")];
        let said = mistakes(&sources(&wrong, &[], &[]));
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.iter().all(|said| said.contains("where they were going")), "{said:?}");
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let all = sources(
            &[MINIMUM, ("otel-traces-sampler", "always_off")],
            &[
                ("OTEL_TRACES_SAMPLER", "always_on"),
                ("OTEL_SERVICE_NAME", "env"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", ""),
            ],
            &[("otel-service-name", "file"), ("otel-bsp-max-queue-size", "77")],
        );
        let settings = Settings::resolve(&all).unwrap().value;
        assert_eq!(settings.sampler, SamplerName::AlwaysOff);
        assert_eq!(settings.service().0, "env");
        assert_eq!(settings.bsp_queue_max, 77, "empty in the environment is unset");
    }

    #[test]
    fn all_mistakes_are_told_together_with_the_value_and_what_would_be_right() {
        let wrong = sources(
            &[MINIMUM, ("otel-traces-sampler-arg", "2"), ("inbound-lisen", "x")],
            &[("OTEL_TRACES_SAMPLER", "sometimes")],
            &[("connect-timeout", "soon"), ("colour", "red")],
        );
        assert_eq!(
            mistakes(&wrong),
            [
                "--inbound-lisen: no such setting, did you mean inbound-listen?",
                "colour in proxy.yaml: no such setting",
                "OTEL_TRACES_SAMPLER=\"sometimes\": want one of always_on, always_off, traceidratio, \
                 parentbased_always_on, parentbased_always_off, parentbased_traceidratio",
                "--otel-traces-sampler-arg=\"2\": want a ratio from 0 to 1",
                "connect-timeout in proxy.yaml=\"soon\": want a whole number from 1 to 600000",
            ]
        );
    }

    #[test]
    fn a_bad_number_of_opentelemetrys_environment_warns_and_takes_the_default() {
        let odd =
            sources(&[MINIMUM], &[("OTEL_TRACES_SAMPLER_ARG", "2"), ("OTEL_BSP_MAX_QUEUE_SIZE", "-1")], &[]);
        let found = Settings::resolve(&odd).unwrap();
        assert_eq!(found.value.bsp_queue_max, 2048);
        assert_eq!(found.warnings[0], "OTEL_TRACES_SAMPLER_ARG=\"2\": want a ratio from 0 to 1; taking 1.0");
    }

    #[test]
    fn a_histogram_that_opentelemetry_does_not_know_warns_and_is_explicit() {
        let name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
        for (said, aggregation, warnings) in [
            ("", Aggregation::Explicit, 0),
            ("base2_exponential_bucket_histogram", Aggregation::Exponential, 0),
            ("BASE2_EXPONENTIAL_BUCKET_HISTOGRAM", Aggregation::Exponential, 0),
            ("ddsketch", Aggregation::Explicit, 1),
        ] {
            let found = Settings::resolve(&sources(&[MINIMUM], &[(name, said)], &[])).unwrap();
            let set = found.value.tracer().aggregation;
            assert_eq!((set, found.warnings.len()), (aggregation, warnings), "{said}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_together_are_mistakes() {
        for (flags, expected) in [
            (&[][..], "THROUGHLINE_INBOUND_LISTEN: want an address here, in outbound-listen"),
            (
                &[("inbound-listen", "127.0.0.1:1")][..],
                "THROUGHLINE_INBOUND_UPSTREAM: want the application's host",
            ),
            (
                &[("outbound-listen", "0.0.0.0:1")][..],
                "--outbound-listen=\"0.0.0.0:1\": want a loopback address",
            ),
        ] {
            let said = mistakes(&sources(flags, &[], &[]));
            assert!(said[0].starts_with(expected), "{said:?}");
        }
    }

    #[test]
    fn a_misspelt_name_in_the_environment_is_warned_of_and_kubernetes_own_names_are_not() {
        let env = [("THROUGHLINE_ACESS_LOG", "stdout"), ("THROUGHLINE_FLOW_SERVICE_HOST", "10.0.0.1")];
        let found = Settings::resolve(&sources(&[MINIMUM], &env, &[])).unwrap();
        assert_eq!(
            found.warnings,
            ["THROUGHLINE_ACESS_LOG: no such setting, did you mean THROUGHLINE_ACCESS_LOG?"]
        );
    }

    #[test]
    fn other_common_names_are_aliases() {
        let env = [
            ("OTEL_TRACE_SAMPLER", "always_on"),
            ("OTEL_TRACE_SAMPLING_RATE", "0.5"),
            ("TRACING_ENABLED", "false"),
        ];
        let settings = Settings::resolve(&sources(&[MINIMUM], &env, &[])).unwrap().value;
        assert_eq!((settings.sampler, settings.sampler_arg.probability()), (SamplerName::AlwaysOn, 0.5));
        assert!(!settings.enabled());
    }

    #[test]
    fn no_key_and_no_variable_stands_twice() {
        let mut keys: Vec<&str> =
            ROWS.iter().flat_map(|row| row.env.iter().copied().chain([row.key])).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn the_resource_has_the_service_once() {
        let env = [
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,service.namespace=shop,x=1,x=2"),
            ("OTEL_SERVICE_NAME", "b"),
        ];
        let settings = Settings::resolve(&sources(&[MINIMUM], &env, &[])).unwrap().value;
        let resource = settings.resource();
        assert_eq!(&resource[..3], [("service.name", "b"), ("service.namespace", "shop"), ("x", "2")]);
        assert_eq!(settings.service(), ("b", "shop"));
        assert_eq!(settings.metrics_resource("i1").last(), Some(&("service.instance.id", "i1")));
    }

    #[test]
    fn an_instance_that_the_user_names_is_called_so_in_the_metrics() {
        let env = [("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1")];
        let settings = Settings::resolve(&sources(&[MINIMUM], &env, &[])).unwrap().value;
        let resource = settings.metrics_resource("i1");
        let ids: Vec<_> = resource.iter().filter(|(key, _)| *key == "service.instance.id").collect();
        assert_eq!(ids, [&("service.instance.id", "pod-1")]);
    }
}
