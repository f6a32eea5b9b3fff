//! What people see in the cluster of a ferrule that starts.

use crate::node::{Node, Tools};
use crate::objects::Objects;
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder};
use crate::source::Source;

#[test]
fn the_start_is_told() {
    let base = folder(Tools::Legacy, "base");
    Node::run(Tools::Legacy, |node| {
        let source = Source::api(node, &Objects::recorded(&["all.yaml"]));
        let Source::Api(server) = &source else { panic!("no server") };
        let mut proxy = Proxy::start(node, &config(&base), &source);
        proxy.wait_until("an Event is posted", || !server.posted_events().is_empty());
        let event = &server.posted_events()[0];
        assert_eq!((&event["reason"], &event["regarding"]["name"]), (&"Starting".into(), &"node-000".into()));
        proxy.wait_for(&Rules::recorded(&base));
        assert_eq!(server.posted_events().len(), 1);
    });
}
