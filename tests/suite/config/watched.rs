//! The configuration file while the proxy runs: what ends it, and what must not.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use ferrule::config::FileWatch;
use futures::FutureExt;
use tokio::time::timeout;

/// How long a loaded machine may take.
const LONG: Duration = Duration::from_secs(60);

/// Whether `change` ends a proxy that was started with `path`. Another change that does is made
/// last, so that the answer comes from events in their order and not from waiting.
async fn ends(path: &Path, change: impl FnOnce()) -> bool {
    let real = fs::canonicalize(path).unwrap();
    let kept = fs::File::options().append(true).open(&real).unwrap();
    let watch = FileWatch::new(path).unwrap();
    let mut updated = Box::pin(watch.updated());
    assert!(updated.as_mut().now_or_never().is_none(), "nothing has happened yet");
    change();
    // The kernel queues events while the change is made, so one look is enough to see them all.
    for _ in 0..100 {
        if let Some(error) = updated.as_mut().now_or_never() {
            assert_eq!(error.to_string(), "content of the proxy server's configuration file was updated");
            return true;
        }
        tokio::task::yield_now().await;
    }
    if kept.metadata().unwrap().permissions().mode() & 0o200 != 0 && real.exists() {
        // Still watched: the file that was there at the start, whatever leads to it now.
        (&kept).write_all(b"\n").unwrap();
        timeout(LONG, updated).await.expect("the file is still watched");
    }
    false
}

#[tokio::test]
async fn what_ends_the_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("config.conf"), directory.path().join("other"));
    let fresh = || fs::write(&path, "a: b\n").unwrap();

    fresh();
    assert!(ends(&path, || fs::write(&path, "c: d\n").unwrap()).await, "written over");
    assert!(ends(&path, || fs::write(&path, "c: d\n").unwrap()).await, "written over with the same");
    assert!(ends(&path, || drop(fs::File::create(&path).unwrap())).await, "emptied");
    fresh();
    assert!(ends(&path, || fs::rename(&path, &other).unwrap()).await, "renamed");

    fresh();
    assert!(!ends(&path, || fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap()).await, "chmod");
    assert!(!ends(&path, || drop(fs::read(&path).unwrap())).await, "read");
    assert!(!ends(&path, || fs::write(directory.path().join("new"), "x").unwrap()).await, "another file");
    assert!(!ends(&path, || fs::remove_file(&path).unwrap()).await, "removed");
    fresh();
    // What an editor or `mv` does: the file that was watched is gone, another has its name.
    fs::write(&other, "c: d\n").unwrap();
    assert!(!ends(&path, || fs::rename(&other, &path).unwrap()).await, "replaced");
}

/// As kubelet updates a volume: a new folder, the link `..data` swapped for one to it, the old
/// folder removed. Clusters rely on kube-proxy to go on.
#[tokio::test]
async fn a_config_map_that_is_updated() {
    let volume = tempfile::tempdir().unwrap();
    let at = |name: &str| volume.path().join(name);
    for (folder, text) in [("..old", "a: b\n"), ("..new", "c: d\n")] {
        fs::create_dir(at(folder)).unwrap();
        fs::write(at(folder).join("config.conf"), text).unwrap();
    }
    symlink("..old", at("..data")).unwrap();
    symlink("..data/config.conf", at("config.conf")).unwrap();
    let swap = || {
        symlink("..new", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(fs::read_to_string(at("config.conf")).unwrap(), "c: d\n");
    };
    assert!(!ends(&at("config.conf"), swap).await, "swapped");
    assert!(!ends(&at("config.conf"), || fs::remove_dir_all(at("..old")).unwrap()).await, "the old one removed");
    // In place, through the links, it is a change.
    assert!(ends(&at("config.conf"), || fs::write(at("..new").join("config.conf"), "e: f\n").unwrap()).await);
}

#[tokio::test]
async fn no_file() {
    let directory = tempfile::tempdir().unwrap();
    assert!(FileWatch::new(&directory.path().join("none")).is_err());
}
