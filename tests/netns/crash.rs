//! `kill -9` at any point of a sync, then a restart: the same end state as if nothing had happened,
//! and no connection suffers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Proxy, write};
use crate::restart::state;
use crate::rules::Rules;
use crate::traffic::{Call, Probers, Proto, Stream};
use crate::world::{Case, Fabric, Family, World, within};

matrix!(killed_while_starting, killed_while_changing);

/// The programs that a proxy runs, by what comes after `iptables` in their names.
const PROGRAMS: [&str; 3] = ["", "-save", "-restore"];

/// What happens to the proxy, and to the program that it has just started.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// It dies, and the program does nothing either.
    Before,
    /// It dies while it still hands over the input; the program goes on with what it has got.
    HalfWay,
    /// It dies while the program, which has all its input, is slow.
    Meanwhile,
    /// It dies before it can see that the program has succeeded.
    After,
}

impl Moment {
    const ALL: [Moment; 4] = [Moment::Before, Moment::HalfWay, Moment::Meanwhile, Moment::After];

    /// What the program does instead of its work; `$PPID` is the proxy.
    fn script(self) -> &'static str {
        match self {
            Moment::Before => "kill -9 $PPID; exit 1",
            Moment::HalfWay => {
                "cat > $STATE/input; kill -9 $PPID; size=$(wc -c < $STATE/input); head -c $((size / 2)) $STATE/input | $REAL \"$@\"; exit"
            }
            Moment::Meanwhile => "cat > $STATE/input; kill -9 $PPID; sleep 0.3; exec $REAL \"$@\" < $STATE/input",
            Moment::After => "$REAL \"$@\"; kill -9 $PPID; exit",
        }
    }
}

/// From now on counts every program that the proxy starts, and at the n-th lets the proxy die.
fn die_at(world: &World, n: usize, moment: Moment) {
    let shared = counter(world);
    let _ = fs::remove_dir_all(&shared);
    fs::create_dir(&shared).unwrap();
    for suffix in PROGRAMS {
        // Both families count together, each may be the one; mkdir sees to it that it is only one.
        world.tools.replace(
            suffix,
            &format!(
                "echo \"$NAME $*\" >> {dir}/calls\nif [ $(wc -l < {dir}/calls) -ge {n} ] && mkdir {dir}/fired 2>/dev/null; then\n{}\nfi\nexec $REAL \"$@\"",
                moment.script(),
                dir = shared.display(),
            ),
        );
    }
}

fn counter(world: &World) -> std::path::PathBuf {
    world.dir().join("counter")
}

