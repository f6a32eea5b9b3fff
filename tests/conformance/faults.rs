//! What goes wrong on nodes: tables flushed or rewritten by others, the lock held, a proxy or a
//! restore killed halfway, a Service that the kernel refuses. The rules become right again without
//! a restart (but for the proxy that was killed).

use std::fs::File;

use crate::node::{Node, Tools};
use crate::objects::{Id, Objects, Step};
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder};
use crate::saved::Tables;
use crate::source::Source;
use crate::takeover::foreign;

/// Rules, objects and configuration of `base`, but for shorter periods.
struct Base {
    recorded: Rules,
    objects: Objects,
    config: String,
}

impl Base {
    fn new(tools: Tools) -> Base {
        let folder = folder(tools, "base");
        Base {
            recorded: Rules::recorded(&folder),
            objects: Objects::recorded(&["all.yaml"]),
            config: config(&folder) + "iptables: {syncPeriod: 2s, minSyncPeriod: 0s}\n",
        }
    }
}

/// Lets somebody do something to the rules of a running proxy.
#[track_caller]
fn check_disturbance(disturb: impl Fn(&Node) + Sync, expected: impl Fn(&mut Tables) + Sync) {
    for tools in Tools::ALL {
        let base = Base::new(tools);
        Node::run(tools, |node| {
            let source = Source::folder(node, &base.objects);
            let mut proxy = Proxy::start(node, &base.config, &source);
            proxy.wait_for(&base.recorded);
            disturb(node);
            proxy.wait_for_step(&base.recorded.clone().both(&expected), "the disturbance");
        });
    }
}

#[test]
fn everything_is_removed() {
    check_disturbance(|node| node.restore(&Rules::empty()), |_| {});
}

/// As `iptables -F` does it: chains stay, rules go.
#[test]
fn everything_is_flushed() {
    let flush = |tables: &mut Tables| {
        for chain in tables.0.values_mut().flat_map(|table| table.values_mut()) {
            chain.rules.clear();
        }
    };
    check_disturbance(|node| node.restore(&node.rules().both(flush)), |_| {});
}

/// A firewall writes whole tables from its own files.
#[test]
fn everything_is_replaced_by_a_firewall() {
    check_disturbance(|node| node.restore(&Rules::empty().both(foreign)), foreign);
}

/// Another program holds the lock for longer than the tools wait. (With nftables there is none.)
#[test]
fn the_lock_is_held() {
    let base = Base::new(Tools::Legacy);
    Node::run(Tools::Legacy, |node| {
        let lock = File::create(node.lock_file()).expect("the lock file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("take the lock");
        // The lock is let go once a tool has given up.
        let gave_up = node.dir().join("gave-up");
        for program in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
            let note = format!("$real \"$@\"; code=$?; [ $code != 4 ] || : >{}; exit $code", gave_up.display());
            node.wrap(program, &note);
        }
        let source = Source::folder(node, &base.objects);
        let mut proxy = Proxy::start(node, &base.config, &source);
        proxy.wait_until("a tool gives up waiting for the lock", || gave_up.exists());
        drop(lock);
        proxy.wait_for_step(&base.recorded, "the lock was let go");
    });
}

/// The proxy is killed at its n-th restore, before or after the kernel took it, or at some of the
/// other calls; the next one finishes the work.
#[test]
fn the_proxy_is_killed() {
    for tools in Tools::ALL {
        let base = Base::new(tools);
        let mut killed = 0;
        for (program, calls) in [("iptables-restore", [1, 2, 3]), ("iptables", [3, 12, 30])] {
            for call in calls {
                for after in [false, true] {
                    killed += usize::from(kill_at(tools, &base, program, call, after));
                }
            }
        }
        assert!(killed >= 4, "only {killed} proxies were killed: the calls to choose from have changed");
    }
}

/// Kills a proxy that takes over damaged rules, and starts another. Whether it came that far.
fn kill_at(tools: Tools, base: &Base, program: &str, call: u32, after: bool) -> bool {
    let mut killed = false;
    Node::run(tools, |node| {
        node.restore(&base.recorded.clone().both(crate::takeover::damage));
        let calls = node.dir().join("calls");
        let count = format!("echo >>{0}; [ $(wc -l <{0}) = {call} ] || exec $real \"$@\"", calls.display());
        let kill = if after { "$real \"$@\"; kill -9 $PPID" } else { "kill -9 $PPID" };
        node.wrap(program, &format!("{count}\n{kill}"));
        let source = Source::folder(node, &base.objects);
        let mut first = Proxy::start(node, &base.config, &source);
        killed = first.wait_for_or_end(&base.recorded);
        drop(first);
        node.unwrap(program);
        let mut second = Proxy::start(node, &base.config, &source);
        let what = format!("kill -9 at {program} {call}, {}", if after { "after it" } else { "before it" });
        second.wait_for_step(&base.recorded, &what);
    });
    killed
}

