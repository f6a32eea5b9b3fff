//! TLS in front of the fake API server, with a certificate that can be exchanged.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::FakeApi;

/// Serves the fake over TLS, until it is dropped. It needs the runtime it was started on.
pub struct Tls {
    pub address: SocketAddr,
    acceptor: Arc<std::sync::Mutex<TlsAcceptor>>,
    task: JoinHandle<()>,
}

impl Tls {
    /// Starts with the certificate of this name (see `authority`), on a port of its own.
    pub async fn start(fake: &FakeApi, name: &str) -> Tls {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let acceptor = Arc::new(std::sync::Mutex::new(acceptor(name)));
        let (current, target) = (acceptor.clone(), fake.address());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((plain, _)) = listener.accept().await {
                let acceptor = current.lock().expect("the acceptor").clone();
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(plain).await else { return };
                    let mut server = TcpStream::connect(target).await.expect("the fake listens");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Tls { address, acceptor, task }
    }

    /// Connections from now on see another certificate.
    pub fn exchange(&self, name: &str) {
        *self.acceptor.lock().expect("the acceptor") = acceptor(name);
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Certificates that are their own authority, for 127.0.0.1, valid until 2120, made with openssl
/// for these tests alone.
fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/api/tls").join(name)
}

fn acceptor(name: &str) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(tls_file(&format!("{name}.crt"))).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(tls_file(&format!("{name}.key"))).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    TlsAcceptor::from(Arc::new(config.expect("a certificate and its key")))
}

/// The authority that vouches for the certificate of this name: `one` or `two`.
pub fn authority(name: &str) -> String {
    std::fs::read_to_string(tls_file(&format!("{name}.crt"))).expect("a certificate")
}
