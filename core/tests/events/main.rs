//! What becomes of messages and events, seen from outside: the bodies that go on are read by a naive JSON
//! reader and by `prost`, neither of which knows ours; spans by `opentelemetry-proto`. Each scenario's books
//! are balanced when its stage is taken down. The rules are those of ARCHITECTURE.md, "Messages".

#[cfg(test)]
mod broken;
#[cfg(test)]
mod counted;
#[cfg(test)]
mod grpc;
#[cfg(test)]
#[path = "../exchange/harness.rs"]
#[expect(dead_code, reason = "the stage is shared; not every test needs all of it")]
mod harness;
#[cfg(test)]
mod http;
#[cfg(test)]
mod json;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod pull;
#[cfg(test)]
mod push;
#[cfg(test)]
#[path = "../exchange/pushed.rs"]
mod pushed;
#[cfg(test)]
mod sampled;
#[cfg(test)]
mod stage;
