//! Ways in which files change.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

use super::{Follower, port_of, replace, service, services};

/// A directory with Services `a` and `b`, port 80, each in a file of its own.
fn directory() -> TempDir {
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), service("a", 80)).unwrap();
    fs::write(directory.path().join("b.yaml"), service("b", 80)).unwrap();
    directory
}

#[tokio::test]
async fn writing_in_place() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    fs::write(directory.path().join("a.yaml"), service("a", 81)).unwrap();
    assert_eq!(follower.port("a", 81).await, ["Service default/a"]);
    let mut file = fs::OpenOptions::new().append(true).open(directory.path().join("a.yaml")).unwrap();
    file.write_all(service("c", 82).as_bytes()).unwrap();
    drop(file);
    assert_eq!(follower.port("c", 82).await, ["Service default/c"]);
}

#[tokio::test]
async fn a_new_file_in_the_place_of_the_old_one() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    for port in 81..90 {
        replace(&directory.path().join("a.yaml"), &service("a", port));
        assert_eq!(follower.port("a", port).await, ["Service default/a"]);
    }
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_away_first() {
    let directory = directory();
    let path = directory.path().join("a.yaml");
    let mut follower = Follower::listed(&[directory.path()]).await;
    for port in 81..90 {
        fs::rename(&path, directory.path().join("a.yaml~")).unwrap();
        fs::write(&path, service("a", port)).unwrap();
        fs::remove_file(directory.path().join("a.yaml~")).unwrap();
        assert_eq!(follower.port("a", port).await, ["Service default/a"], "the Service was there all the time");
    }
}

#[tokio::test]
async fn an_editor_that_takes_its_time() {
    let directory = directory();
    let (path, other) = (directory.path().join("a.yaml"), directory.path().join("b.yaml"));
    let mut follower = Follower::listed(&[directory.path()]).await;
    let mut convincing = 0;
    for port in 100..200 {
        let moved = Instant::now();
        fs::rename(&path, directory.path().join("a.yaml~")).unwrap();
        replace(&other, &service("b", port));
        let mut said = follower.port("b", port).await;
        fs::write(&path, service("a", port)).unwrap();
        // If it took longer the file is rightly believed gone: then the test tests nothing.
        let in_time = moved.elapsed() < Duration::from_millis(100);
        said.extend(follower.port("a", port).await);
        if in_time {
            assert_eq!(said, ["Service default/b", "Service default/a"]);
            convincing += 1;
        }
        if convincing == 5 {
            return;
        }
    }
    panic!("the machine is too slow for this test");
}

/// Writes a version of a ConfigMap volume as the kubelet does.
fn config_map(volume: &Path, version: &str, text: &str) {
    let directory = volume.join(format!("..{version}"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("services.yaml"), text).unwrap();
    let old = fs::read_link(volume.join("..data")).ok();
    symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old)).unwrap();
    } else {
        symlink("..data/services.yaml", volume.join("services.yaml")).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_volume() {
    for path in ["", "services.yaml"] {
        let volume = tempdir().unwrap();
        config_map(volume.path(), "1", &(service("a", 80) + &service("b", 80)));
        let mut follower = Follower::listed(&[&volume.path().join(path)]).await;
        for port in 81..85 {
            config_map(volume.path(), &port.to_string(), &(service("a", port) + &service("b", 80)));
            assert_eq!(follower.port("a", port).await, ["Service default/a"]);
        }
        // The file that the links lead to, written in place.
        fs::write(volume.path().join("..84/services.yaml"), service("b", 99)).unwrap();
        let mut said = follower.port("a", 0).await;
        said.extend(follower.port("b", 99).await);
        assert_eq!(said, ["deleted Service default/a", "Service default/b"]);
    }
}

#[tokio::test]
async fn files_come_and_go() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    fs::write(directory.path().join("c.yml"), service("c", 80)).unwrap();
    assert_eq!(follower.port("c", 80).await, ["Service default/c"]);
    let json = r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "d"},
                  "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}"#;
    fs::write(directory.path().join("d.json"), json).unwrap();
    assert_eq!(follower.port("d", 80).await, ["Service default/d"]);
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    assert_eq!(follower.port("a", 0).await, ["deleted Service default/a"]);
    fs::rename(directory.path().join("b.yaml"), directory.path().join("b.txt")).unwrap();
    assert_eq!(follower.port("b", 0).await, ["deleted Service default/b"]);
    symlink(directory.path().join("b.txt"), directory.path().join("link.yaml")).unwrap();
    assert_eq!(follower.port("b", 80).await, ["Service default/b"]);
    fs::write(directory.path().join("b.txt"), service("b", 81)).unwrap();
    assert_eq!(follower.port("b", 81).await, ["Service default/b"]);
}

#[tokio::test]
async fn an_object_that_moves_to_another_file() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    fs::rename(directory.path().join("a.yaml"), directory.path().join("z.yaml")).unwrap();
    fs::write(directory.path().join("b.yaml"), service("b", 81)).unwrap();
    assert_eq!(follower.port("b", 81).await, ["Service default/b"]);
    // Long enough for the old file to be believed gone.
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    assert_eq!(follower.port("b", 0).await, ["deleted Service default/b"]);
    assert_eq!(port_of(&follower.state, "a"), 80);
    fs::write(directory.path().join("z.yaml"), service("a", 81)).unwrap();
    assert_eq!(follower.port("a", 81).await, ["Service default/a"]);
    assert_eq!(follower.log.text(), "");
}

