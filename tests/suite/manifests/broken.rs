//! Files with mistakes.

use std::fs;
use std::os::unix::fs::symlink;

use ferrule::source::manifests::load;
use tempfile::tempdir;

use super::{Follower, port_of, replace, service, services, word};
use crate::recordings::NODE;

#[tokio::test]
async fn the_last_good_version_stays_in_use() {
    let directory = tempdir().unwrap();
    let (path, other) = (directory.path().join("web.yaml"), directory.path().join("other.yaml"));
    fs::write(&path, service("a", 80) + &service("b", 80)).unwrap();
    fs::write(&other, service("c", 80)).unwrap();
    let mut follower = Follower::listed(&[directory.path()]).await;

    let wrong = service("a", 81) + &service("b", 82).replace("82", "\"http\"");
    fs::write(&path, &wrong).unwrap();
    let complaint = format!(
        "{}:18:11: spec.ports[0].port: invalid value \"http\", expected a whole number; its last good version stays in use",
        path.display()
    );
    follower.logged(&complaint).await;
    fs::write(&other, service("c", 81)).unwrap();
    assert_eq!(follower.port("c", 81).await, ["Service default/c"], "other files are read on");
    assert_eq!((port_of(&follower.state, "a"), port_of(&follower.state, "b")), (80, 80));

    // The same mistake is named once, another one again.
    fs::write(&path, wrong.clone() + "# nothing else\n").unwrap();
    replace(&path, &(wrong.clone() + "# nothing else, again\n"));
    fs::write(&other, service("c", 82)).unwrap();
    follower.port("c", 82).await;
    assert_eq!(follower.log.count("invalid value"), 1);
    fs::write(&path, wrong.replace("http", "https")).unwrap();
    follower.logged("invalid value \"https\"").await;

    fs::write(&path, service("a", 81)).unwrap();
    let mut said = follower.port("b", 0).await;
    said.extend(follower.port("a", 81).await);
    assert_eq!(said, ["deleted Service default/b", "Service default/a"]);
}

#[tokio::test]
async fn a_file_that_has_become_empty() {
    let directory = tempdir().unwrap();
    let (path, other) = (directory.path().join("web.yaml"), directory.path().join("other.yaml"));
    fs::write(&path, service("a", 80)).unwrap();
    fs::write(&other, "\n").unwrap();
    let mut follower = Follower::listed(&[directory.path()]).await;
    fs::write(&path, "\n").unwrap();
    follower.logged("web.yaml: is empty; its last good version stays in use").await;
    fs::write(&other, service("c", 80)).unwrap();
    assert_eq!(follower.port("c", 80).await, ["Service default/c"]);
    fs::write(&path, "# no more\n").unwrap();
    assert_eq!(follower.port("a", 0).await, ["deleted Service default/a"]);
    assert_eq!(follower.log.text().lines().count(), 1);
}

#[tokio::test]
async fn a_file_that_is_broken_from_the_start() {
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("good.yaml"), service("a", 80)).unwrap();
    fs::write(directory.path().join("wrong.yaml"), service("b", 80) + "  oops\n").unwrap();
    symlink("loop.yaml", directory.path().join("loop.yaml")).unwrap();
    let mut follower = Follower::of(&[directory.path()]);
    let said = follower.listing().await;
    assert!(said.contains(&"synced Service".into()), "{said:?}");
    assert_eq!(services(&follower.state), ["default/a"], "the others are served");
    follower.logged("wrong.yaml:").await;
    follower.logged("loop.yaml: Too many levels of symbolic links").await;
    assert_eq!(follower.log.count("nothing of it is used until that is mended"), 2);
    fs::write(directory.path().join("wrong.yaml"), service("b", 80)).unwrap();
    assert_eq!(follower.port("b", 80).await, ["Service default/b"]);
}

#[tokio::test]
async fn problems_are_said_once() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("web.yaml");
    let with_ips =
        |port, ips: &str| service("a", port).replace("  ports:", &format!("  externalIPs: [{ips}]\n  ports:"));
    fs::write(&path, with_ips(80, "nonsense")).unwrap();
    let mut follower = Follower::of(&[directory.path()]);
    let problem = format!(
        "Service default/a: spec.externalIPs[0]: \"nonsense\" is not an IP address; it is left out ({}:2)",
        path.display()
    );
    follower.listing().await;
    assert_eq!(word(&follower.events.recv().await.unwrap()), problem);
    fs::write(&path, with_ips(81, "nonsense")).unwrap();
    assert_eq!(follower.port("a", 81).await, ["Service default/a"]);
    fs::write(&path, with_ips(82, "192.0.2.1")).unwrap();
    assert_eq!(follower.port("a", 82).await, ["Service default/a"]);
    assert!(follower.events.try_recv().is_err());
}

#[test]
fn loading_once_names_every_mistake() {
    let directory = tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("a.yaml"), service("a", 80)).unwrap();
    fs::write(at("b.yaml"), service("b", 80) + &service("a", 81)).unwrap();
    fs::write(at("c.yaml"), "kind: [\n").unwrap();
    fs::write(at("d.yaml"), service("d", 80).replace("80", "x")).unwrap();
    let loaded = load(&[directory.path().to_path_buf()], NODE);
    let broken: Vec<String> = loaded.broken.iter().map(ToString::to_string).collect();
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].starts_with(&format!("{}:1:7: ", at("c.yaml").display())), "{}", broken[0]);
    assert_eq!(
        broken[1],
        format!("{}:9:11: spec.ports[0].port: invalid value x, expected a whole number", at("d.yaml").display())
    );
    let [duplicate] = loaded.duplicates.as_slice() else { panic!("{:?}", loaded.duplicates) };
    assert_eq!((&duplicate.used, &duplicate.unused), (&(at("b.yaml"), 11), &(at("a.yaml"), 2)));
    let said: Vec<String> = loaded.events.iter().map(word).collect();
    assert_eq!(
        said,
        [
            "listing Node",
            "synced Node",
            "listing ServiceCIDR",
            "synced ServiceCIDR",
            "listing Service",
            "Service default/a",
            "Service default/b",
            "synced Service",
            "listing EndpointSlice",
            "synced EndpointSlice",
        ]
    );
    let missing = load(&[directory.path().to_path_buf(), at("none")], NODE);
    assert_eq!(missing.events.len(), 0, "half of the objects would look like all of them");
    let broken: Vec<String> = missing.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.contains(&format!("{}: No such file or directory (os error 2)", at("none").display())),
        "{broken:?}"
    );
}
