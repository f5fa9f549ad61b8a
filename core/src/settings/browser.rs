//! Settings of the sidecar's side of browsers: a table apart, since the filter in Envoy has no use for it and need
//! not carry it.

use super::value::{self, number};
use super::{Found, Mistake, ROWS, Row, Settings, Sources, TrustName, source};
use crate::browser;

super::settings! {
    /// Settings about the browsers of users.
    Browser, BROWSER_ROWS;
    "Browsers" {
        on: bool = "off", value::switch, "browser", ["THROUGHLINE_BROWSER"];
            "on: serve /_throughline/ops.js and take the spans of pages at /_throughline/v1/traces, both on the inbound side, and go on with the traces of pages of the same origin. Wants trust=edge: pages are strangers."
        service: String = "", value::text, "browser-service", ["THROUGHLINE_BROWSER_SERVICE"];
            "Name of the service whose spans those of pages are. Unset: the sidecar's own with -browser behind it."
        address_per_second: u64 = "20", number::<1, 100_000>, "browser-address-per-second", ["THROUGHLINE_BROWSER_ADDRESS_PER_SECOND"];
            "Traces that pages of one address may begin a second, and bodies with spans that they may send; five times as many at once. Behind a proxy or balancer all callers have its address. An IPv6 network of 64 bits is one address."
        per_second: u64 = "400", number::<1, 1_000_000>, "browser-per-second", ["THROUGHLINE_BROWSER_PER_SECOND"];
            "The same from all addresses together."
    }
}

impl Browser {
    /// Reads the sidecar's rows and these from the sources. All mistakes are reported together.
    ///
    /// # Errors
    /// Every mistake.
    pub fn resolve(sources: &Sources) -> Result<Found<(Settings, Self)>, Vec<Mistake>> {
        let rows: Vec<Row> = ROWS.iter().chain(BROWSER_ROWS).copied().collect();
        let mut reader = source::Reader::new(sources, &rows);
        let settings = Settings::read(&mut reader);
        let browser = Self::read(&mut reader);
        let mut found = reader.finish(settings.zip(browser))?;
        found.value.0.capture_listens();
        let (settings, browser) = &found.value;
        let mut conflicts = settings.conflicts(sources);
        if browser.on && (settings.trust != TrustName::Edge || settings.inbound_listen.is_none()) {
            let want =
                "off, or trust=edge and an inbound-listen beside it: what a page sends is a stranger's word";
            conflicts.push(sources.mistake(BROWSER_ROWS, "browser", want));
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        found.warnings.extend(settings.unsupported());
        Ok(found)
    }

    /// What bounds browsers; none where nothing is served to them.
    #[must_use]
    pub fn pages(&self, settings: &Settings) -> Option<browser::Config> {
        let attribute_bytes_max = settings.attribute_length_max;
        self.on.then(|| browser::Config {
            address_per_second: self.address_per_second,
            per_second: self.per_second,
            attribute_bytes_max: attribute_bytes_max.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        })
    }

    /// The name of the service whose spans those of pages are.
    #[must_use]
    pub fn service_name(&self, settings: &Settings) -> String {
        match self.service.as_str() {
            "" => format!("{}-browser", settings.service().0),
            name => name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[(&str, &str)]) -> Result<Found<(Settings, Browser)>, Vec<Mistake>> {
        let minimum = [("inbound-listen", "127.0.0.1:0"), ("inbound-upstream", "127.0.0.1:1")];
        let all = minimum.iter().chain(flags).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Browser::resolve(&Sources { flags: all.collect(), ..Sources::default() })
    }

    #[test]
    fn browsers_are_met_at_an_edge_alone() {
        let (_, browser) = resolve(&[]).unwrap().value;
        assert!(!browser.on);
        let said = resolve(&[("browser", "on")]).unwrap_err();
        assert!(
            said.len() == 1 && said[0].to_string().starts_with("--browser=\"on\": want off, or trust=edge")
        );
        let (settings, browser) = resolve(&[("browser", "on"), ("trust", "edge")]).unwrap().value;
        assert_eq!(browser.service_name(&settings), "unknown_service:throughline-browser");
        assert_eq!(browser.pages(&settings).unwrap().per_second, 400);
    }

    #[test]
    fn conflicts_of_the_other_table_are_told_too() {
        assert!(resolve(&[("outbound-listen", "10.0.0.1:1")]).is_err());
        assert!(resolve(&[("browsr", "on")]).unwrap_err()[0].to_string().contains("browser"));
    }

    #[test]
    fn no_row_stands_in_both_tables() {
        for row in BROWSER_ROWS {
            assert!(!ROWS.iter().any(|other| other.key == row.key), "{}", row.key);
        }
    }
}