fn calls(dir: &Path) -> Vec<String> {
    fs::read_to_string(dir.join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Puts the true programs back.
fn live_on(world: &World) {
    PROGRAMS.iter().for_each(|suffix| world.tools.restore(suffix));
}

/// Two states to go back and forth between, which have a Service in common.
fn states(world: &World) -> [Objects; 2] {
    let common = Service::new(world, "common", 1, &["a0", "b0"]).outside(1);
    let other = |name, n: u8, pods: &[&str]| Service::new(world, name, n.into(), pods).outside(n);
    [
        Objects::new([common.clone(), other("first", 2, &["a0"]), other("both", 3, &["a0", "b0"])]),
        Objects::new([common, other("second", 4, &["b0"]), other("both", 3, &["a1"]), other("none", 5, &[])]),
    ]
}

/// What each of the states looks like when nothing goes wrong.
fn undisturbed(world: &World, config: &Config, states: &[Objects; 2]) -> [Rules; 2] {
    states.each_ref().map(|objects| {
        let proxy = Proxy::start(world, config, objects);
        let rules = state(world);
        drop(proxy);
        rules
    })
}

#[track_caller]
fn same(world: &World, want: &Rules, what: &str) {
    // The marker of the last sync has been seen; leftovers may take a moment longer.
    let mut difference = String::new();
    within(Duration::from_secs(20), || {
        difference = want.difference(&state(world));
        difference.is_empty().then_some(())
    });
    assert!(difference.is_empty(), "{what}: undisturbed (first) and after the crash (second):\n{difference}");
}

fn killed_while_starting(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let config = Config { sync_period: "2s", ..Config::default() };
    let states = states(&world);
    let want = undisturbed(&world, &config, &states);
    // The state is now the second one. How many programs does a start run?
    die_at(&world, usize::MAX, Moment::Before);
    drop(Proxy::start(&world, &config, &states[1]));
    let total = calls(&counter(&world)).len();
    assert!(total > 0);

    let service = &states[0].services[0];
    let cluster = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
    let stream = Stream::open(&world.pod("a1").netns, Call::new(Proto::Tcp, cluster));
    let probers = Probers::start(&world, service, "a2");

    // Points spread over all calls, the last ones always among them: there the rules are written.
    let spread = (0..5).map(|k| 1 + k * (total - 1) / 5);
    let points: Vec<usize> = spread.chain(total.saturating_sub(3)..=total).collect();
    for (round, point) in points.iter().enumerate() {
        let moment = Moment::ALL[round % Moment::ALL.len()];
        let to = round % 2;
        let what = format!("killed {moment:?} call {point} of {total}");
        die_at(&world, *point, moment);
        write(&world, &states[to]);
        let proxy = Proxy::launch(&world, &config);
        // The number of calls is not the same every time; a start that needed fewer is left alone.
        within(Duration::from_secs(8), || (!proxy.running()).then_some(()));
        live_on(&world);
        drop(proxy);
        let proxy = Proxy::start(&world, &config, &states[to]);
        same(&world, &want[to], &what);
        stream.works(&what);
        drop(proxy);
    }
    stream.finish();
    probers.finish_unharmed();

    // The same for a node without any rules yet.
    for (round, point) in [total / 2, total - 1, total].into_iter().enumerate() {
        let moment = Moment::ALL[(round + 1) % Moment::ALL.len()];
        flush(&world);
        die_at(&world, point, moment);
        write(&world, &states[0]);
        let proxy = Proxy::launch(&world, &config);
        within(Duration::from_secs(8), || (!proxy.running()).then_some(()));
        live_on(&world);
        drop(proxy);
        let _proxy = Proxy::start(&world, &config, &states[0]);
        same(&world, &want[0], &format!("the first start, killed {moment:?} call {point}"));
    }
}

fn killed_while_changing(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let config = Config { sync_period: "2s", ..Config::default() };
    let states = states(&world);
    let want = undisturbed(&world, &config, &states);
    let service = &states[0].services[0];
    let cluster = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
    let stream = Stream::open(&world.pod("a1").netns, Call::new(Proto::Tcp, cluster));
    let probers = Probers::start(&world, service, "a2");
    let mut now = 1;
    for point in [1, 2] {
        for moment in Moment::ALL {
            let what = format!("killed {moment:?} call {point} of a change");
            let next = 1 - now;
            let proxy = Proxy::start(&world, &config, &states[now]);
            die_at(&world, point, moment);
            write(&world, &states[next]);
            if within(LONG, || (!proxy.running()).then_some(())).is_none() {
                panic!("{what}: a change that needs no program? {:?}", calls(&counter(&world)));
            }
            live_on(&world);
            drop(proxy);
            let proxy = Proxy::start(&world, &config, &states[next]);
            same(&world, &want[next], &what);
            stream.works(&what);
            drop(proxy);
            now = next;
        }
    }
    stream.finish();
    probers.finish_unharmed();
}

fn flush(world: &World) {
    for family in Family::BOTH {
        for table in ["mangle", "nat", "filter"] {
            for action in ["-F", "-X"] {
                world.node.exec(&world.tools.real(family, ""), &["-w", "5", "-t", table, action], "");
            }
        }
    }
}
