//! The flow server from outside: the contract of its API, real senders, hostile ones, the live view, its process.

mod api;
mod counts;
mod doctor;
mod hostile;
mod live;
mod process;
mod senders;
