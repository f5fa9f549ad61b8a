//! `throughline-flow`: settings in, listeners up, drain, down.

fn main() {}
