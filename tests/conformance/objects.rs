//! The objects an API server held, as manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::recording::{golden, read};

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: String,
    /// Empty for a Node.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Objects, each as the text of one YAML document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects(pub BTreeMap<Id, String>);

/// A change of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Name of its folder, which begins with its number.
    pub name: String,
    /// Objects made or replaced.
    pub applied: Objects,
    /// Objects deleted.
    pub deleted: Vec<Id>,
}

// === impl Objects ===

impl Objects {
    /// The files of `objects/` in the recordings, in the order given.
    pub fn recorded(files: &[&str]) -> Objects {
        files.iter().map(|file| Objects::read(&golden().join("objects").join(file))).fold(Objects::default(), |a, b| {
            let mut all = a;
            all.0.extend(b.0);
            all
        })
    }

    /// A file of YAML documents.
    pub fn read(file: &Path) -> Objects {
        Objects::parse(&read(file))
    }

    /// YAML documents.
    pub fn parse(text: &str) -> Objects {
        let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
        Objects(documents.map(|document| (Id::of(document), document.to_owned())).collect())
    }

    /// Makes a change.
    pub fn take(&mut self, step: &Step) {
        self.0.extend(step.applied.0.clone());
        for id in &step.deleted {
            assert!(self.0.remove(id).is_some(), "step {} deletes {id:?}, which is not there", step.name);
        }
    }

    /// Writes every object to a file of its own.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder for the manifests");
        for (id, document) in &self.0 {
            std::fs::write(id.file(folder), document).expect("write a manifest");
        }
    }
}

// === impl Id ===

impl Id {
    fn of(document: &str) -> Id {
        #[derive(Deserialize)]
        struct Object {
            kind: String,
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            namespace: String,
            name: String,
        }
        let object: Object = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}:\n{document}"));
        Id { kind: object.kind, namespace: object.metadata.namespace, name: object.metadata.name }
    }

    /// The file that holds the object in a folder of manifests.
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}-{}.yaml", self.kind, self.namespace, self.name))
    }
}

// === impl Step ===

impl Step {
    /// The recorded steps, in order.
    pub fn recorded() -> Vec<Step> {
        let folder = golden().join("objects/steps");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder").path()).collect();
        folders.sort();
        folders.iter().map(|folder| Step::read(folder)).collect()
    }

    /// Makes the change in a folder of manifests, file by file: half of the files are replaced as
    /// editors do it, half are written over.
    pub fn write(&self, folder: &Path) {
        for (i, (id, document)) in self.applied.0.iter().enumerate() {
            let file = id.file(folder);
            if i % 2 == 0 {
                let new = file.with_extension("yaml.new~");
                std::fs::write(&new, document).expect("write a manifest");
                std::fs::rename(&new, &file).expect("replace a manifest");
            } else {
                std::fs::write(&file, document).expect("write a manifest");
            }
        }
        for id in &self.deleted {
            std::fs::remove_file(id.file(folder)).expect("remove a manifest");
        }
    }

    fn read(folder: &Path) -> Step {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (apply, delete) = (folder.join("apply.yaml"), folder.join("delete.txt"));
        let applied = if apply.exists() { Objects::read(&apply) } else { Objects::default() };
        let deletions = if delete.exists() { read(&delete) } else { String::new() };
        let deleted: Vec<Id> = deletions.lines().map(parse_deletion).collect();
        assert!(!applied.0.is_empty() || !deleted.is_empty(), "step {name} changes nothing");
        Step { name, applied, deleted }
    }
}

/// Reads `Service g/np-tcp`.
fn parse_deletion(line: &str) -> Id {
    let parts = line.split_once(' ').and_then(|(kind, path)| Some((kind, path.split_once('/')?)));
    let (kind, (namespace, name)) = parts.unwrap_or_else(|| panic!("not a deletion: {line}"));
    Id { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}
