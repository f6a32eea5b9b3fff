//! The rolling update: every endpoint is replaced, and nobody notices.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use crate::objects::{Endpoint, Objects, Service};
use crate::proxy::{Config, LONG, Proxy};
use crate::rules::Rules;
use crate::traffic::{Probers, Proto};
use crate::world::{Case, Fabric, World, eventually};

matrix!(nobody_notices_a_rolling_update);

/// How long a pod that is about to end goes on serving after nobody can be sent to it any more: the
/// connections that were on their way.
const GRACE: Duration = Duration::from_millis(250);

fn nobody_notices_a_rolling_update(case: Case) {
    let world = case.world(Fabric::Bridge, 5, 3);
    let family = world.family();
    // Old and new ones on both nodes; a4 is the client inside.
    let (old, new) = (["a0", "a1", "b0"], ["a2", "b1", "a3"]);
    for pod in new {
        // A new pod starts when its turn has come.
        Proto::SOCKETS.into_iter().for_each(|proto| world.servers.stop(world.pod(pod), proto));
    }
    let mut objects = Objects::new([Service::new(&world, "web", 1, &old).outside(1)]);
    let service = objects.services[0].clone();
    let proxy = Proxy::start(&world, &Config::default(), &objects);

    let probers = Probers::start(&world, &service, "a4");
    for (old, new) in old.into_iter().zip(new) {
        let (leaves, comes) = (world.pod(old), world.pod(new));
        Proto::SOCKETS.into_iter().for_each(|proto| world.servers.listen(comes, proto, crate::world::POD_PORT));
        let endpoints = &mut objects.service("web").endpoints;
        endpoints.push(Endpoint::ready(comes, family));
        change(&world, &proxy, &objects, &service);
        probers.go_on(15);
        for endpoint in &mut objects.service("web").endpoints {
            if endpoint.ip == leaves.ip(family) {
                *endpoint = endpoint.clone().leaving();
            }
        }
        change(&world, &proxy, &objects, &service);
        probers.go_on(15);
        objects.service("web").endpoints.retain(|endpoint| endpoint.ip != leaves.ip(family));
        change(&world, &proxy, &objects, &service);
        sleep(GRACE);
        Proto::SOCKETS.into_iter().for_each(|proto| world.servers.stop(leaves, proto));
        probers.go_on(15);
    }
    for tally in probers.finish_unharmed() {
        for pod in old.into_iter().chain(new) {
            assert!(tally.answers.contains_key(pod), "{pod} has not had a single connection: {:?}", tally.answers);
        }
    }
}

/// Makes a change and waits until new connections go to those endpoints that should get them.
#[track_caller]
fn change(world: &World, proxy: &Proxy<'_>, objects: &Objects, service: &Service) {
    let web = objects.services.iter().find(|other| other.name == service.name).unwrap();
    let want = web.endpoints.iter().filter(|endpoint| endpoint.ready);
    let want = want.map(|endpoint| SocketAddr::new(endpoint.ip, crate::world::POD_PORT).to_string()).collect();
    crate::proxy::write(world, objects);
    eventually(LONG, &format!("the endpoints are {want:?}"), || {
        assert!(proxy.running());
        let rules = Rules::read(world, world.family());
        let all = Proto::SOCKETS.iter().all(|proto| rules.endpoints("KUBE-SVC-", &service.port(*proto)) == want);
        all.then_some(())
    });
}
