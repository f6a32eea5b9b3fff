//! One ferrule per network namespace.
//!
//! A ferrule that was killed may leave an `iptables-restore` behind that has read its input but not
//! yet written it. Whoever starts next must not read the kernel before that has ended. Both are
//! seen to with one abstract socket name, which belongs to the network namespace: programs that
//! ferrule starts inherit the socket, so the name is free only when they are gone as well.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};

const NAME: &[u8] = b"ferrule-instance";
const STEP: Duration = Duration::from_millis(50);

/// Held while this process may write rules.
#[derive(Debug)]
pub struct Instance {
    _socket: UnixListener,
}

// === impl Instance ===

impl Instance {
    /// Waits until no other ferrule, and no program one left behind, is in this network namespace.
    pub async fn acquire() -> io::Result<Instance> {
        let mut waited = 0u32;
        loop {
            if let Some(instance) = Instance::try_acquire()? {
                return Ok(instance);
            }
            if waited == 20 {
                tracing::warn!(
                    "another ferrule, or a program it started, is running in this network namespace; waiting for its end"
                );
            }
            waited = waited.saturating_add(1);
            tokio::time::sleep(STEP).await;
        }
    }

    /// The same, but gives up after a while.
    pub async fn acquire_within(limit: Duration) -> io::Result<Option<Instance>> {
        match tokio::time::timeout(limit, Instance::acquire()).await {
            Ok(acquired) => acquired.map(Some),
            Err(_) => Ok(None),
        }
    }

    fn try_acquire() -> io::Result<Option<Instance>> {
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?) {
            Ok(socket) => {
                fcntl_setfd(&socket, FdFlags::empty())?;
                Ok(Some(Instance { _socket: socket }))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}
