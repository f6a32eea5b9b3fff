//! That packets and tracer can be found to differ: rules are changed by hand, the tracer is told the
//! ones before, or the other way round.

use std::net::SocketAddr;

use crate::comparison::Comparison;
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Proxy};
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Family, POD_PORT, World};

matrix!(changed_rules_are_noticed, other_chances_are_noticed, unreadable_rules_are_noticed);

/// Rules of a proxy that has ended, and Services of every kind: two endpoints, none, one that
/// remembers its clients, one that some may not use.
struct Scene<'w> {
    world: &'w World,
    services: [Service; 4],
    /// What the save program prints.
    saved: String,
}

/// A change to the rules, by which a request must be seen to meet something else.
struct Change {
    what: &'static str,
    change: fn(&Scene<'_>, &str) -> String,
    request: fn(&Scene<'_>, &mut Comparison<'_>),
    /// Words of the difference that must be found, one of these.
    difference: &'static [&'static str],
}

// === impl Scene ===

impl<'w> Scene<'w> {
    fn set(world: &'w World) -> Scene<'w> {
        let family = world.family();
        let pods = ["a0", "b0"];
        let service = |name, n: u8| Service::new(world, name, n.into(), &pods).outside(n);
        let services = [
            service("web", 1),
            Service { endpoints: Vec::new(), ..service("none", 2) },
            Service { affinity: Some(10_800), ..service("sticky", 3) },
            Service {
                source_ranges: vec![format!("{}/{}", family.client(1), family.host_bits())],
                ..service("some", 4)
            },
        ];
        drop(Proxy::start(world, &Config::default(), &Objects::new(services.clone())));
        let saved = world.node.exec::<&str>(&world.tools.real(family, "-save"), &[], "");
        Scene { world, services, saved }
    }

    fn family(&self) -> Family {
        self.world.family()
    }

    /// Gives the kernel other rules.
    fn load(&self, rules: &str) {
        self.world.node.exec(&self.world.tools.real(self.family(), "-restore"), &["-w", "5"], rules);
    }

    fn node_port(&self, service: usize) -> Call {
        Call::new(Proto::Udp, SocketAddr::new(self.family().node(), self.services[service].node_port.unwrap()))
    }

    fn load_balancer(&self, service: usize) -> Call {
        Call::new(Proto::Udp, SocketAddr::new(self.services[service].load_balancers[0], SERVICE_PORT))
    }

    /// From the client, often.
    fn ask_often(&self, comparison: &mut Comparison<'_>, call: Call) {
        let outcomes = call.repeat_in(&self.world.client, 40);
        comparison.asked_often(&self.world.client, call, &outcomes);
    }

    fn ask(&self, comparison: &mut Comparison<'_>, call: Call) {
        comparison.ask(&self.world.client, call);
    }
}

/// The lines without those that hold all these words, of which there must be some.
fn without(text: &str, words: &[&str]) -> String {
    let (gone, left): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("-A") && words.iter().all(|word| line.contains(word)));
    assert!(!gone.is_empty(), "no rule has {words:?}");
    left.join("\n") + "\n"
}

/// With one more rule, before all others that look for Services.
fn at_the_top(text: &str, rule: &str) -> String {
    let (before, nat) = text.split_once("*nat\n").unwrap();
    let first = "-A KUBE-SERVICES ";
    format!("{before}*nat\n{}", nat.replacen(first, &format!("{first}{rule}\n{first}"), 1))
}

