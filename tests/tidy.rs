//! Style as a test: the direction of dependency between the rooms, what cores may not touch, sizes,
//! leftovers, and a README that keeps up with the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use edgehub::observe;

const LINES_MAX: usize = 500;
/// Files of scenes and tables are read one scene at a time.
const TEST_LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;

/// Files over [`LINES_MAX`], with the length that they may not pass; nothing is to be added here.
const LONG_FILES: [(&str, usize); 0] = [];

/// A text this long may make its line too long: a route in a manifest has to stay in one piece.
const TEXT_COLUMNS_MIN: usize = 60;

/// Uses that go against the order of the rooms, with the reason.
const EXCEPTIONS: [(&str, &str); 4] = [
    // A leaf that counts; whoever counts may use it.
    ("hub", "observe"),
    ("server", "observe"),
    ("upstream", "observe"),
    // A listener is driven by its section of the configuration, as it was read.
    ("server", "config"),
];

/// What words, cores and the meeting place may not use, and what to do instead.
const BANNED_IN_CORES: [(&str, &str); 9] = [
    ("tokio", "a core does not wait: the shell calls it"),
    ("async fn", "a core does not wait: the shell calls it"),
    ("std::net::Tcp", "sockets belong to the shells"),
    ("std::net::Udp", "sockets belong to the shells"),
    ("std::fs", "files belong to `files`, `config` and `store`"),
    ("std::thread", "threads belong to the shells and `store`"),
    ("Instant::now", "time is an argument"),
    ("SystemTime::now", "time is an argument"),
    (
        "SystemRandom",
        "randomness is an argument (`files::random`)",
    ),
];

/// A source file, without comments and tests.
struct Source {
    /// Relative to the package.
    path: String,
    /// Its room: the first part of its path below `src`.
    room: String,
    /// Number and text of each line of code.
    code: Vec<(usize, String)>,
}

#[test]
fn rooms_use_only_what_stands_above_them() {
    let rooms = rooms();
    let order: Vec<&str> = rooms.iter().flat_map(|(_, names)| names).copied().collect();
    let place = |room: &str| order.iter().position(|known| *known == room);
    let mut errors = String::new();
    for Source { path, room, code } in sources() {
        let Some(own) = place(&room) else {
            writeln!(errors, "{path}: `{room}` is not among the rooms of lib.rs").unwrap();
            continue;
        };
        let is_room_root = path.matches('/').count() == 1;
        for (number, line) in &code {
            if is_room_root && line.contains("super::") {
                writeln!(errors, "{path}:{number}: write `crate::`, not `super::`").unwrap();
            }
            for used in uses(line) {
                let allowed = place(&used).is_some_and(|used| used <= own);
                if !allowed && !EXCEPTIONS.contains(&(&*room, &*used)) {
                    writeln!(errors, "{path}:{number}: `{room}` may not use `{used}`").unwrap();
                }
            }
        }
    }
    assert!(errors.is_empty(), "\n{errors}");
}

#[test]
fn exceptions_are_in_use() {
    for (room, used) in EXCEPTIONS {
        let found = sources().iter().any(|source| {
            let lines = &mut source.code.iter();
            source.room == room && lines.any(|(_, line)| uses(line).iter().any(|one| one == used))
        });
        assert!(found, "`{room}` no longer uses `{used}`: take it out");
    }
}

#[test]
fn cores_have_no_clock_no_files_no_sockets() {
    let pure: Vec<&str> = rooms()
        .into_iter()
        .filter(|(kind, _)| ["words", "cores", "meeting place"].contains(kind))
        .flat_map(|(_, names)| names)
        .collect();
    assert!(pure.contains(&"session") && pure.contains(&"hub"));
    let mut errors = String::new();
    for Source { path, room, code } in sources() {
        if !pure.contains(&&*room) {
            continue;
        }
        for (number, line) in code {
            for (banned, instead) in BANNED_IN_CORES {
                if line.contains(banned) {
                    writeln!(errors, "{path}:{number}: {banned}: {instead}").unwrap();
                }
            }
        }
    }
    assert!(errors.is_empty(), "\n{errors}");
}

