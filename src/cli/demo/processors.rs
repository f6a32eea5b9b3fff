//! Clients and the node on different processors, as if a wire were between them.
//!
//! Between namespaces of one machine, a packet is received within the system call that sends it.
//! A refusal then arrives while `connect` still holds the socket, and for IPv6 the kernel drops it:
//! the client learns of it only when it tries again, a second later. If another processor does the
//! receiving, it arrives after `connect`, as it does over a wire.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::network::{CALLER_LINK, UPLINK};
use crate::command::{Command, Run, System};

/// Two processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Processors {
    clients: usize,
    node: usize,
}

// === impl Processors ===

impl Processors {
    /// Two of those this process may use, if there are two.
    pub(super) fn choose() -> Option<Processors> {
        let usable = sched_getaffinity(None).ok()?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|number| usable.is_set(*number));
        Some(Processors { clients: usable.next()?, node: usable.next()? })
    }

    /// Lets the calling thread run on the clients' processor only.
    pub(super) fn pin_client(self) {
        let mut own = CpuSet::new();
        own.set(self.clients);
        // Without it the demo works, if more slowly.
        let _ = sched_setaffinity(None, &own);
    }

    /// Lets the node receive on its processor what clients send.
    pub(super) async fn receive(self, node: &str) {
        let files = [UPLINK, CALLER_LINK].map(|link| format!("/sys/class/net/{link}/queues/rx-0/rps_cpus"));
        let [uplink, caller] = &files;
        // `ip netns exec` shows /sys as the namespace has it. Without it the demo works, if more slowly.
        let command = Command::new("ip", &["netns", "exec", node, "tee", uplink, caller]);
        let _ = System.run(command.with_stdin(mask(self.node).into_bytes()), &mut |_| {}).await;
    }
}

/// The processor as the kernel reads it: a hexadecimal number with a comma after each 32 bits.
fn mask(number: usize) -> String {
    format!("{:x}{}\n", 1_u32 << (number % 32), ",00000000".repeat(number / 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        for (number, text) in
            [(0, "1\n"), (1, "2\n"), (31, "80000000\n"), (32, "1,00000000\n"), (70, "40,00000000,00000000\n")]
        {
            assert_eq!(mask(number), text);
        }
    }
}
