//! Metrics and health over plain HTTP; reads only, changes nothing.
//!
//! - `GET /metrics`: Prometheus text (facts §9.1)
//! - `GET /ready`: 200 while the hub serves clients, 503 while it shuts down
//! - `GET /live`: 200 while the process answers at all
//! - `GET /status`: identities connected, routes with hits, queues, as JSON

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::hub::{Hub, Now};
use crate::mailbox::Mailbox;
use crate::server::{PendingSet, Shared, evicted};

/// Connections at a time; the oldest makes room for the newest, so that slow ones block nobody.
const CONNECTIONS_MAX: usize = 64;
/// From the connection to a complete request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// For one answer to be read.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves until `stop` changes, and answers `/ready` with 503 from then on for what is still open.
pub async fn serve(listener: TcpListener, shared: Shared, mut stop: watch::Receiver<bool>) {
    let open = PendingSet::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (hub, clock, stop) = (Arc::clone(&shared.hub), shared.clock, stop.clone());
        let mailbox = Arc::new(Mailbox::default());
        let place = open.enter(&mailbox, CONNECTIONS_MAX, shared.clock.now().ms);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = respond(&request, &hub, clock.now(), *stop.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .serve_connection(TokioIo::new(socket), answer);
            tokio::select! {
                ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {
                    if let Ok(Err(error)) = ended {
                        tracing::debug!(%error, "HTTP connection");
                    }
                }
                () = evicted(&mailbox) => {}
            }
            drop(place);
        });
    }
}

fn respond(
    request: &Request<Incoming>,
    hub: &Hub,
    now: Now,
    stopping: bool,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, hub.render_metrics(now)),
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" if stopping => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
        "/ready" => text(StatusCode::OK, "ready\n"),
        "/status" => status(hub),
        _ => text(
            StatusCode::NOT_FOUND,
            "there is /metrics, /ready, /live and /status\n",
        ),
    }
}

fn status(hub: &Hub) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(&hub.status()) {
        Ok(json) => answer(StatusCode::OK, "application/json", json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(code, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn answer(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
