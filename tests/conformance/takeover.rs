//! Rules that a kube-proxy or an earlier ferrule left, possibly with other settings or damaged,
//! become the recorded ones; the rules of others stay as they are, where they are.

use crate::node::{Node, Tools};
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder, golden};
use crate::saved::Tables;
use crate::source::Source;
use crate::steps::objects_after;

/// Starts ferrule with the configuration `base` over the rules of configuration `case`, changed by
/// `left`, and expects the rules of `base`, changed by `expected`.
fn check(tools: Tools, case: &str, left: impl Fn(&mut Tables) + Sync, expected: impl Fn(&mut Tables) + Sync) {
    let base = folder(tools, "base");
    let files = vec![golden().join("objects/all.yaml")];
    Node::run(tools, |node| {
        node.restore(&Rules::recorded(&folder(tools, case)).both(&left));
        let source = Source::Files(files);
        let mut proxy = Proxy::start(node, &config(&base), &source);
        proxy.wait_for_step(&Rules::recorded(&base).both(&expected), case);
    });
}

#[test]
fn rules_with_another_mark() {
    Tools::ALL.into_iter().for_each(|tools| check(tools, "masqbit", |_| {}, |_| {}));
}

#[test]
fn rules_without_localhost_node_ports() {
    Tools::ALL.into_iter().for_each(|tools| check(tools, "nolocalhost", |_| {}, |_| {}));
}

#[test]
fn rules_with_other_node_port_addresses() {
    Tools::ALL.into_iter().for_each(|tools| check(tools, "npcidr", |_| {}, |_| {}));
}

#[test]
fn rules_with_another_local_detector() {
    Tools::ALL.into_iter().for_each(|tools| check(tools, "bridge", |_| {}, |_| {}));
}

/// Chains without comments are written anew, and those of Services that are gone are removed.
#[test]
fn rules_of_a_large_cluster() {
    Tools::ALL.into_iter().for_each(|tools| check(tools, "large", |_| {}, |_| {}));
}

#[test]
fn stale_and_damaged_rules() {
    Tools::ALL.into_iter().for_each(|tools| check(tools, "base", damage, |_| {}));
}

/// Services changed while no proxy ran.
#[test]
fn rules_of_other_objects() {
    for tools in Tools::ALL {
        let base = folder(tools, "base");
        let (objects, step) = objects_after(12);
        Node::run(tools, |node| {
            node.restore(&Rules::recorded(&base));
            let source = Source::folder(node, &objects);
            let mut proxy = Proxy::start(node, &config(&base), &source);
            proxy.wait_for_step(&Rules::recorded(&base.join("steps").join(&step)), &step);
        });
    }
}

/// Others had their rules before: the jumps of the proxy go before them, as kube-proxy does it.
#[test]
fn rules_of_others_before_a_first_start() {
    for tools in Tools::ALL {
        let base = folder(tools, "base");
        let files = vec![golden().join("objects/all.yaml")];
        Node::run(tools, |node| {
            node.restore(&Rules::empty().both(foreign));
            let source = Source::Files(files);
            let mut proxy = Proxy::start(node, &config(&base), &source);
            proxy.wait_for(&Rules::recorded(&base).both(foreign));
        });
    }
}

/// Others added their rules later, some before the proxy's, some after.
#[test]
fn rules_of_others_beside_rules_taken_over() {
    let left = |tables: &mut Tables| {
        damage(tables);
        foreign(tables);
        foreign_first(tables);
    };
    let expected = |tables: &mut Tables| {
        foreign(tables);
        foreign_first(tables);
    };
    Tools::ALL.into_iter().for_each(|tools| check(tools, "base", left, expected));
}

