//! Others hold the lock, break a restore, flush or rewrite tables: the proxy comes to the right state
//! by itself, and says what was wrong.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Proxy, write};
use crate::restart::state;
use crate::rules::Rules;
use crate::tools::Variant;
use crate::traffic::{Call, Probers, Proto};
use crate::world::{Case, Fabric, Family, World, within};

matrix!(tables_flushed_by_others, broken_restores);

const SYNC_PERIOD: Duration = Duration::from_secs(1);

fn config() -> Config {
    Config { sync_period: "1s", ..Config::default() }
}

fn two_services(world: &World) -> Objects {
    Objects::new([
        Service::new(world, "web", 1, &["a0", "b0"]).outside(1),
        Service { external_local: true, ..Service::new(world, "local", 2, &["a0"]).outside(2) },
        Service::new(world, "none", 3, &[]).outside(3),
    ])
}

/// Waits for the wanted state.
#[track_caller]
fn converges(world: &World, want: &Rules, limit: Duration, what: &str) {
    let mut difference = String::new();
    within(limit, || {
        difference = want.difference(&state(world));
        difference.is_empty().then_some(())
    });
    assert!(difference.is_empty(), "{what}: not back within {limit:?}; wanted (first), there (second):\n{difference}");
}

fn run(world: &World, family: Family, args: &str) {
    let args: Vec<&str> = ["-w", "5"].into_iter().chain(args.split(' ')).collect();
    world.node.exec(&world.tools.real(family, ""), &args, "");
}

/// Somebody else's rules in built-in chains and in a chain of their own.
const FOREIGN: &str = "*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FW_ZONE - [0:0]
-A PREROUTING -p tcp -m tcp --dport 7 -j FW_ZONE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FW_ZONE - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 7 -j FW_ZONE
-A FW_ZONE -j DROP
COMMIT
";

fn foreign_rules(world: &World) -> Vec<String> {
    let rules = Rules::read(world, world.family());
    let others = rules.chains.iter().filter(|((_, chain), _)| !chain.starts_with("KUBE-"));
    let others = others.flat_map(|((table, chain), rules)| {
        rules.iter().filter(|rule| !rule.contains("KUBE-")).map(move |rule| format!("{table} {chain} {rule}"))
    });
    others.collect()
}

fn tables_flushed_by_others(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let objects = two_services(&world);
    let proxy = Proxy::start(&world, &config(), &objects);
    let want = state(&world);
    let cluster = SocketAddr::new(objects.services[0].cluster_ip, SERVICE_PORT);
    // Connections that are open are not looked at: with the last rule that needs it, connection
    // tracking itself ends, and with it every translated connection. Nothing a proxy could do about.
    // Noticed within the period, written within some seconds on a busy machine.
    let limit = SYNC_PERIOD + Duration::from_secs(15);
    let check = |what: &str, want: &Rules| {
        converges(&world, want, limit, what);
        assert!(proxy.running(), "{what}");
        for proto in Proto::SOCKETS {
            let outcome = Call::new(proto, cluster).make_in(&world.pod("a1").netns);
            assert!(outcome.endpoint().is_some(), "{what}: {proto:?}: {outcome}");
        }
    };

    for family in Family::BOTH {
        for table in ["nat", "filter", "mangle"] {
            run(&world, family, &format!("-t {table} -F"));
            run(&world, family, &format!("-t {table} -X"));
        }
    }
    check("everything flushed, chains and all", &want);
    run(&world, family, "-t nat -F");
    check("the rules of the nat table flushed", &want);
    run(&world, family, "-t filter -F");
    check("the rules of the filter table flushed", &want);
    run(&world, family, "-t nat -F");
    run(&world, family, "-t nat -X");
    check("the nat table flushed, chains and all", &want);

    // As a firewall does that thinks the tables are its own.
    world.node.exec(&world.tools.real(family, "-restore"), &["-w", "5"], FOREIGN);
    let foreign = foreign_rules(&world);
    assert_eq!(foreign.len(), 4, "{foreign:?}");
    let limit_passed = within(limit, || {
        let rules = Rules::read(&world, family);
        let ours = ["KUBE-SERVICES", "KUBE-POSTROUTING"].iter().all(|chain| !rules.chain("nat", chain).is_empty());
        ours.then_some(())
    });
    assert!(limit_passed.is_some(), "a full rewrite of all tables was not noticed within {limit:?}");
    let without_theirs = || {
        let mut rules = state(&world);
        rules.chains.retain(|(_, chain), _| chain != "FW_ZONE");
        for rules in rules.chains.values_mut() {
            rules.retain(|rule| !foreign.iter().any(|theirs| theirs.ends_with(rule.as_str())));
        }
        rules
    };
    let mut difference = String::new();
    within(limit, || {
        difference = want.difference(&without_theirs());
        difference.is_empty().then_some(())
    });
    assert_eq!(difference, "", "a full rewrite: wanted (first), there (second)");
    assert_eq!(foreign_rules(&world), foreign, "the firewall's own rules");
    for proto in Proto::SOCKETS {
        let outcome = Call::new(proto, cluster).make_in(&world.pod("a1").netns);
        assert!(outcome.endpoint().is_some(), "after a full rewrite: {proto:?}: {outcome}");
    }
}