#[test]
fn files_are_short_and_lines_fit() {
    let mut errors = String::new();
    for (path, text) in rust_files() {
        let known = LONG_FILES.iter().find(|(long, _)| *long == path);
        let of_kind = if path.starts_with("tests/") {
            TEST_LINES_MAX
        } else {
            LINES_MAX
        };
        let max = known.map_or(of_kind, |(_, max)| *max);
        let lines = text.lines().count();
        if lines > max {
            writeln!(errors, "{path}: {lines} lines, at most {max}").unwrap();
        }
        for (number, line) in (1..).zip(text.lines()) {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX && !has_long_text(line) {
                writeln!(errors, "{path}:{number}: {columns} columns").unwrap();
            }
        }
    }
    assert!(errors.is_empty(), "\n{errors}");
}

/// Whether there is something long between two quotes, other than escaped ones.
fn has_long_text(line: &str) -> bool {
    let plain = line.replace("\\\"", "''");
    let parts: Vec<_> = plain.split('"').collect();
    let inside = parts.len().saturating_sub(1);
    let mut inside = parts.iter().take(inside).skip(1);
    inside.any(|part| part.chars().count() >= TEXT_COLUMNS_MIN)
}

#[test]
fn nothing_is_left_over() {
    let leftovers = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
    ];
    let mut errors = String::new();
    for (path, text) in rust_files() {
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(leftover) = leftovers.iter().find(|leftover| line.contains(**leftover)) {
                writeln!(errors, "{path}:{number}: {leftover}").unwrap();
            }
        }
    }
    assert!(errors.is_empty(), "\n{errors}");
}

/// What the hub is built from, as cargo resolves it without features: the packages are there, since
/// this test was built from them, so no network is needed.
#[test]
fn the_hub_is_built_without_the_stand_in_clouds_broker() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{lib}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    let has = |name: &str| tree.lines().any(|line| line == name);
    assert!(has("edgehub") && has("tokio") && has("rustls"), "{tree}");
    assert!(!has("rumqttd"), "the shipped hub depends on rumqttd");
}

#[test]
fn the_readme_names_every_metric() {
    let readme = read("README.md");
    let names = observe::names();
    for name in &names {
        assert!(readme.contains(&format!("`{name}`")), "no {name} in README");
    }
    for word in words_with_prefix(&readme, "edgehub_") {
        assert!(names.contains(&&*word), "README names {word}: no metric");
    }
}

#[test]
fn the_readme_names_every_limit_with_its_default() {
    let readme = read("README.md");
    let defaults = format!("{:#?}", edgehub::limits::Limits::DEFAULT);
    let mut count = 0;
    for line in defaults.lines() {
        let Some((key, value)) = line.trim().split_once(": ") else {
            continue;
        };
        let value = written(key, value.trim_end_matches(','));
        let row = format!("| `{key}` | {value} |");
        assert!(readme.contains(&row), "README has no row beginning {row}");
        count += 1;
    }
    assert!(count >= 14, "only {count} limits found");
}

#[test]
fn the_readme_names_every_key_of_the_configuration() {
    let readme = read("README.md");
    let text = read("src/config/read.rs");
    let readers = [
        "parsed", "text", "path", "flag", "number", "size", "choice", "list", "section", "tables",
    ];
    let mut count = 0;
    for reader in readers {
        for call in text.split(&format!(".{reader}(")).skip(1) {
            let Some(rest) = call.trim_start().strip_prefix('"') else {
                continue;
            };
            let key = rest.split('"').next().unwrap();
            let known = readme.contains(&format!("`{key}`"))
                || readme.contains(&format!("`[{key}]`"))
                || readme.contains(&format!("`[[{key}]]`"));
            assert!(known, "README has no key `{key}`");
            count += 1;
        }
    }
    assert!(count > 50, "only {count} keys found");
}

#[test]
fn the_readme_names_every_reason() {
    let readme = read("README.md");
    // Functions whose match arms are the reasons of metrics.
    for (path, function) in [
        ("src/session/close.rs", "fn label("),
        ("src/hub/refused.rs", "fn label("),
        ("src/identity/authenticate.rs", "fn reason("),
    ] {
        let text = read(path);
        let body = text.split_once(function).expect(path).1;
        let body = body.split_once("\n    }").expect(path).0;
        let reasons: Vec<_> = body.split('"').skip(1).step_by(2).collect();
        assert!(reasons.len() >= 4, "{path}: {reasons:?}");
        for reason in reasons {
            let named = readme.contains(&format!("`{reason}`"));
            assert!(named, "README has no reason `{reason}` ({path})");
        }
    }
}

