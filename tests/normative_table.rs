//! `normative.md` keeps up with the tests, and no statement is missing in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;

/// Sections of MQTT 3.1.1 and how many statements each has.
const V311: &[(&str, usize)] = &[
    ("1.5.3", 3),
    ("2.2.2", 2),
    ("2.3.1", 7),
    ("3.1.0", 2),
    ("3.1.2", 24),
    ("3.1.3", 11),
    ("3.1.4", 5),
    ("3.2.0", 1),
    ("3.2.2", 6),
    ("3.3.1", 12),
    ("3.3.2", 3),
    ("3.3.4", 1),
    ("3.3.5", 2),
    ("3.6.1", 1),
    ("3.8.1", 1),
    ("3.8.3", 4),
    ("3.8.4", 6),
    ("3.9.3", 2),
    ("3.10.1", 1),
    ("3.10.3", 2),
    ("3.10.4", 6),
    ("3.12.4", 1),
    ("3.14.1", 1),
    ("3.14.4", 3),
    ("4.1.0", 2),
    ("4.3.1", 1),
    ("4.3.2", 2),
    ("4.3.3", 2),
    ("4.4.0", 1),
    ("4.5.0", 2),
    ("4.6.0", 6),
    ("4.7.1", 3),
    ("4.7.2", 1),
    ("4.7.3", 4),
    ("4.8.0", 2),
    ("6.0.0", 4),
    ("7.0.0", 2),
    ("7.1.1", 1),
    ("7.1.2", 1),
];

/// The same of MQTT 5. Its section 2.2.1 begins with 2.
const V5: &[(&str, usize)] = &[
    ("1.5.4", 3),
    ("1.5.5", 1),
    ("1.5.7", 1),
    ("2.1.3", 1),
    ("2.2.1", 6),
    ("2.2.2", 1),
    ("3.1.0", 2),
    ("3.1.2", 30),
    ("3.1.3", 12),
    ("3.1.4", 6),
    ("3.2.0", 2),
    ("3.2.2", 22),
    ("3.3.1", 13),
    ("3.3.2", 20),
    ("3.3.4", 10),
    ("3.4.2", 3),
    ("3.5.2", 3),
    ("3.6.1", 1),
    ("3.6.2", 3),
    ("3.7.2", 3),
    ("3.8.1", 1),
    ("3.8.3", 5),
    ("3.8.4", 8),
    ("3.9.2", 2),
    ("3.9.3", 2),
    ("3.10.1", 1),
    ("3.10.3", 2),
    ("3.10.4", 6),
    ("3.11.2", 2),
    ("3.11.3", 2),
    ("3.12.4", 1),
    ("3.14.0", 1),
    ("3.14.1", 1),
    ("3.14.2", 4),
    ("3.14.4", 3),
    ("3.15.1", 1),
    ("3.15.2", 3),
    ("4.1.0", 2),
    ("4.2", 1),
    ("4.3.1", 1),
    ("4.3.2", 5),
    ("4.3.3", 13),
    ("4.4.0", 2),
    ("4.5.0", 2),
    ("4.6.0", 6),
    ("4.7.0", 1),
    ("4.7.1", 2),
    ("4.7.2", 1),
    ("4.7.3", 4),
    ("4.8.2", 6),
    ("4.9.0", 3),
    ("4.12.0", 7),
    ("4.12.1", 2),
    ("4.13.1", 1),
    ("4.13.2", 1),
    ("6.0.0", 4),
];

/// Begins the third cell where there is no test.
const NO_TEST: &str = "Not applicable: ";

struct Row {
    number: String,
    statement: String,
    proof: String,
}

#[test]
fn every_statement_is_listed_once_and_in_order() {
    for (heading, sections, count) in [("## MQTT 3.1.1", V311, 141), ("## MQTT 5", V5, 251)] {
        let mut expected = Vec::new();
        for (section, last) in sections {
            let first = if *section == "2.2.1" { 2 } else { 1 };
            expected.extend((first..=*last).map(|n| format!("[MQTT-{section}-{n}]")));
        }
        let rows = rows(heading);
        let numbers: Vec<_> = rows.iter().map(|row| &*row.number).collect();
        assert_eq!(numbers, expected, "{heading}");
        assert_eq!(numbers.len(), count, "{heading}");
        for Row {
            number, statement, ..
        } in &rows
        {
            let length = statement.chars().count();
            assert!((10..=160).contains(&length), "{number}: {statement}");
        }
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let mut tests = 0;
    for heading in ["## MQTT 3.1.1", "## MQTT 5"] {
        for Row { number, proof, .. } in rows(heading) {
            let named: Vec<_> = proof.split('`').skip(1).step_by(2).collect();
            let named: Vec<_> = named
                .iter()
                .filter_map(|one| one.split_once("::"))
                .collect();
            assert!(
                proof.starts_with(NO_TEST) || !named.is_empty(),
                "{number} has no proof: {proof}"
            );
            for (path, function) in named {
                assert!(
                    is_test(path, function),
                    "{number}: {path} has no test {function}"
                );
                tests += 1;
            }
        }
    }
    assert!(tests > 500, "only {tests} tests are named");
}

/// Whether a file has a function of this name that is a test.
fn is_test(path: &str, function: &str) -> bool {
    let text = read(path);
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        let name = line
            .strip_prefix("fn ")
            .and_then(|rest| rest.split('(').next());
        name == Some(function)
    };
    let at = lines.iter().position(|line| is_it(line));
    at.is_some_and(|at| at > 0 && ["#[test]", "#[tokio::test]"].contains(&lines[at - 1]))
}

/// The rows of the table below a heading.
fn rows(heading: &str) -> Vec<Row> {
    let text = read("tests/normative.md");
    let (_, below) = text.split_once(&format!("{heading}\n")).expect(heading);
    let table = below.lines().skip_while(|line| !line.starts_with('|'));
    let rows = table.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{line}");
        Row {
            number: cells[0].to_owned(),
            statement: cells[1].to_owned(),
            proof: cells[2].to_owned(),
        }
    })
    .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}
