//! Servers. All run in one thread of their own; only their sockets are inside of the pods.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use super::{Proto, sctp};
use crate::world::{Family, Pod};

/// The servers of a world.
pub struct Servers {
    runtime: Runtime,
    running: Mutex<BTreeMap<(String, Proto), Vec<Running>>>,
}

enum Running {
    Task(AbortHandle),
    Thread(Arc<AtomicBool>, Option<JoinHandle<()>>),
}

// === impl Servers ===

impl Servers {
    /// None yet.
    pub fn start() -> Servers {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Servers { runtime, running: Mutex::default() }
    }

    /// Starts a server in a pod, for both families.
    ///
    /// A connection is greeted with `<pod> <address it came from>`, then what it sends is sent back.
    /// A datagram is answered with the greeting.
    pub fn listen(&self, pod: &Pod, proto: Proto, port: u16) {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let name = pod.name.clone();
        let running = match proto {
            Proto::Tcp => {
                let listener = pod.netns.run(|| TcpListener::bind(any)).unwrap();
                listener.set_nonblocking(true).unwrap();
                vec![Running::Task(self.runtime.spawn(serve_tcp(name.clone(), listener)).abort_handle())]
            }
            Proto::Udp => {
                let socket = pod.netns.run(|| UdpSocket::bind(any)).unwrap();
                socket.set_nonblocking(true).unwrap();
                vec![Running::Task(self.runtime.spawn(serve_udp(name.clone(), socket)).abort_handle())]
            }
            Proto::Sctp => Family::BOTH
                .into_iter()
                .map(|family| {
                    let stop = Arc::new(AtomicBool::new(false));
                    let socket = pod.netns.run(|| sctp::raw_socket(family));
                    let (name, stopped) = (name.clone(), Arc::clone(&stop));
                    let thread = std::thread::spawn(move || sctp::serve(&name, family, &socket, port, &stopped));
                    Running::Thread(stop, Some(thread))
                })
                .collect(),
        };
        self.running.lock().unwrap().entry((name, proto)).or_default().extend(running);
    }

    /// Ends the servers of a pod for a protocol: from now on new connections to it are refused.
    /// Connections that are open go on.
    pub fn stop(&self, pod: &Pod, proto: Proto) {
        self.running.lock().unwrap().remove(&(pod.name.clone(), proto));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match self {
            Running::Task(task) => task.abort(),
            Running::Thread(stop, thread) => {
                stop.store(true, Ordering::Relaxed);
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}

/// What a server says first.
pub(super) fn greeting(name: &str, peer: SocketAddr) -> String {
    // A socket for both families shows IPv4 addresses as mapped ones.
    format!("{name} {}\n", peer.ip().to_canonical())
}

async fn serve_tcp(name: String, listener: TcpListener) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        // An error here is one connection that ended before it was taken.
        let Ok((mut stream, peer)) = listener.accept().await else { continue };
        let greeting = greeting(&name, peer);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if stream.write_all(greeting.as_bytes()).await.is_err() {
                return;
            }
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn serve_udp(name: String, socket: UdpSocket) {
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    let mut buffer = [0; 1024];
    loop {
        // An error here is an ICMP answer to something sent before.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(greeting(&name, peer).as_bytes(), peer).await;
        }
    }
}
