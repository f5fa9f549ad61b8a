//! The terminal: its width, whether to colour, and the only place that writes to it.

use std::io::{self, IsTerminal, Write};
use std::process::{Command, Stdio};

use crate::args::Color;
use crate::shop::{App, NAMES};
use crate::waterfall::Look;

/// Columns when nobody says: what a page of documentation shows well.
const WIDTH_DEFAULT: usize = 100;
const WIDTH_MIN: usize = 60;
const WIDTH_MAX: usize = 200;

/// Where the demo draws.
#[derive(Debug)]
pub(crate) struct Screen {
    width: usize,
    color: bool,
    forgetful: Vec<&'static str>,
}

impl Screen {
    /// Looks at the environment and the terminal once.
    pub(crate) fn open(color: Color) -> Screen {
        let forgetful = App::STARTING_ORDER.into_iter().filter(|app| app.forgets_operation());
        Screen { width: width(), color: colored(color), forgetful: forgetful.map(App::name).collect() }
    }

    pub(crate) fn look(&self) -> Look<'_> {
        Look { width: self.width, color: self.color, services: &NAMES, forgetful: &self.forgetful }
    }

    /// Prints text as it is; an error means that nobody reads it any more.
    pub(crate) fn say(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

fn width() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    said.or_else(terminal_width).unwrap_or(WIDTH_DEFAULT).clamp(WIDTH_MIN, WIDTH_MAX)
}

/// Shells keep COLUMNS to themselves, so the terminal is asked by way of `stty`.
fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return None;
    }
    let asked = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output();
    let answer = String::from_utf8(asked.ok()?.stdout).ok()?;
    answer.split_whitespace().nth(1)?.parse().ok().filter(|columns| *columns > 0)
}

fn colored(color: Color) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
            io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
        }
    }
}
