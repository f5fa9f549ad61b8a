//! What is traced, and what is kept: modes, keep rules, and who may change them at run time.

mod adaptive;
mod control;
mod edge;
mod full;
mod keep;
mod system;
mod travel;
