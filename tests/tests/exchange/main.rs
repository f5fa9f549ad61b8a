//! One request, one span: every form that HTTP takes, every way it can end, and the tunnels.

mod attributes;
mod bytes;
mod calls;
mod ends;
mod forms;
mod many;
mod tunnels;