/// A restore is killed before, in, or after its work; the next ones do theirs.
fn broken_restores(case: Case) {
    const BREAK: &str = "if [ $(ls $STATE | wc -l) -lt LIMIT ] && mkdir $STATE/$$ 2>/dev/null; then
        HOW
    fi
    exec $REAL \"$@\"";
    let world = case.world(Fabric::Bridge, 3, 1);
    let objects = two_services(&world);
    let mut more = objects.clone();
    more.services.push(Service::new(&world, "more", 4, &["b0"]).outside(4));
    more.service("local").endpoints.clear();
    let proxy = Proxy::start(&world, &config(), &more);
    let more_state = state(&world);
    proxy.apply(&objects);
    let less_state = state(&world);
    let probers = Probers::start(&world, &objects.services[0], "a2");
    let mut now_more = false;
    for (what, how) in [
        ("killed before it began", "kill -9 $$"),
        (
            "killed with half of its input",
            "cat > $STATE/../half; head -c $(($(wc -c < $STATE/../half) / 2)) $STATE/../half | $REAL \"$@\"; kill -9 $$",
        ),
        ("killed when it was done", "$REAL \"$@\"; kill -9 $$"),
        ("done, but said to have failed", "$REAL \"$@\"; exit 1"),
        ("failed without a word", "exit 4"),
    ] {
        // Twice in a row, for either family.
        let script = BREAK.replace("LIMIT", "2").replace("HOW", how);
        let state_dir = world.tools.replace("-restore", &script);
        now_more = !now_more;
        write(&world, if now_more { &more } else { &objects });
        let broke = within(LONG, || (fs::read_dir(&state_dir).unwrap().count() >= 1).then_some(()));
        assert!(broke.is_some(), "{what}: no restore was run for a change");
        converges(&world, if now_more { &more_state } else { &less_state }, LONG, what);
        assert!(proxy.running(), "{what}");
        world.tools.restore("-restore");
        fs::remove_dir_all(&state_dir).unwrap();
    }
    probers.finish_unharmed();
}

/// Only the legacy programs lock.
mod lock {
    use super::*;

    #[test]
    fn held_by_others_legacy_ipv4() {
        held(Case { variant: Variant::Legacy, family: Family::V4 });
    }

    #[test]
    fn held_by_others_legacy_ipv6() {
        held(Case { variant: Variant::Legacy, family: Family::V6 });
    }

    #[test]
    fn held_at_the_start_legacy_ipv4() {
        held_at_the_start(Case { variant: Variant::Legacy, family: Family::V4 });
    }

    /// Longer than the five seconds that the programs are told to wait.
    const HOLD: Duration = Duration::from_millis(6_500);

    /// A node that boots has others at work on its tables: the proxy must not give up.
    fn held_at_the_start(case: Case) {
        let world = case.world(Fabric::Bridge, 2, 1);
        let objects = two_services(&world);
        let lock = File::options().create(true).append(true).open(world.tools.lock_file()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let marker = write(&world, &objects);
        let proxy = Proxy::launch(&world, &config());
        sleep(HOLD);
        assert!(proxy.running(), "it gave up");
        drop(lock);
        proxy.settled(&marker);
        let cluster = SocketAddr::new(objects.services[0].cluster_ip, SERVICE_PORT);
        let outcome = Call::new(Proto::Tcp, cluster).make_in(&world.pod("a1").netns);
        assert!(outcome.endpoint().is_some(), "{outcome}");
    }

    fn held(case: Case) {
        let world = case.world(Fabric::Bridge, 3, 1);
        let objects = two_services(&world);
        let proxy = Proxy::start(&world, &config(), &objects);
        let probers = Probers::start(&world, &objects.services[0], "a2");
        let mut changed = objects.clone();
        changed.services.push(Service::new(&world, "more", 4, &["b0"]).outside(4));

        let lock = File::options().create(true).append(true).open(world.tools.lock_file()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let start = Instant::now();
        let marker = write(&world, &changed);
        sleep(HOLD);
        assert!(proxy.running(), "it must wait");
        // Reading needs no lock.
        let rules = Rules::read(&world, case.family);
        assert!(
            !rules.has("nat", "KUBE-SERVICES", "ns/more:tcp"),
            "written in spite of the lock after {:?}",
            start.elapsed()
        );
        drop(lock);
        proxy.settled(&marker);
        let rules = Rules::read(&world, case.family);
        assert!(rules.has("nat", "KUBE-SERVICES", "ns/more:tcp"));
        probers.finish_unharmed();
    }
}
