//! What is traced at all. Decides nothing about a single exchange.

/// The mode of a sidecar (`THROUGHLINE_MODE`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Mode {
    /// Contexts pass untouched, no spans.
    Off,
    /// Contexts pass untouched; spans of the sidecar's own work only.
    SystemOnly,
    /// The sampler, keep rules, on-demand rules, adaptive sampling.
    #[default]
    Hybrid,
    /// Every exchange, with a child span for each of its phases.
    Full,
}

impl Mode {
    /// Every mode, from the cheapest to the dearest.
    pub const ALL: [Self; 4] = [Self::Off, Self::SystemOnly, Self::Hybrid, Self::Full];

    /// The word of settings, documents and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::SystemOnly => "system-only",
            Self::Hybrid => "hybrid",
            Self::Full => "full",
        }
    }

    /// Reads the word. `full-e2e` is another name of `full`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let named = Self::ALL.into_iter().find(|mode| mode.as_str().eq_ignore_ascii_case(text));
        named.or_else(|| text.eq_ignore_ascii_case("full-e2e").then_some(Self::Full))
    }

    /// Whether contexts are carried and exchanges may become spans.
    #[must_use]
    pub fn traces_exchanges(self) -> bool {
        match self {
            Self::Off | Self::SystemOnly => false,
            Self::Hybrid | Self::Full => true,
        }
    }

    /// Whether the sidecar's own work becomes spans.
    #[must_use]
    pub fn traces_own_work(self) -> bool {
        match self {
            Self::SystemOnly | Self::Full => true,
            Self::Off | Self::Hybrid => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_read_by_its_own_word() {
        for mode in Mode::ALL {
            assert_eq!(Mode::parse(mode.as_str()), Some(mode));
        }
        assert_eq!(Mode::parse("FULL-E2E"), Some(Mode::Full));
        assert_eq!(Mode::parse("some"), None);
    }
}
