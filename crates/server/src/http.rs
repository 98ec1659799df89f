//! The HTTP endpoint for operators: `/metrics`, `/healthz` and `/readyz`.
//!
//! It runs on a thread of its own, and asks each shard for a report. A shard that does not answer
//! within two seconds is not healthy. A node that opens its logs is healthy, and not ready.
//!
//! What arrives is bounded: few connections, one request on each, a short time, and a small buffer.
//! Bodies are not read.

use std::{convert::Infallible, io, net::TcpListener, sync::Arc, thread, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use palisade_sync::{Sender, Watermark};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    executor::ShardCommand,
    metrics::{ShardReport, text},
};

/// How long to wait for the reports of all shards.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at once. Others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;

/// Limit on the head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// The media type of Prometheus's text format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The shards of a node, as the endpoint sees them.
pub(crate) struct Shards {
    pub(crate) senders: Vec<Sender<ShardCommand>>,
    /// Above 0 once the shards have opened their logs.
    pub(crate) opened: Arc<Watermark>,
}

/// Serves the endpoint until the process ends.
///
/// # Errors
///
/// If the listener cannot be used, or the thread cannot be started.
pub(crate) fn serve(listener: TcpListener, shards: Shards) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, accept(listener, Arc::new(shards)));
    };
    thread::Builder::new().name("palisade-http".to_owned()).spawn(run).map(drop)
}

async fn accept(listener: TcpListener, shards: Arc<Shards>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the HTTP endpoint does not serve: {error}"),
    };
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let shards = shards.clone();
                tokio::task::spawn_local(async move {
                    // Fails if the other side is too slow, or sends no request of HTTP.
                    let _ = timeout(CONNECTION_TIMEOUT, serve_connection(stream, &shards)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("the HTTP endpoint cannot accept a connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, shards: &Shards) -> hyper::Result<()> {
    let service = service_fn(async |request: Request<_>| {
        let (status, media_type, body) =
            answer(request.method(), request.uri().path(), shards).await;
        let response = Response::builder().status(status).header(CONTENT_TYPE, media_type);
        let response = response.body(Full::new(Bytes::from(body)));
        Ok::<_, Infallible>(response.expect("the status and the media type are valid"))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Returns the status code, the media type and the body of an answer.
async fn answer(
    method: &Method,
    path: &str,
    shards: &Shards,
) -> (StatusCode, &'static str, String) {
    let plain = |status, body: String| (status, "text/plain; charset=utf-8", body + "\n");
    if !matches!(*method, Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported".to_owned());
    }
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return plain(StatusCode::NOT_FOUND, "see /metrics, /healthz and /readyz".to_owned());
    }
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    if shards.opened.get() == 0 {
        let status = if path == "/healthz" { StatusCode::OK } else { unavailable };
        return plain(status, "the logs are being opened".to_owned());
    }
    if path == "/healthz" {
        return match ask(&shards.senders, ShardCommand::Ping).await {
            Ok(_) => plain(StatusCode::OK, "healthy".to_owned()),
            Err(shard) => plain(unavailable, format!("shard {shard} does not answer")),
        };
    }
    let reports = match ask(&shards.senders, ShardCommand::Report).await {
        Ok(reports) => reports,
        Err(shard) => return plain(unavailable, format!("shard {shard} does not answer")),
    };
    if path == "/readyz" {
        let reasons: Vec<_> = reports.iter().filter_map(ShardReport::not_ready).collect();
        return match reasons[..] {
            [] => plain(StatusCode::OK, "ready".to_owned()),
            _ => plain(unavailable, reasons.join("\n")),
        };
    }
    match text(reports) {
        Ok(text) => (StatusCode::OK, METRICS_TYPE, text),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Returns the answers of all shards to a command, or the number of one that does not answer.
async fn ask<T>(
    shards: &[Sender<ShardCommand>],
    command: impl Fn(oneshot::Sender<T>) -> ShardCommand,
) -> Result<Vec<T>, usize> {
    let deadline = Instant::now() + REPORT_TIMEOUT;
    let asked: Vec<_> = shards
        .iter()
        .map(|shard| {
            let (sender, receiver) = oneshot::channel();
            // Fails if the mailbox is full or the shard has ended. Then there is no answer.
            let _ = shard.try_send(command(sender));
            receiver
        })
        .collect();
    let mut answers = Vec::with_capacity(asked.len());
    for (at, answer) in asked.into_iter().enumerate() {
        let answer = timeout_at(deadline, answer).await;
        answers.push(answer.ok().and_then(Result::ok).ok_or(at)?);
    }
    Ok(answers)
}
