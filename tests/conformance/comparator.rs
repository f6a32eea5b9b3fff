//! The comparison itself, on the recorded rules restored into a namespace: without ferrule.

use crate::node::{Node, Tools};
use crate::recording::{Rules, folder};

/// Restores the recorded rules with a change and compares the kernel with the recording.
#[track_caller]
fn check(tools: Tools, change: impl Fn(&mut Rules) + Sync, expected: &str) {
    let recorded = Rules::recorded(&folder(tools, "base"));
    Node::run(tools, |node| {
        let mut changed = recorded.clone();
        change(&mut changed);
        node.restore(&changed);
        assert_eq!(recorded.differences(&node.rules()), expected);
    });
}

/// The kernel gives back what was recorded, as it was written.
#[test]
fn recorded_rules_survive_the_kernel() {
    for tools in Tools::ALL {
        for case in ["base", "large"] {
            let recorded = Rules::recorded(&folder(tools, case));
            Node::run(tools, |node| {
                node.restore(&recorded);
                assert_eq!(recorded.differences(&node.rules()), "", "{tools:?} {case}");
            });
        }
    }
}

#[test]
fn one_rule_less_is_noticed() {
    for tools in Tools::ALL {
        check(
            tools,
            |rules| _ = rules.v4.chain("nat", "KUBE-MARK-MASQ").rules.pop(),
            "IPv4\nnat KUBE-MARK-MASQ:\n  missing: -j MARK --set-xmark 0x4000/0x4000\n",
        );
        check(
            tools,
            |rules| _ = rules.v6.chain("filter", "KUBE-FORWARD").rules.pop(),
            "IPv6\nfilter KUBE-FORWARD:\n  missing: -m comment --comment \"kubernetes forwarding conntrack rule\" \
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n",
        );
    }
}

#[test]
fn one_bit_of_a_rule_is_noticed() {
    for tools in Tools::ALL {
        check(
            tools,
            |rules| {
                for rule in &mut rules.v4.chain("nat", "KUBE-MARK-MASQ").rules {
                    *rule = rule.replace("0x4000/0x4000", "0x4000/0xc000");
                }
            },
            "IPv4\nnat KUBE-MARK-MASQ:\n  missing: -j MARK --set-xmark 0x4000/0x4000\n  \
             unexpected: -j MARK --set-xmark 0x4000/0xc000\n",
        );
    }
}

#[test]
fn a_chain_too_many_is_noticed() {
    for tools in Tools::ALL {
        check(
            tools,
            |rules| rules.v6.add_chain("nat", "KUBE-SEP-AAAAAAAAAAAAAAAA", &[]),
            "IPv6\nnat KUBE-SEP-AAAAAAAAAAAAAAAA: chain unexpected\n",
        );
    }
}

#[test]
fn order_is_noticed_where_it_matters() {
    for tools in Tools::ALL {
        check(tools, |rules| rules.v4.chain("nat", "KUBE-NODEPORTS").rules.rotate_left(2), "");
        check(tools, |rules| rules.v4.chain("filter", "KUBE-EXTERNAL-SERVICES").rules.reverse(), "");
        check(
            tools,
            |rules| rules.v4.chain("filter", "OUTPUT").rules.swap(0, 1),
            "IPv4\nfilter OUTPUT:\n  misplaced: -j KUBE-FIREWALL\n      (found as rule 2, expected elsewhere)\n",
        );
    }
}
