//! Sessions of any content.

use std::io::ErrorKind;
use std::sync::Arc;

use super::edits::STORE_ID;
use super::sim_disk::CrashMode;
use super::state_files::{StateFile, disk_of};
use edgehub::mailbox::Mailbox;
use edgehub::store::journal::{Journal, Subscription};

/// Runs one input.
pub fn run(input: &[u8]) {
    let Some((file, sync)) = super::given::<(StateFile, bool)>(input) else {
        return;
    };
    let disk = disk_of(&[(1, file)], "session/d/");
    let opened = Journal::open(disk.mount(), STORE_ID, sync);
    let (journal, (sessions, damage)) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            return;
        }
    };
    drop(journal);
    let opened = Journal::open(disk.mount(), STORE_ID, sync);
    let (journal, (again, later)) = opened.expect("content is no error");
    // Values that do not read are told each time; those are all that is left.
    assert_eq!(again, sessions);
    assert!(later.len() <= damage.len(), "{damage:?} and then {later:?}");
    let mailbox = Arc::new(Mailbox::default());
    let fresh = [Subscription::new("a/#", edgehub::mqtt::QoS::AtLeastOnce)];
    let version = journal.record("d/fresh", Some(&fresh), &mailbox);
    drop(journal);
    assert_ne!(version, u64::MAX);
    disk.crash(CrashMode::Kill);
    let opened = Journal::open(disk.mount(), STORE_ID, sync);
    let (_, (mut last, _)) = opened.expect("content is no error");
    assert_eq!(last.remove("d/fresh").as_deref(), Some(&fresh[..]));
    let mut sessions = sessions;
    sessions.remove("d/fresh");
    assert_eq!(last, sessions);
}
