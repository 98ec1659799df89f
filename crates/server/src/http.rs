//! The HTTP endpoint for operators: `/metrics`, `/healthz` and `/readyz`.
//!
//! It runs on a few threads of its own, and asks each shard for a report. A shard that does not
//! answer within two seconds is not healthy. A node that opens its logs is healthy, and not ready.

use std::{io, net::TcpListener, sync::Arc, thread, time::Duration};

use crossbeam::channel::bounded;
use palisade_sync::{Sender, Watermark};
use tiny_http::{Header, Method, Response, Server};

use crate::{
    executor::ShardCommand,
    metrics::{ShardReport, text},
};

/// How long to wait for the report of a shard.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Number of answers that can be sent at once. A client that reads slowly holds up one.
const THREADS: usize = 4;

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
/// If the listener cannot be used, or no thread can be started.
pub(crate) fn serve(listener: TcpListener, shards: Shards) -> io::Result<()> {
    let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
    let shards = Arc::new(shards);
    for _ in 0..THREADS {
        let (server, shards) = (server.clone(), shards.clone());
        thread::Builder::new()
            .name("palisade-http".to_owned())
            .spawn(move || serve_requests(&server, &shards))?;
    }
    Ok(())
}

fn serve_requests(server: &Server, shards: &Shards) {
    loop {
        match server.recv() {
            Ok(request) => {
                let (status, media_type, body) = answer(request.method(), request.url(), shards);
                let header =
                    Header::from_bytes("Content-Type", media_type).expect("media types are ASCII");
                let response =
                    Response::from_string(body).with_status_code(status).with_header(header);
                // Fails if the other side has closed its connection.
                let _ = request.respond(response);
            }
            Err(error) => {
                tracing::warn!("the HTTP endpoint cannot receive: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Returns the status code, the media type and the body of an answer.
fn answer(method: &Method, url: &str, shards: &Shards) -> (u16, &'static str, String) {
    let plain = |status, body: String| (status, "text/plain; charset=utf-8", body + "\n");
    if !matches!(method, Method::Get | Method::Head) {
        return plain(405, "only GET is supported".to_owned());
    }
    let path = url.split('?').next().unwrap_or_default();
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return plain(404, "see /metrics, /healthz and /readyz".to_owned());
    }
    if shards.opened.get() == 0 {
        let status = if path == "/healthz" { 200 } else { 503 };
        return plain(status, "the logs are being opened".to_owned());
    }
    let reports = match reports(&shards.senders) {
        Ok(reports) => reports,
        Err(shard) => return plain(503, format!("shard {shard} does not answer")),
    };
    match path {
        "/metrics" => match text(reports) {
            Ok(text) => (200, METRICS_TYPE, text),
            Err(error) => plain(500, error.to_string()),
        },
        "/readyz" => {
            let reasons: Vec<_> = reports.iter().filter_map(ShardReport::not_ready).collect();
            if reasons.is_empty() {
                plain(200, "ready".to_owned())
            } else {
                plain(503, reasons.join("\n"))
            }
        }
        _ => plain(200, "healthy".to_owned()),
    }
}

/// Returns the reports of all shards, or the number of one that does not answer.
fn reports(shards: &[Sender<ShardCommand>]) -> Result<Vec<ShardReport>, usize> {
    let asked: Vec<_> = shards
        .iter()
        .map(|shard| {
            let (sender, receiver) = bounded(1);
            // Fails if the mailbox is full or the shard has ended. Then there is no report.
            let _ = shard.try_send(ShardCommand::Report(sender));
            receiver
        })
        .collect();
    (0..)
        .zip(asked)
        .map(|(at, report)| report.recv_timeout(REPORT_TIMEOUT).map_err(|_| at))
        .collect()
}
