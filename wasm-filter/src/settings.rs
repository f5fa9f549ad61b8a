//! The plugin's configuration and the VM's environment, read into `core`'s table of settings.

use throughline_core::settings::{Filter, Found, Settings, Sources};
use throughline_settings_file::pairs;

/// What the configuration is called in messages.
const NAME: &str = "the plugin configuration";

/// What was said, but for the direction: plugins of which this is the same, in the same order, share a worker.
pub(crate) type Said = Vec<(String, String)>;

/// Everything that was read.
pub(crate) type Read = (Found<(Settings, Filter)>, Said);

/// Reads both; the error is every mistake, one a line.
pub(crate) fn read(configuration: &[u8], env: Vec<(String, String)>) -> Result<Read, Vec<String>> {
    let text = std::str::from_utf8(configuration).map_err(|_| vec![format!("{NAME}: want UTF-8")])?;
    let file = pairs(text, NAME)?;
    let sources = Sources { flags: Vec::new(), env, file, file_name: NAME.to_owned() };
    let found: Result<_, Vec<String>> =
        Filter::resolve(&sources).map_err(|found| found.iter().map(ToString::to_string).collect());
    let mut said = sources.file;
    said.retain(|(key, _)| key != "direction");
    Ok((found?, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_is_a_good_one() {
        let found = read(b"", vec![("OTEL_SERVICE_NAME".into(), "orders".into())]).unwrap().0;
        assert_eq!(found.value.0.service().0, "orders");
    }

    #[test]
    fn plugins_that_differ_in_their_direction_alone_say_the_same() {
        let said = |text: &str| read(text.as_bytes(), Vec::new()).unwrap().1;
        assert_eq!(said("direction: inbound\nroutes: /a\n"), said("direction: outbound\nroutes: /a\n"));
        assert_ne!(said("routes: /a\n"), said("routes: /b\n"));
    }

    #[test]
    fn every_mistake_is_told() {
        let said = read(b"direction: up\notel-traces-sampler: sometimes\nadmin-listen: x\n", Vec::new());
        assert_eq!(said.unwrap_err().len(), 3);
        assert_eq!(read(b"\xff", Vec::new()).unwrap_err(), ["the plugin configuration: want UTF-8"]);
    }
}
