use super::*;
use crate::model::ObjectRef;
use crate::net::{parse_cidr, parse_ip};

const NEEDS: Needs = Needs { addresses: ADDRESS_PATIENCE, pod_cidrs: Some(POD_CIDR_PATIENCE) };

fn node(addresses: &str, pod_cidrs: &str) -> Event {
    Event::Node(Arc::new(object(addresses, pod_cidrs)))
}

fn object(addresses: &str, pod_cidrs: &str) -> Node {
    Node {
        name: "n".into(),
        addresses: addresses.split_whitespace().map(|ip| parse_ip(ip).unwrap()).collect(),
        pod_cidrs: pod_cidrs.split_whitespace().map(|net| parse_cidr(net).unwrap()).collect(),
        ..Node::default()
    }
}

/// Says these events at these seconds, and returns after how many seconds what came of it.
async fn wait_for(script: Vec<(u64, Event)>, needs: Needs) -> (u64, Result<Early, NodeError>) {
    let (sender, mut receiver) = mpsc::channel(8);
    let begin = Instant::now();
    tokio::spawn(async move {
        for (second, event) in script {
            tokio::time::sleep_until(begin + Duration::from_secs(second)).await;
            let _ = sender.send(event).await;
        }
        // The source goes on for ever.
        std::future::pending::<()>().await;
    });
    let result = wait(&mut receiver, &"n".into(), needs).await;
    (begin.elapsed().as_secs(), result)
}

#[track_caller]
fn check(outcome: (u64, Result<Early, NodeError>), seconds: u64, expected: Result<Option<Node>, &str>) {
    let actual = match &outcome.1 {
        Ok(early) => Ok(early.node.as_deref().cloned()),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!((outcome.0, actual), (seconds, expected.map_err(str::to_owned)));
}

#[tokio::test(start_paused = true)]
async fn a_node_with_all_is_not_waited_for() {
    let synced = || Event::Synced(Kind::Node);
    let all = object("192.0.2.1", "10.0.0.0/24");
    let outcome = wait_for(vec![(0, node("192.0.2.1", "10.0.0.0/24")), (0, synced())], NEEDS).await;
    assert_eq!(outcome.1.as_ref().unwrap().events.len(), 2, "the loop must be told");
    check(outcome, 0, Ok(Some(all.clone())));
    // However long the server takes.
    let outcome = wait_for(vec![(7_000, node("192.0.2.1", "10.0.0.0/24")), (7_000, synced())], NEEDS).await;
    check(outcome, 7_000, Ok(Some(all)));
}

#[tokio::test(start_paused = true)]
async fn addresses_are_waited_for_and_done_without() {
    let start = || vec![(0, node("", "10.0.0.0/24")), (1, Event::Synced(Kind::Node))];
    check(wait_for(start(), NEEDS).await, 31, Ok(Some(object("", "10.0.0.0/24"))));
    let with = |second, event| start().into_iter().chain([(second, event)]).collect();
    let late = with(20, node("192.0.2.1", "10.0.0.0/24"));
    check(wait_for(late, NEEDS).await, 20, Ok(Some(object("192.0.2.1", "10.0.0.0/24"))));
    let too_late = with(40, node("192.0.2.1", "10.0.0.0/24"));
    check(wait_for(too_late, NEEDS).await, 31, Ok(Some(object("", "10.0.0.0/24"))));
    let deleted = ObjectRef { kind: Kind::Node, namespace: "".into(), name: "n".into() };
    let deleted = with(5, Event::Deleted(deleted));
    check(wait_for(deleted, NEEDS).await, 31, Ok(Some(object("", "10.0.0.0/24"))));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_there() {
    let synced = || vec![(2, Event::Synced(Kind::Node))];
    check(wait_for(synced(), Needs { pod_cidrs: None, ..NEEDS }).await, 32, Ok(None));
    check(wait_for(synced(), NEEDS).await, 332, Err("timeout waiting for node \"n\" to exist"));
    let needs = Needs { addresses: Duration::ZERO, pod_cidrs: None };
    check(wait_for(synced(), needs).await, 2, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn pod_cidrs_are_waited_for_and_needed() {
    let start = || vec![(0, node("192.0.2.1", "")), (0, Event::Synced(Kind::Node))];
    let needs = Needs { pod_cidrs: None, ..NEEDS };
    check(wait_for(start(), needs).await, 0, Ok(Some(object("192.0.2.1", ""))));
    check(wait_for(start(), NEEDS).await, 300, Err("timeout waiting for PodCIDR allocation on node \"n\""));
    let late = start().into_iter().chain([(299, node("192.0.2.1", "10.0.0.0/24"))]).collect();
    check(wait_for(late, NEEDS).await, 299, Ok(Some(object("192.0.2.1", "10.0.0.0/24"))));
}

#[test]
fn changes_worth_a_word() {
    let old = object("192.0.2.1", "10.0.0.0/24");
    assert_eq!(remarks(&old, &old), Vec::<String>::new());
    assert_eq!(
        remarks(&old, &object("192.0.2.2 2001:db8::1", "10.0.0.0/24")),
        ["addresses of the node changed from [192.0.2.1] to [192.0.2.2,2001:db8::1]; rules follow"]
    );
    assert_eq!(
        remarks(&old, &object("", "10.1.0.0/24")),
        [
            "addresses of the node changed from [192.0.2.1] to []; rules stay as they are",
            "pod CIDRs of the node changed from [10.0.0.0/24] to [10.1.0.0/24]; rules follow",
        ]
    );
}
