//! The names on the simulated disk: a table, and the operations that change it.

use std::collections::{BTreeMap, BTreeSet};

/// Which name stands for which file.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) files: BTreeMap<String, u64>,
    pub(super) dirs: BTreeSet<String>,
}

/// A change of names, as the file system's journal has it.
#[derive(Debug, Clone)]
pub(super) enum NameOp {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
    MakeDir(String),
}

impl Names {
    pub(super) fn apply(&mut self, op: NameOp) {
        match op {
            NameOp::Link(path, file) => {
                self.files.insert(path, file);
            }
            NameOp::Unlink(path) => {
                self.files.remove(&path);
            }
            NameOp::Rename(from, to) => {
                if let Some(file) = self.files.remove(&from) {
                    self.files.insert(to, file);
                }
            }
            NameOp::MakeDir(path) => {
                self.dirs.insert(path);
            }
        }
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        path.is_empty() || self.dirs.contains(path)
    }

    /// The names right below a folder.
    pub(super) fn children(&self, dir: &str) -> Vec<String> {
        let below = |path: &String| {
            let rest = match dir {
                "" => path.as_str(),
                _ => path.strip_prefix(dir)?.strip_prefix('/')?,
            };
            (!rest.contains('/')).then(|| rest.to_owned())
        };
        let files = self.files.keys().filter_map(below);
        files.chain(self.dirs.iter().filter_map(below)).collect()
    }
}

/// The path without what means nothing: `./a//b/` is `a/b`.
pub(super) fn plain(path: &str) -> String {
    let parts = path.split('/');
    let parts: Vec<_> = parts.filter(|part| !matches!(*part, "" | ".")).collect();
    parts.join("/")
}

/// The folder of a plain path.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}
