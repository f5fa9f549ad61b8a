//! Real peers: servers, clients and decoders of others. One that is missing is skipped, and said so.

mod nginx;
mod python;
mod tools;