#[tokio::test]
async fn what_is_read() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("below.yaml")).unwrap();
    fs::write(at("below.yaml/x.yaml"), service("x", 80)).unwrap();
    for name in [".hidden.yaml", "notes.txt", "a.yaml~", "a.yaml.bak", "yaml"] {
        fs::write(at(name), service("x", 80)).unwrap();
    }
    let mut follower = Follower::listed(&[directory.path()]).await;
    assert_eq!(services(&follower.state), ["default/a", "default/b"]);
    fs::write(at(".hidden.yaml"), service("x", 81)).unwrap();
    fs::write(at("b.yaml"), service("b", 81)).unwrap();
    assert_eq!(follower.port("b", 81).await, ["Service default/b"]);
    // A path that is given is read whatever its name.
    let given = Follower::listed(&[&at(".hidden.yaml"), &at("notes.txt"), &at("below.yaml")]).await;
    assert_eq!(services(&given.state), ["default/x"]);
    assert_eq!(given.log.count("Service default/x stands at "), 1);
}

#[tokio::test]
async fn a_path_that_does_not_exist_yet() {
    let outside = tempdir().unwrap();
    let later = outside.path().join("later/still");
    let there = directory();
    let mut follower = Follower::of(&[there.path(), &later]);
    follower.logged("nothing is programmed until every path given with --manifests has been there").await;
    assert!(follower.events.try_recv().is_err(), "nothing is said before every path was there");
    fs::create_dir_all(&later).unwrap();
    fs::write(later.join("c.yaml"), service("c", 80)).unwrap();
    let said = follower.listing().await;
    assert_eq!(said.iter().filter(|word| **word == "listing Service").count(), 1, "{said:?}");
    follower.port("c", 80).await;
    assert_eq!(services(&follower.state), ["default/a", "default/b", "default/c"]);
    assert_eq!(follower.log.count("later/still: No such file or directory"), 1);
}

#[tokio::test]
async fn a_directory_that_is_put_in_place_again() {
    let outside = tempdir().unwrap();
    let path = outside.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 80) + &service("b", 80)).unwrap();
    let other = tempdir().unwrap();
    let mut follower = Follower::listed(&[other.path(), &path]).await;
    // Losing sight of the directory says nothing about the objects.
    fs::remove_dir_all(&path).unwrap();
    follower.logged("manifests: No such file or directory (os error 2); what was last read there stays in use").await;
    let (lost, mut port) = (Instant::now(), 100);
    while lost.elapsed() < Duration::from_millis(500) {
        port += 1;
        replace(&other.path().join("c.yaml"), &service("c", port));
        assert_eq!(follower.port("c", port).await, ["Service default/c"]);
    }
    fs::create_dir(outside.path().join("again")).unwrap();
    fs::write(outside.path().join("again/new.yaml"), service("a", 81)).unwrap();
    fs::rename(outside.path().join("again"), &path).unwrap();
    let mut said = follower.port("b", 0).await;
    said.extend(follower.port("a", 81).await);
    assert_eq!(said, ["Service default/a", "deleted Service default/b"]);
    // And another in its place in one step.
    fs::create_dir(outside.path().join("next")).unwrap();
    fs::write(outside.path().join("next/a.yaml"), service("a", 82)).unwrap();
    fs::rename(&path, outside.path().join("last")).unwrap();
    fs::rename(outside.path().join("next"), &path).unwrap();
    assert_eq!(follower.port("a", 82).await, ["Service default/a"]);
    // What happens to the old one is of no interest any more.
    fs::write(outside.path().join("last/new.yaml"), service("a", 83)).unwrap();
    fs::write(path.join("a.yaml"), service("a", 84)).unwrap();
    assert_eq!(follower.port("a", 84).await, ["Service default/a"]);
}

#[tokio::test]
async fn a_link_that_leads_elsewhere() {
    let outside = tempdir().unwrap();
    let at = |name: &str| outside.path().join(name);
    for (release, port) in [("r1", 80), ("r2", 81)] {
        fs::create_dir_all(at(release).join("deep")).unwrap();
        fs::write(at(release).join("deep/a.yaml"), service("a", port)).unwrap();
    }
    symlink("r1", at("current")).unwrap();
    symlink(at("current"), at("alias")).unwrap();
    let mut follower = Follower::listed(&[&at("alias/deep")]).await;
    symlink("r2", at("current.new")).unwrap();
    fs::rename(at("current.new"), at("current")).unwrap();
    assert_eq!(follower.port("a", 81).await, ["Service default/a"]);
    fs::write(at("r2/deep/a.yaml"), service("a", 82)).unwrap();
    assert_eq!(follower.port("a", 82).await, ["Service default/a"]);
}

