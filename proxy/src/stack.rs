//! The order of layers, outermost first; the only place that knows it.

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder};

use crate::browser::BrowserLayer;
use crate::conform::ConformLayer;
use crate::forward::{Forward, FromUpstream};
use crate::messages::Resumed;
use crate::sidecar::Connection;
use crate::trace::{TraceLayer, Traced};

/// The body that a caller gets.
pub(crate) type Body = Traced<Resumed<FromUpstream>>;

/// What serves the requests of one connection.
pub(crate) fn stack(
    connection: &Arc<Connection>,
) -> impl Service<
    Request<Incoming>,
    Response = http::Response<Body>,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    ServiceBuilder::new()
        // An illegal head is answered before anything else sees it, so nothing behind has to doubt a request.
        .layer(ConformLayer(Arc::clone(connection)))
        // What browsers get of the sidecar itself is no exchange, and no business of the application.
        .layer(BrowserLayer(Arc::clone(connection)))
        // The exchange begins once the request is known to be one, and outlives whatever the upstream does.
        .layer(TraceLayer(Arc::clone(connection)))
        // Forwarding knows nothing of traces: it sees headers that are final.
        .service(Forward(Arc::clone(connection)))
}
