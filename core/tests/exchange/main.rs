//! What a caller, an application, a next hop and a collector see of exchanges: headers in and out, spans as
//! OTLP bytes read back by `opentelemetry-proto`, exact numbers. Numbers of rules are those of "Rules of the
//! exchange" in DESIGN.md.

#[cfg(test)]
mod adaptive;
#[cfg(test)]
mod browser;
#[cfg(test)]
mod context;
#[cfg(test)]
mod control;
#[cfg(test)]
mod crossing;
#[cfg(test)]
mod edge;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod keep;
#[cfg(test)]
mod modes;
#[cfg(test)]
mod numbers;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod pushed;
#[cfg(test)]
mod restoring;
#[cfg(test)]
mod sums;
#[cfg(test)]
mod travel;