/// What an unlucky past may leave: chains and rules of Services that are gone, rules too many, too
/// few and in the wrong order in those that are there, a canary and a jump removed.
pub fn damage(tables: &mut Tables) {
    // A Service that is gone, with everything that led to it.
    tables.add_chain("nat", "KUBE-SEP-AAAAAAAAAAAAAAAA", &["-m comment --comment \"g/gone:http\" -j KUBE-MARK-MASQ"]);
    tables.add_chain("nat", "KUBE-SVC-AAAAAAAAAAAAAAAA", &["-j KUBE-SEP-AAAAAAAAAAAAAAAA"]);
    tables.add_chain("nat", "KUBE-SVL-AAAAAAAAAAAAAAAA", &["-j KUBE-SEP-AAAAAAAAAAAAAAAA"]);
    tables.add_chain("nat", "KUBE-EXT-AAAAAAAAAAAAAAAA", &["-j KUBE-SVC-AAAAAAAAAAAAAAAA"]);
    tables.add_chain("nat", "KUBE-FW-AAAAAAAAAAAAAAAA", &["-j KUBE-EXT-AAAAAAAAAAAAAAAA"]);
    let gone = "-p tcp -m comment --comment \"g/gone:http cluster IP\" -m tcp --dport 80";
    tables.insert("nat", "KUBE-SERVICES", &format!("{gone} -j KUBE-SVC-AAAAAAAAAAAAAAAA"));
    tables.insert("nat", "KUBE-NODEPORTS", &format!("{gone} -j KUBE-EXT-AAAAAAAAAAAAAAAA"));
    // After the rule that must be the last.
    tables.append("nat", "KUBE-SERVICES", &format!("{gone} -j KUBE-FW-AAAAAAAAAAAAAAAA"));
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS"] {
        tables.insert("filter", chain, &format!("{gone} -j DROP"));
    }
    // Shared chains: a rule twice, a rule too few, wrong order.
    let forward = &mut tables.chain("filter", "KUBE-FORWARD").rules;
    forward.reverse();
    tables.chain("nat", "KUBE-POSTROUTING").rules.remove(0);
    tables.append("nat", "KUBE-MARK-MASQ", "-j RETURN");
    let services = &mut tables.chain("nat", "KUBE-SERVICES").rules;
    let second = services[1].clone();
    services.insert(1, second);
    // Chains of Services that are there.
    let per_service = |prefix: &str, tables: &Tables| {
        let names = tables.0["nat"].iter().filter(|(name, chain)| name.starts_with(prefix) && chain.rules.len() > 1);
        names.map(|(name, _)| name.clone()).collect::<Vec<String>>()
    };
    for (i, name) in per_service("KUBE-SVC-", tables).iter().enumerate() {
        let rules = &mut tables.chain("nat", name).rules;
        match i % 4 {
            0 => rules.reverse(),
            1 => _ = rules.pop(),
            2 => rules.insert(0, "-j KUBE-SEP-AAAAAAAAAAAAAAAA".to_owned()),
            _ => {}
        }
    }
    if let [first, .., last] = per_service("KUBE-SEP-", tables).as_slice() {
        tables.chain("nat", first).rules.clear();
        tables.chain("nat", last).rules.swap(0, 1);
    }
    tables.0.get_mut("filter").expect("a table").remove("KUBE-PROXY-CANARY");
    // The topmost jump only: kube-proxy puts what is missing at the top, so it comes back in place.
    tables.chain("nat", "OUTPUT").rules.remove(0);
}

/// Rules of others, after those of the proxy.
pub fn foreign(tables: &mut Tables) {
    for table in ["mangle", "nat", "filter"] {
        tables.add_chain(table, "KUBE-KUBELET-CANARY", &[]);
    }
    tables.add_chain("mangle", "KUBE-IPTABLES-HINT", &[]);
    // Left by an older kubelet.
    tables.add_chain("nat", "KUBE-MARK-DROP", &["-j MARK --set-xmark 0x8000/0x8000"]);
    // A CNI plugin.
    tables.add_chain("filter", "CNI-FORWARD", &["-m comment --comment \"admin overrides\" -j CNI-ADMIN"]);
    tables.add_chain("filter", "CNI-ADMIN", &[]);
    tables.append("filter", "FORWARD", "-m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD");
    tables.add_chain("nat", "CNI-HOSTPORT-DNAT", &["-p tcp -m tcp --dport 8080 -j CNI-DN-0123456789abcdef"]);
    tables.add_chain("nat", "CNI-DN-0123456789abcdef", &[]);
    tables.append("nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT");
    tables.append("nat", "OUTPUT", "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT");
    // A user, whose rules look a little like ours.
    tables.add_chain("filter", "KUBE-SVC-OF-MINE", &["-j RETURN"]);
    tables.append("filter", "INPUT", "-p tcp -m tcp --dport 22 -j ACCEPT");
    tables.append("filter", "FORWARD", "-i tun0 -j DROP");
    tables.append("mangle", "FORWARD", "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu");
    tables.chain("filter", "FORWARD").policy = "DROP".to_owned();
    // A table the proxy does not use.
    for chain in ["PREROUTING", "OUTPUT"] {
        tables.add_chain("raw", chain, &[]);
        tables.chain("raw", chain).policy = "ACCEPT".to_owned();
    }
    tables.append("raw", "PREROUTING", "-i tun0 -j NOTRACK");
}

/// Rules of others, before those of the proxy.
pub fn foreign_first(tables: &mut Tables) {
    tables.insert("filter", "INPUT", "-i tun0 -j DROP");
    tables.insert("filter", "FORWARD", "-m comment --comment \"mine first\" -j ACCEPT");
    tables.insert("nat", "POSTROUTING", "-o tun0 -j MASQUERADE");
}

/// The texts above are as the tools print them, so that a difference is the proxy's doing.
#[test]
fn what_is_made_up_here_survives_the_kernel() {
    for tools in Tools::ALL {
        Node::run(tools, |node| {
            let all = Rules::recorded(&folder(tools, "base")).both(damage).both(foreign).both(foreign_first);
            node.restore(&all);
            let actual = node.rules();
            assert!(all == actual, "{}", all.differences(&actual));
        });
    }
}