const CHANGES: [Change; 10] = [
    Change {
        what: "nothing is marked for masquerading",
        change: |_, text| without(text, &["-A KUBE-MARK-MASQ", "-j MARK"]),
        request: |scene, comparison| scene.ask_often(comparison, scene.node_port(0)),
        difference: &["the tracer says"],
    },
    Change {
        what: "an endpoint is another one",
        change: |scene, text| {
            let [from, to] = ["a0", "a1"].map(|pod| scene.world.pod(pod).address(scene.family()).to_string());
            text.replace(&format!("--to-destination {from}"), &format!("--to-destination {to}"))
        },
        request: |scene, comparison| scene.ask_often(comparison, scene.node_port(0)),
        difference: &["the tracer says"],
    },
    Change {
        what: "one endpoint takes all",
        change: |_, text| without(text, &["--probability", "ns/web:udp"]),
        request: |scene, comparison| scene.ask_often(comparison, scene.node_port(0)),
        difference: &["the tracer says"],
    },
    Change {
        what: "two rules have changed places",
        change: |_, text| {
            let mut lines: Vec<&str> = text.lines().collect();
            let is_first = |line: &&str| line.contains("--probability") && line.contains("ns/web:udp");
            let at = lines.iter().position(is_first).unwrap();
            // Before it stands the rule that marks what comes from outside.
            assert!(lines[at - 1].contains("-j KUBE-MARK-MASQ"), "{}", lines[at - 1]);
            lines.swap(at - 1, at);
            lines.join("\n") + "\n"
        },
        request: |scene, comparison| {
            let to = SocketAddr::new(scene.services[0].cluster_ip, SERVICE_PORT);
            scene.ask_often(comparison, Call::new(Proto::Udp, to));
        },
        difference: &["the tracer says"],
    },
    // Whoever asks hears the same: that nobody listens.
    Change {
        what: "the node itself refuses, no rule does",
        change: |_, text| without(text, &["ns/none:udp has no endpoints", "--dst-type LOCAL", "-j REJECT"]),
        request: |scene, comparison| scene.ask(comparison, scene.node_port(1)),
        difference: &["but not by these rules"],
    },
    Change {
        what: "who may not come in hears of it",
        change: |_, text| text.replace("-j DROP", "-j REJECT"),
        request: |scene, comparison| scene.ask(comparison, scene.load_balancer(3).impatient()),
        difference: &["the tracer says"],
    },
    Change {
        what: "clients are not remembered",
        change: |_, text| {
            let remember = |line: &str| {
                let (before, rest) = line.split_once(" -m recent --set")?;
                Some(format!("{before}{}", rest.split_once("--rsource")?.1))
            };
            text.lines().map(|line| remember(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
        },
        request: |scene, comparison| scene.ask(comparison, scene.node_port(2)),
        difference: &["was not put on the lists"],
    },
    Change {
        what: "what is remembered does not count",
        change: |_, text| without(text, &["--rcheck", "ns/sticky:udp"]),
        request: |scene, comparison| {
            // Chance does not send a client 30 times to where it was before.
            for _ in 0..30 {
                scene.ask(comparison, scene.node_port(2));
            }
        },
        difference: &["the tracer says", "but not by these rules"],
    },
    Change {
        what: "somebody else marks what goes to pods",
        change: |_, text| {
            let rule = format!("-A PREROUTING -p udp -m udp --dport {POD_PORT} -j MARK --set-xmark 0x4000/0x4000");
            let (before, rest) = text.split_once("*mangle").unwrap();
            format!("{before}*mangle{}", rest.replacen("COMMIT", &format!("{rule}\nCOMMIT"), 1))
        },
        request: |scene, comparison| {
            scene.ask(comparison, Call::new(Proto::Udp, scene.world.pod("a0").address(scene.family())));
        },
        difference: &["the tracer says"],
    },
    // It makes no difference to anybody, but this is not the way the tracer says.
    Change {
        what: "a rule that changes nothing",
        change: |_, text| at_the_top(text, "-p udp"),
        request: |scene, comparison| scene.ask(comparison, scene.load_balancer(0)),
        difference: &["but not by these rules"],
    },
];

fn changed_rules_are_noticed(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let scene = Scene::set(&world);
    for Change { what, change, request, difference } in CHANGES {
        let changed = change(&scene, &scene.saved);
        assert_ne!(changed, scene.saved, "{what}");
        scene.load(&changed);
        // Odd rules are rules as well: the tracer that reads them says what they do …
        let mut comparison = Comparison::begin(&world);
        request(&scene, &mut comparison);
        assert_eq!(comparison.differences(), [""; 0], "{what}");
        // … and one that takes them for what they were before is found out.
        let mut comparison = Comparison::with(&world, &scene.saved);
        request(&scene, &mut comparison);
        let differences = comparison.differences();
        let found = differences.iter().any(|found| difference.iter().any(|word| found.contains(word)));
        assert!(found, "{what}: not one of {difference:?} in {differences:#?}");
    }
    // It was for the changes, not for the requests.
    scene.load(&scene.saved);
    for Change { what, request, .. } in CHANGES {
        let mut comparison = Comparison::with(&world, &scene.saved);
        request(&scene, &mut comparison);
        assert_eq!(comparison.differences(), [""; 0], "without the change: {what}");
    }
}

fn other_chances_are_noticed(case: Case) {
    // Chi-square with one degree of freedom is above it less often than once in 10 million times.
    const BOUND: f64 = 30.0;
    let world = case.world(Fabric::Bridge, 2, 1);
    let scene = Scene::set(&world);
    scene.load(&scene.saved.replace("--probability 0.50000000000", "--probability 0.20000000000"));
    let call = scene.node_port(0);
    let outcomes = call.repeat_in(&world.client, 600);
    let as_it_is = Comparison::begin(&world).chi_square(&world.client, call, &outcomes);
    let as_it_was = Comparison::with(&world, &scene.saved).chi_square(&world.client, call, &outcomes);
    assert!(as_it_is < BOUND && BOUND < as_it_was, "{as_it_is:.1} is to be below {BOUND}, {as_it_was:.1} above");
}

fn unreadable_rules_are_noticed(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let scene = Scene::set(&world);
    scene.load(&at_the_top(&scene.saved, "-p udp -m udp --sport 1:65535"));
    let call = scene.node_port(0);
    let mut comparison = Comparison::begin(&world);
    scene.ask(&mut comparison, Call { proto: Proto::Tcp, ..call });
    comparison.holds();
    let outcome = comparison.ask(&world.client, call);
    assert!(matches!(outcome, Outcome::Answer(_)), "the rule does no harm: {outcome}");
    let differences = comparison.differences();
    let complains = |what: &String| what.contains("cannot trace") && what.contains("--sport 1:65535");
    assert!(differences.iter().any(complains), "{differences:#?}");
}
