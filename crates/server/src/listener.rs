//! Accepts connections, and bounds their number.

use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

use glommio::net::{TcpListener, TcpStream};

/// Limit on the open connections of a shard's listener.
const MAX_CONNECTIONS: usize = 4096;

/// Accepts connections, and serves each in a task of its own.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    tasks: glommio::TaskQueueHandle,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let open = Rc::new(Cell::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                glommio::timer::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if open.get() >= MAX_CONNECTIONS {
            // Closes the connection. The client tries again, or another shard.
            continue;
        }
        open.set(open.get() + 1);
        let (open, connection) = (open.clone(), serve(stream));
        let task = async move {
            connection.await;
            open.set(open.get() - 1);
        };
        glommio::spawn_local_into(task, tasks)
            .expect("the task queue lives as long as we")
            .detach();
    }
}