/// A restore ends after the first of its tables.
#[test]
fn a_restore_is_killed() {
    for tools in Tools::ALL {
        let base = Base::new(tools);
        Node::run(tools, |node| {
            let mark = node.dir().join("killed");
            let halfway = format!(
                "[ ! -e {mark} ] || exec $real \"$@\"\n: >{mark}\nsed '/^COMMIT$/q' | $real \"$@\"\nkill -9 $$",
                mark = mark.display()
            );
            node.wrap("iptables-restore", &halfway);
            let source = Source::folder(node, &base.objects);
            let mut proxy = Proxy::start(node, &base.config, &source);
            proxy.wait_for_step(&base.recorded, "the kill");
            assert!(mark.exists(), "no restore was killed");
        });
    }
}

/// One Service is refused by the kernel, with and without a word on the line that it is. All others
/// are there. When the kernel changes its mind and the Service changes, it is there too.
#[test]
fn a_service_is_refused() {
    for tools in Tools::ALL {
        for line_is_named in [true, false] {
            refuse(tools, line_is_named);
        }
    }
}

/// The Service that is refused, and what its rules have in common: addresses of it and its
/// endpoints show in all of them but jumps, and its chains are named after it.
const REFUSED: &str = "g/cip-sctp";

fn refuse(tools: Tools, line_is_named: bool) {
    let base = Base::new(tools);
    Node::run(tools, |node| {
        let complaint = match line_is_named {
            true => "echo \"iptables-restore: line $(grep -n 'g/cip-sctp' $input | head -n 1 | cut -d: -f1) failed\"",
            false => "echo 'iptables-restore: Invalid argument'",
        };
        let script = format!(
            "input=$(mktemp -p {dir})\ncat >$input\n\
             if grep -q '^-[AI].*{REFUSED}' $input; then {complaint} >&2; exit 1; fi\nexec $real \"$@\" <$input",
            dir = node.dir().display()
        );
        node.wrap("iptables-restore", &script);
        let source = Source::folder(node, &base.objects);
        let mut proxy = Proxy::start(node, &base.config, &source);
        proxy.wait_for_step(&without_service(&base.recorded, REFUSED), "the refusal");

        // As long as it is refused, others go on changing.
        let steps = Step::recorded();
        let [first, ..] = steps.as_slice() else { panic!("no steps") };
        source.take(first);
        let after = Rules::recorded(&folder(tools, "base").join("steps").join(&first.name));
        proxy.wait_for_step(&without_service(&after, REFUSED), &first.name);

        node.unwrap("iptables-restore");
        source.take(&changed(&base.objects));
        proxy.wait_for_step(&with_another_port(&after), "the kernel changed its mind");
    });
}

/// Rules without those that name a Service, and without its chains.
fn without_service(rules: &Rules, spn: &str) -> Rules {
    rules.clone().both(|tables| {
        for table in tables.0.values_mut() {
            let own = |rule: &String| rule.contains(&format!("\"{spn}:")) || rule.contains(&format!("\"{spn} "));
            table.retain(|_, chain| chain.rules.is_empty() || !chain.rules.iter().all(own));
            table.values_mut().for_each(|chain| chain.rules.retain(|rule| !own(rule)));
        }
    })
}

/// The refused Service on another port.
fn changed(objects: &Objects) -> Step {
    let id = Id { kind: "Service".to_owned(), namespace: "g".to_owned(), name: "cip-sctp".to_owned() };
    let document = objects.0[&id].replace("port: 132\n", "port: 133\n");
    assert_ne!(document, objects.0[&id], "the Service has another port than expected");
    Step { name: "changed".to_owned(), applied: Objects([(id, document)].into()), deleted: Vec::new() }
}

fn with_another_port(rules: &Rules) -> Rules {
    rules.clone().both(|tables| {
        for chain in tables.0.values_mut().flat_map(|table| table.values_mut()) {
            for rule in chain.rules.iter_mut().filter(|rule| rule.contains(REFUSED)) {
                *rule = rule.replace("--dport 132 ", "--dport 133 ");
            }
        }
    })
}