#[test]
fn the_readme_has_the_rooms_of_lib_rs() {
    let readme = read("README.md");
    for (kind, names) in rooms() {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let row = format!("| {kind} | {} |", names.join(", "));
        assert!(readme.contains(&row), "README has no row beginning {row}");
    }
    let modules = read("src/lib.rs");
    let modules = modules.lines().filter_map(|line| {
        let line = line.strip_prefix("pub mod ")?;
        line.strip_suffix(';').map(str::to_owned)
    });
    let rooms = rooms();
    for module in modules {
        let listed = rooms.iter().any(|(_, names)| names.contains(&&*module));
        assert!(listed, "the doc of lib.rs does not list `{module}`");
    }
}

/// The rooms in the order of `lib.rs`'s doc: the kind and its names, from lines such as
/// "- words: [`limits`], [`topic`]" and those that go on from them.
fn rooms() -> Vec<(&'static str, Vec<&'static str>)> {
    let text: &'static str = include_str!("../src/lib.rs");
    let mut rooms: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines().map_while(|line| line.strip_prefix("//!")) {
        if let Some(item) = line.strip_prefix(" - ") {
            let kind = item.split([':', ',']).next().unwrap();
            rooms.push((kind, Vec::new()));
        } else if !line.starts_with("   ") {
            continue;
        }
        if let Some((_, names)) = rooms.last_mut() {
            let marked = line.split("[`").skip(1);
            names.extend(marked.filter_map(|rest| rest.split("`]").next()));
        }
    }
    assert_eq!(rooms.len(), 6, "{rooms:?}");
    rooms
}

/// Rooms that a line of code names with `crate::`.
fn uses(line: &str) -> Vec<String> {
    let mut used = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let names = match rest.strip_prefix('{') {
            Some(group) => group.split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name = name.trim_start();
            let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            let name = &name[..end.unwrap_or(name.len())];
            if !name.is_empty() {
                used.push(name.to_owned());
            }
        }
    }
    used
}

/// The library's files without tests, comments and string contents that look like code.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for (path, text) in rust_files() {
        let Some(below) = path.strip_prefix("src/") else {
            continue;
        };
        let is_test = below.contains("/tests/") || below.ends_with("/tests.rs");
        if is_test || below.starts_with("bin/") || ["lib.rs", "main.rs"].contains(&below) {
            continue;
        }
        let room = below.split(['/', '.']).next().unwrap().to_owned();
        let code = code(&text);
        sources.push(Source { path, room, code });
    }
    assert!(sources.len() > 50);
    sources
}

/// Lines of code: without comments, and without the item that follows `#[cfg(test)]`.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut code = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let indent = &line[..line.len() - line.trim_start().len()];
            let end = format!("{indent}}}");
            for (_, line) in lines.by_ref() {
                if line == end || (line.ends_with(';') && line.starts_with(&format!("{indent}mod")))
                {
                    break;
                }
            }
            continue;
        }
        if !line.trim_start().starts_with("//") {
            code.push((number, line.to_owned()));
        }
    }
    code
}

/// A default as the README writes it: numbers with thousands apart, sizes with their unit.
fn written(key: &str, value: &str) -> String {
    let number: u64 = value.parse().expect(key);
    let is_size = key.ends_with("_bytes");
    match number {
        _ if is_size && number.is_multiple_of(1 << 20) => format!("`\"{}MiB\"`", number >> 20),
        _ if is_size && number.is_multiple_of(1 << 10) => format!("`\"{}KiB\"`", number >> 10),
        _ => format!("`{number}`"),
    }
}

fn words_with_prefix(text: &str, prefix: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

/// All Rust files of the package by path, relative and sorted, with their text.
fn rust_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        collect(folder, &mut files);
    }
    files.sort();
    files
}

fn collect(folder: &str, files: &mut Vec<(String, String)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(entries) = fs::read_dir(root.join(folder)) else {
        return;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        if entry.file_type().unwrap().is_dir() {
            collect(&path, files);
        } else if name.ends_with(".rs") {
            let text = read(&path);
            files.push((path, text));
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}
