//! Accepts connections, and bounds their number.

use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

use glommio::net::{TcpListener, TcpStream};

/// Accepts connections, and serves each in a task of its own. At most `max_connections` are open.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    tasks: glommio::TaskQueueHandle,
    max_connections: usize,
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
        if open.get() >= max_connections {
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
