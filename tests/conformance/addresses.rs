//! What rules depend on besides objects: the addresses of the node and the IP families of its
//! kernel.

use crate::node::{Node, Tools};
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder, golden};
use crate::saved::Tables;
use crate::source::Source;

fn recorded_objects() -> Source {
    Source::Files(vec![golden().join("objects/all.yaml")])
}

/// Node ports answer on a new address within `nodePortAddresses`, until it goes.
#[test]
fn addresses_come_and_go() {
    for tools in Tools::ALL {
        let folder = folder(tools, "npcidr");
        let recorded = Rules::recorded(&folder);
        let mut with_address = recorded.clone();
        let services = &mut with_address.v4.chain("nat", "KUBE-SERVICES").rules;
        let tail = services.last().expect("a rule").replace("172.31.99.2/32", "172.31.99.77/32");
        services.push(tail);
        Node::run(tools, |node| {
            let source = recorded_objects();
            let mut proxy = Proxy::start(node, &config(&folder), &source);
            proxy.wait_for(&recorded);
            // The second one is outside the configured network.
            node.ip("addr add 172.31.99.77/24 dev d0\naddr add 172.31.97.77/24 dev d0\n");
            proxy.wait_for_step(&with_address, "an address came");
            node.ip("addr del 172.31.99.77/24 dev d0\n");
            proxy.wait_for_step(&recorded, "the address went");
        });
    }
}

/// Where the kernel has IPv6 disabled, that family is left alone.
#[test]
fn a_kernel_without_ipv6() {
    for tools in Tools::ALL {
        let folder = folder(tools, "base");
        let v4 = Rules::recorded(&folder).v4;
        Node::run(tools, |node| {
            // Of this network namespace, as the calling thread sees it.
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("disable IPv6");
            let source = recorded_objects();
            let mut proxy = Proxy::start(node, &config(&folder), &source);
            proxy.wait_for(&Rules { v4, v6: Tables::default() });
        });
    }
}