#[tokio::test]
async fn only_what_changed_is_said() {
    let directory = directory();
    let all = |changed: u16| {
        (0..50).map(|i| service(&format!("s{i}"), if i == 7 { changed } else { 80 })).collect::<String>()
    };
    let path = directory.path().join("many.yaml");
    fs::write(&path, all(80)).unwrap();
    let mut follower = Follower::listed(&[directory.path()]).await;
    assert_eq!(services(&follower.state).len(), 52);
    fs::write(&path, all(81)).unwrap();
    assert_eq!(follower.port("s7", 81).await, ["Service default/s7"]);
    // The same again, only differently written.
    fs::write(&path, all(81).replace("---\n", "--- # again\n")).unwrap();
    replace(&directory.path().join("b.yaml"), &service("b", 80));
    fs::write(directory.path().join("a.yaml"), service("a", 81)).unwrap();
    assert_eq!(follower.port("a", 81).await, ["Service default/a"]);
}

#[tokio::test]
async fn objects_that_stand_in_two_places() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let mut follower = Follower::listed(&[directory.path()]).await;
    fs::write(at("z.yaml"), format!("# the other\n{}", service("a", 90))).unwrap();
    follower.port("a", 90).await;
    let both = format!(
        "Service default/a stands at {}:2 and again at {}:3: the latter is used",
        at("a.yaml").display(),
        at("z.yaml").display()
    );
    follower.logged(&both).await;
    // The earlier one changes: nothing to say, and no second warning.
    fs::write(at("a.yaml"), service("a", 91)).unwrap();
    fs::write(at("b.yaml"), service("b", 81)).unwrap();
    assert_eq!(follower.port("b", 81).await, ["Service default/b"]);
    fs::remove_file(at("z.yaml")).unwrap();
    assert_eq!(follower.port("a", 91).await, ["Service default/a"]);
    assert_eq!(follower.log.count("stands at"), 1);
    // Later given paths count more than earlier ones, whatever their names.
    let given = Follower::listed(&[&at("b.yaml"), directory.path(), &at("a.yaml")]).await;
    assert_eq!(given.log.text(), "", "a file that is found twice is read once");
    fs::write(at("x.yaml"), service("b", 99)).unwrap();
    let given = Follower::listed(&[&at("x.yaml"), &at("b.yaml")]).await;
    assert_eq!(port_of(&given.state, "b"), 81);
}

#[tokio::test]
async fn a_label_takes_a_service_away() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    let labelled = service("a", 80).replace("spec:", "  labels: {service.kubernetes.io/service-proxy-name: x}\nspec:");
    fs::write(directory.path().join("a.yaml"), labelled).unwrap();
    assert_eq!(follower.port("a", 0).await, ["deleted Service default/a"]);
}

#[tokio::test]
async fn a_file_that_is_half_written() {
    let directory = directory();
    let (path, other) = (directory.path().join("a.yaml"), directory.path().join("b.yaml"));
    let mut follower = Follower::listed(&[directory.path()]).await;
    let mut convincing = 0;
    for port in 100..200 {
        // Its first half would be a Service without a port.
        let text = service("a", port);
        let half = text.find("  ports:").unwrap();
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&text.as_bytes()[..half]).unwrap();
        let written = Instant::now();
        fs::write(&other, service("b", port)).unwrap();
        let said = follower.port("b", port).await;
        // A writer that pauses for longer is taken to have finished: then the test tests nothing.
        let in_time = written.elapsed() < Duration::from_millis(400);
        file.write_all(&text.as_bytes()[half..]).unwrap();
        drop(file);
        if in_time {
            assert_eq!(said, ["Service default/b"]);
            assert_eq!(follower.port("a", port).await, ["Service default/a"]);
            convincing += 1;
        } else {
            follower.port("a", port).await;
        }
        if convincing == 5 {
            return;
        }
    }
    panic!("the machine is too slow for this test");
}

#[tokio::test]
async fn a_writer_that_never_closes_its_file() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    let mut file = fs::File::create(directory.path().join("log.yaml")).unwrap();
    file.write_all(service("c", 80).as_bytes()).unwrap();
    assert_eq!(follower.port("c", 80).await, ["Service default/c"]);
    file.write_all(service("d", 80).as_bytes()).unwrap();
    assert_eq!(follower.port("d", 80).await, ["Service default/d"]);
}

/// inotify does not tell of a write through another link to the file; looking at it does. The
/// clock leaps forward whenever nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn changes_that_nobody_tells_of() {
    let (directory, elsewhere) = (directory(), tempdir().unwrap());
    fs::hard_link(directory.path().join("a.yaml"), elsewhere.path().join("a")).unwrap();
    let mut follower = Follower::listed(&[directory.path()]).await;
    fs::write(elsewhere.path().join("a"), service("a", 81)).unwrap();
    assert_eq!(follower.port("a", 81).await, ["Service default/a"]);
}

#[tokio::test]
async fn nobody_listens_any_more() {
    let directory = directory();
    let mut follower = Follower::listed(&[directory.path()]).await;
    follower.events.close();
    let ended = tokio::time::timeout(super::PATIENCE, &mut follower.task).await;
    ended.expect("the source ends").expect("without a panic").expect("and without an error");
}
