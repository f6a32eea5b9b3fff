//! One endpoint changes among 1,000 Services: what is sent to the kernel is about that Service alone.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

use crate::objects::{Endpoint, Objects, Service};
use crate::proxy::{Config, LONG, Proxy, quiet, write_same_marker};
use crate::rules::Rules;
use crate::traffic::Proto;
use crate::world::{Case, Fabric, POD_PORT, World, eventually};

matrix!(only_the_changed_service_is_sent);

const SERVICES: u16 = 1_000;

fn only_the_changed_service_is_sent(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let family = world.family();
    let service = |n: u16| Service {
        protocols: vec![Proto::Tcp],
        // Some have no endpoints, or with over 1,000 of them the rules would have no comments.
        ..Service::new(
            &world,
            &format!("svc-{n:04}"),
            n,
            match n {
                500 => &["a0"],
                n if n % 100 == 1 => &[],
                _ => &["b0"],
            },
        )
    };
    let mut objects = Objects::new((1..SERVICES).map(service));
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    assert!(Rules::read(&world, family).has("nat", "KUBE-SERVICES", "ns/svc-0999:tcp"));

    // From here on everything that is given to a restore is kept.
    let sent = world.tools.replace("-restore", "cat > $STATE/$NAME.$$; $REAL \"$@\" < $STATE/$NAME.$$");
    let run = world.tools.replace("", "echo \"$NAME $*\" >> $STATE/calls; exec $REAL \"$@\"");
    let port = "ns/svc-0500:tcp";
    let before = own_chains(&world, port);
    // The marker Service of the last write stays as it is: this is the only change there is.
    objects.service("svc-0500").endpoints.push(Endpoint::ready(world.pod("a1"), family));
    write_same_marker(&world, &objects);
    let want: BTreeSet<String> =
        ["a0", "a1"].map(|pod| SocketAddr::new(world.pod(pod).ip(family), POD_PORT).to_string()).into();
    eventually(LONG, "the new endpoint is in the kernel", || {
        (Rules::read(&world, family).endpoints("KUBE-SVC-", port) == want).then_some(())
    });
    quiet(&world);

    let mut own = own_chains(&world, port);
    own.extend(before);
    assert_eq!(own.len(), 3, "a cluster chain and two endpoint chains: {own:?}");
    let mut text = String::new();
    for file in fs::read_dir(&sent).unwrap() {
        text += &fs::read_to_string(file.unwrap().path()).unwrap();
    }
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("-A KUBE-SVC-")), "what was sent:\n{text}");
    let foreign: Vec<_> = lines
        .iter()
        .filter(|line| {
            let chain = line.strip_prefix(':').or_else(|| line.get(3..).filter(|_| line.starts_with('-')));
            let chain = chain.map(|rest| rest.split(' ').next().unwrap());
            chain.is_some_and(|chain| !own.contains(chain))
        })
        .collect();
    assert!(foreign.is_empty(), "not about {port}: {foreign:?}");
    let tables: Vec<_> = lines.iter().filter(|line| line.starts_with('*')).collect();
    assert_eq!(tables, [&"*nat"], "only the nat table changes");
    let calls = fs::read_to_string(run.join("calls")).unwrap_or_default();
    assert!(
        !calls.contains("-A ") && !calls.contains("-I ") && !calls.contains("-D "),
        "rules edited one by one: {calls}"
    );
}

/// The chains of a service port with one protocol: its cluster chain and those it leads to.
fn own_chains(world: &World, port: &str) -> BTreeSet<String> {
    let rules = Rules::read(world, world.family());
    let comment = format!("\"{port}");
    let named = |text: &str| text.contains(&format!("{comment}\"")) || text.contains(&format!("{comment} "));
    let mut chains = BTreeSet::new();
    for ((table, chain), rules) in &rules.chains {
        let of_service = chain.starts_with("KUBE-SVC-") || chain.starts_with("KUBE-SEP-");
        if table == "nat" && of_service && rules.iter().any(|rule| named(rule)) {
            chains.insert(chain.clone());
        }
    }
    chains
}
