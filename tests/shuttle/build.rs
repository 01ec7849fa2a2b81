//! Copies the rooms that the store stands on, and exchanges what its threads share for shuttle's;
//! once more for the mailbox, and loom's.

use std::fs;
use std::path::Path;

const ROOMS: [&str; 7] = [
    "limits", "topic", "identity", "message", "mailbox", "mqtt", "store",
];
/// The threads of these are watched.
const WATCHED: [&str; 2] = ["mailbox", "store"];

fn main() {
    let source = Path::new("../../src");
    println!("cargo::rerun-if-changed=../../src");
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let target = Path::new(&out).join("src");
    let mut list = String::new();
    for room in ROOMS {
        let exchange = |text: String| {
            if WATCHED.contains(&room) {
                text.replace("std::sync::", "shuttle::sync::")
                    .replace("std::thread", "shuttle::thread")
            } else {
                text
            }
        };
        // Beside its parts, where the compiler looks for them.
        let root = format!("{room}/mod.rs");
        let file = source.join(format!("{room}.rs"));
        if file.exists() {
            copy(&file, &target.join(&root), &exchange);
        }
        if source.join(room).is_dir() {
            copy_dir(&source.join(room), &target.join(room), &exchange);
        }
        let root = target.join(root);
        list += &format!("#[path = {root:?}]\npub mod {room};\n");
    }
    fs::write(Path::new(&out).join("rooms.rs"), list).expect("the list");
    let loom = |text: String| {
        text.replace("std::sync::", "loom::sync::")
            .replace("atomic_waker::", "loom::future::")
            .replace(".register(", ".register_by_ref(")
    };
    let mailbox = Path::new(&out).join("mailbox.rs");
    copy(&source.join("mailbox.rs"), &mailbox, &loom);
    let root = format!("#[path = {mailbox:?}]\npub mod mailbox;\n");
    fs::write(Path::new(&out).join("mailbox_root.rs"), root).expect("the list");
}

fn copy(from: &Path, to: &Path, exchange: &dyn Fn(String) -> String) {
    let text = fs::read_to_string(from).expect("a source");
    fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
    fs::write(to, exchange(text)).expect("a copy");
}

fn copy_dir(from: &Path, to: &Path, exchange: &dyn Fn(String) -> String) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("a name");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to, exchange);
        } else {
            copy(&entry.path(), &to, exchange);
        }
    }
}
