//! The topic filters that the cloud's broker may have of us, kept over restarts: what `subscribe`
//! no longer names has to be given up there, or its messages go on coming.

use std::io;
use std::path::{Path, PathBuf};

/// What we subscribe to, and the file that says what else the broker may still have.
#[derive(Debug)]
pub struct Filters {
    file: PathBuf,
    /// Replaces the file.
    write: Write,
    wanted: Vec<String>,
}

type Write = fn(&Path, &[u8]) -> io::Result<()>;

impl Filters {
    /// What is `wanted`; `file` holds the filters as a JSON list, need not be there, and is
    /// replaced by `write`.
    #[must_use]
    pub fn new(file: PathBuf, write: Write, wanted: Vec<String>) -> Self {
        Self {
            file,
            write,
            wanted,
        }
    }

    /// What to subscribe to.
    #[must_use]
    pub fn wanted(&self) -> &[String] {
        &self.wanted
    }

    /// A connection begins: the filters to give up. All that the broker may have from now on is
    /// noted before it is told.
    #[must_use]
    pub fn begin(&self, session_present: bool) -> Vec<String> {
        let known = self.read();
        let mut gone = known.clone();
        gone.retain(|filter| session_present && !self.wanted.contains(filter));
        let all = [self.wanted.as_slice(), &gone].concat();
        self.write(&known, &all);
        gone
    }

    /// The broker has given up what is not wanted.
    pub fn settled(&self) {
        self.write(&self.read(), &self.wanted);
    }

    fn read(&self) -> Vec<String> {
        let read = std::fs::read(&self.file);
        let list = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from));
        match list {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(%file, "what the cloud has of our filters cannot be read: {error}");
                Vec::new()
            }
        }
    }

    fn write(&self, known: &[String], all: &[String]) {
        if known == all {
            return;
        }
        let list = serde_json::to_vec(all).unwrap_or_default();
        if let Err(error) = (self.write)(&self.file, &list) {
            let file = self.file.display();
            tracing::warn!(%file, "what the cloud has of our filters cannot be noted: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_wanted_is_given_up_until_the_broker_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let with = |wanted: &[&str]| {
            let wanted = wanted.iter().map(|one| (*one).to_owned()).collect();
            let write: Write = |path, bytes| std::fs::write(path, bytes);
            Filters::new(dir.path().join("filters.json"), write, wanted)
        };
        assert!(with(&[]).begin(true).is_empty());
        assert!(!dir.path().join("filters.json").exists());
        assert!(with(&["a/#", "b"]).begin(false).is_empty());
        assert_eq!(with(&["b", "c"]).begin(true), ["a/#"]);
        // Not answered: asked again, also after another change.
        assert_eq!(with(&["b"]).begin(true), ["c", "a/#"]);
        with(&["b"]).settled();
        assert!(with(&["b"]).begin(true).is_empty());
        assert_eq!(with(&[]).begin(true), ["b"]);
        // A broker without our session has none of them.
        assert!(with(&["b"]).begin(false).is_empty());
        assert_eq!(with(&[]).read(), ["b"]);
    }
}
