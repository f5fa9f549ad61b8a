//! Makes a connection: resolves, tries each address in turn within the time allowed, refuses to connect the
//! sidecar to itself.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use throughline_core::classify::Failure;
use throughline_core::settings::Authority;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sidecar::Sidecar;
use crate::stats::Refusal;

/// A connection to the authority.
pub(crate) async fn dial(sidecar: &Sidecar, to: &Authority) -> Result<TcpStream, Failure> {
    let patience = Duration::from_millis(sidecar.settings.connect_timeout_ms);
    timeout(patience, any_address(sidecar, to)).await.unwrap_or(Err(Failure::Timeout))
}

/// A connection to where the kernel said.
pub(crate) async fn dial_address(sidecar: &Sidecar, to: SocketAddr) -> Result<TcpStream, Failure> {
    let patience = Duration::from_millis(sidecar.settings.connect_timeout_ms);
    timeout(patience, one_address(sidecar, to)).await.unwrap_or(Err(Failure::Timeout))
}

async fn any_address(sidecar: &Sidecar, to: &Authority) -> Result<TcpStream, Failure> {
    if let Some(address) = to.address() {
        return one_address(sidecar, address).await;
    }
    let addresses = tokio::net::lookup_host((to.host.as_str(), to.port)).await.map_err(|_| Failure::Dns)?;
    let mut last = Failure::Dns;
    for address in addresses {
        match one_address(sidecar, address).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

async fn one_address(sidecar: &Sidecar, address: SocketAddr) -> Result<TcpStream, Failure> {
    let refuse = || {
        sidecar.stats.refused(Refusal::OwnPort);
        Err(Failure::Refused)
    };
    if sidecar.own_ports.hold(address) {
        return refuse();
    }
    let stream = TcpStream::connect(address).await.map_err(|error| of_io(&error))?;
    if stream.local_addr().is_ok_and(|from| sidecar.own_ports.reached(address, from)) {
        return refuse();
    }
    let _ = stream.set_nodelay(true); // without it the connection is slower, not wrong
    Ok(stream)
}

pub(super) fn of_io(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectionRefused,
        io::ErrorKind::TimedOut => Failure::Timeout,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => Failure::Unreachable,
        _ => Failure::ConnectionReset,
    }
}
