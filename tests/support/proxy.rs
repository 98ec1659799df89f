//! A TCP proxy that can stop forwarding on the connections that are open.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Interval at which a silent connection looks whether it still forwards.
const LOOK: Duration = Duration::from_millis(20);

/// A proxy to one address. Runs until the process ends.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// Connections of earlier generations forward nothing.
    generation: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let generation = Arc::new(AtomicU64::new(0));
        let current = generation.clone();
        thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(to) = TcpStream::connect(target) else { continue };
                let (back, forth) = (to.try_clone().unwrap(), from.try_clone().unwrap());
                for (from, to) in [(from, to), (back, forth)] {
                    let (current, own) = (current.clone(), current.load(Ordering::Relaxed));
                    thread::spawn(move || {
                        forward(from, to, || current.load(Ordering::Relaxed) == own);
                    });
                }
            }
        });
        Self { port, generation }
    }

    /// Stops forwarding on all open connections, and keeps them open. New ones forward.
    pub(crate) fn silence(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_current: impl Fn() -> bool) {
    from.set_read_timeout(Some(LOOK)).unwrap();
    to.set_nodelay(true).unwrap();
    let mut bytes = vec![0; 64 * 1024];
    while is_current() {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(read) if is_current() => {
                if to.write_all(&bytes[..read]).is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
    // Both ends stay open, and nothing arrives at either.
    loop {
        thread::park();
    }
}
