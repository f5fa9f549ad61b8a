//! Where settings come from: the environment, and a file. Must never know a setting.

use throughline_core::settings::Sources;
use throughline_settings_file::pairs;

/// The environment; a value that is no UTF-8 is shown as such by the mistake that it then is.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Whether the file gave settings; if not, why is among the mistakes.
pub fn read_file(path: &str, sources: &mut Sources, mistakes: &mut Vec<String>) -> bool {
    path.clone_into(&mut sources.file_name);
    let read = std::fs::read_to_string(path)
        .map_err(|error| vec![format!("--config=\"{path}\": want a readable file: {error}")])
        .and_then(|text| pairs(&text, path));
    match read {
        Ok(pairs) => {
            sources.file.extend(pairs);
            true
        }
        Err(told) => {
            mistakes.extend(told);
            false
        }
    }
}
