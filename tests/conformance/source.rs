//! Where a proxy under test gets its objects from, and how they change there.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::fake_api::FakeApi;
use crate::node::Node;
use crate::objects::{Objects, Step};

/// A source of objects.
pub enum Source {
    /// Manifest files, as they are.
    Files(Vec<PathBuf>),
    /// A folder with a file for each object.
    Folder(PathBuf),
    /// A fake API server in the node's network namespace.
    Api(FakeApi),
}

/// Makes a source that holds some objects: [`Source::folder`] or [`Source::api`].
pub type Make = fn(&Node, &Objects) -> Source;

// === impl Source ===

impl Source {
    /// A folder of manifests.
    pub fn folder(node: &Node, objects: &Objects) -> Source {
        let folder = node.dir().join("manifests");
        objects.write(&folder);
        Source::Folder(folder)
    }

    /// An API server. It listens in the network namespace of the calling thread: the node's.
    pub fn api(_node: &Node, objects: &Objects) -> Source {
        let texts: Vec<&str> = objects.0.values().map(String::as_str).collect();
        Source::Api(FakeApi::start(crate::fake_api::objects_from_yaml(&texts.join("---\n"))))
    }

    /// The flags that name it.
    pub fn args(&self) -> Vec<OsString> {
        let manifests = |path: &PathBuf| [OsString::from("--manifests"), path.into()];
        match self {
            Source::Files(files) => files.iter().flat_map(manifests).collect(),
            Source::Folder(folder) => manifests(folder).into(),
            Source::Api(server) => vec![OsString::from("--master"), server.url().into()],
        }
    }

    /// Makes a change in it.
    pub fn take(&self, step: &Step) {
        match self {
            Source::Files(files) => panic!("{files:?} are not to be changed"),
            Source::Folder(folder) => step.write(folder),
            Source::Api(server) => {
                step.applied.0.values().for_each(|document| server.apply_yaml(document));
                for id in &step.deleted {
                    assert!(server.delete(&id.kind, &id.namespace, &id.name), "{id:?} is not there");
                }
            }
        }
    }
}
