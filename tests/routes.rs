//! The routes language through the binary: eval, explain, and manifests that are wrong.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{BINARY, Setup, edgehub, inputs, message, output, publish, replace};
use serde_json::{Value, json};

const TABLE: &str = include_str!("routes_table.jsonl");

/// Sends lines through `routes eval` and returns the answers.
fn eval(input: String) -> Vec<Value> {
    let mut child = Command::new(BINARY)
        .args(["routes", "eval"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_whole_table_holds_through_the_binary() {
    let questions: Vec<Value> = TABLE
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let answers = eval(TABLE.to_owned());
    assert_eq!(answers.len(), questions.len());
    for (question, answer) in questions.iter().zip(&answers) {
        assert_eq!(answer["id"], question["id"]);
        let expected = &question["expect"];
        assert_eq!(answer["result"], expected["result"], "{question}");
        for place in ["line", "column"] {
            assert_eq!(
                answer["error"][place], expected["error"][place],
                "{question}"
            );
        }
    }
}

#[test]
fn ten_thousand_lines_take_less_than_a_second() {
    let lines: String = TABLE
        .lines()
        .cycle()
        .take(10_000)
        .flat_map(|l| [l, "\n"])
        .collect();
    let started = Instant::now();
    assert_eq!(eval(lines).len(), 10_000);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_route_answers_with_endpoint_and_source_and_bad_lines_do_not_stop_the_rest() {
    let lines = [
        r#"{"id":1,"kind":"route","expression":"FROM /messages/* INTO $upstream"}"#,
        "garbage",
        r#"{"id":3,"kind":"route","expression":"FROM /messages/* INTO $upstream WHERE a='b'"}"#,
        r#"{"id":4,"kind":"condition","expression":"$body.a = 1","message":null}"#,
    ];
    let answers = eval(lines.join("\n"));
    assert_eq!(answers[0]["result"], true);
    assert_eq!(answers[0]["endpoint"], "$upstream");
    assert_eq!(answers[0]["source"], "/messages/*");
    assert!(answers[1]["error"]["message"].is_string());
    assert_eq!(answers[2]["error"]["column"], 33);
    assert_eq!(answers[3]["result"], false);
}

/// A manifest around the text of `routes`, which starts at line 4.
fn manifest(routes: &str) -> String {
    format!(
        "{{\"modulesContent\":{{\n\"$edgeHub\":{{\"properties.desired\":{{\n\
         \"schemaVersion\":\"1.1\",\"routes\":\n{routes},\n\
         \"storeAndForwardConfiguration\":{{\"timeToLiveSecs\":7200}}}}}}}}}}"
    )
}

#[test]
fn broken_manifests_say_where_and_what() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.json");
    let input = r#"INTO BrokeredEndpoint(\"/modules/b/inputs/i\")"#;
    let cases = [
        // The route's text starts after `{"r":"`, in column 7.
        (
            manifest(r#"{"r":"FORM /messages/* INTO $upstream"}"#),
            "4:7",
            "FROM",
        ),
        (
            manifest(&format!(
                r#"{{"r":"FROM /messages/* WHERE temp > 30 {input}"}}"#
            )),
            "4:37",
            "as_number",
        ),
        (
            manifest(&format!(
                r#"{{"r":"FROM /messages/* WHERE temp == '30' {input}"}}"#
            )),
            "4:35",
            "=",
        ),
        (
            manifest(r#"{"r":"FROM /messages/* INTO $upstream WHERE a = 'b'"}"#),
            "4:39",
            "WHERE",
        ),
        (
            manifest(&format!(
                r#"{{"r":"FROM /messages/* WHERE starts_wiht(a, 'b') {input}"}}"#
            )),
            "4:30",
            "starts_with",
        ),
        (
            manifest(&format!(
                r#"{{"r":"FROM /messages/* WHERE a = 'b {input}"}}"#
            )),
            "4:34",
            "'",
        ),
        (
            manifest(r#"{"r":"FROM /messages/* INTO $cloud"}"#),
            "4:29",
            "$upstream",
        ),
        (
            manifest(r#"{"r":{"route":"FROM /messages/* INTO $upstream","priority":10}}"#),
            "4:60",
            "priority",
        ),
        (
            manifest(r#"{"a.b":"FROM /messages/* INTO $upstream"}"#),
            "4:2",
            "a.b",
        ),
        (
            manifest(r#"{"r":"FROM /messages/* INTO $upstream"}"#).replace("1.1", "2.0"),
            "3:17",
            "2.0",
        ),
        (
            manifest(r#"{"r":"FROM /messages/* INTO $upstream""#),
            "5:",
            "",
        ),
        (
            manifest(&format!(
                r#"{{"r":"FROM /messages/* WHERE a = \"b\" AND c > 3 {input}"}}"#
            )),
            "4:48",
            "as_number",
        ),
    ];
    for (text, place, word) in cases {
        replace(&path, &text);
        let output = edgehub(dir.path(), &["check", "--manifest", "manifest.json"]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}\n{errors}");
        let line = errors
            .lines()
            .find(|line| line.contains(" error: "))
            .unwrap_or_default();
        let expected = format!("manifest.json:{place}");
        assert!(
            line.starts_with(&expected),
            "{text}\nexpected {expected}, got\n{errors}"
        );
        assert!(line.contains(word), "{word} is not in\n{errors}");
    }
}

#[test]
fn all_errors_of_all_routes_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let routes = r#"{"one":"FROM /messages/* INTO nowhere",
"two":"FROM /messages/* WHERE INTO","good":"FROM /messages/* INTO $upstream",
"three":"FROM messages INTO $upstream"}"#;
    replace(&dir.path().join("manifest.json"), &manifest(routes));
    let output = edgehub(dir.path(), &["check", "--manifest", "manifest.json"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    for (name, line) in [("one", 4), ("two", 5), ("three", 6)] {
        let found = errors
            .lines()
            .any(|text| text.starts_with(&format!("manifest.json:{line}:")) && text.contains(name));
        assert!(found, "{name} is not in\n{errors}");
    }
    assert!(!errors.contains("good"), "{errors}");
}

/// Explains a message to one route: whether it matches, and all that is said about it.
fn explain(route: &str, message: &Value) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let text = manifest(&json!({ "r": route }).to_string());
    fs::write(dir.path().join("manifest.json"), text).unwrap();
    let message = message.to_string();
    let args = [
        "routes",
        "explain",
        "--manifest",
        "manifest.json",
        "--message",
        &message,
    ];
    let output = edgehub(dir.path(), &[&args[..], &["--json"]].concat());
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = String::from_utf8(edgehub(dir.path(), &args).stdout).unwrap();
    (line["matched"].as_bool().unwrap(), text)
}

const FROM_O: &str = "/messages/modules/sensor/outputs/o";

/// Route, message, whether it matches, and words that the explanation must have.
fn scenarios() -> Vec<(&'static str, Value, bool, &'static [&'static str])> {
    let json_body = |body: &str| {
        json!({ "source": FROM_O, "body": body,
            "contentType": "application/json", "contentEncoding": "utf-8" })
    };
    let with = |name: &str, value: &str| json!({ "source": FROM_O, "properties": { name: value } });
    vec![
        (
            "FROM /messages/* WHERE $body.t > 30 INTO $upstream",
            json!({ "source": FROM_O, "body": "{\"t\":31}" }),
            false,
            &["content type missing", "application/json", "undefined"],
        ),
        (
            "FROM /messages/* WHERE $body.t > 30 INTO $upstream",
            json!({ "source": FROM_O, "body": "{\"t\":31}", "contentType": "application/json" }),
            false,
            &["content encoding missing", "utf-8"],
        ),
        (
            "FROM /messages/* WHERE $body.t > 30 INTO $upstream",
            json!({ "source": FROM_O, "body": "{\"t\":31}", "contentType": "text/plain",
                "contentEncoding": "utf-8" }),
            false,
            &["text/plain", "application/json"],
        ),
        (
            "FROM /messages/* WHERE $body.t > 30 INTO $upstream",
            json_body("not json"),
            false,
            &["JSON"],
        ),
        (
            "FROM /messages/* WHERE $body.T = 31 INTO $upstream",
            json_body("{\"t\":31}"),
            false,
            &["'t'"],
        ),
        (
            "FROM /messages/* WHERE $body.t > 30 INTO $upstream",
            json_body("{\"t\":20}"),
            false,
            &["20"],
        ),
        (
            "FROM /messages/* WHERE temp = '30' INTO $upstream",
            with("Temp", "30"),
            true,
            &["matches"],
        ),
        (
            "FROM /messages/* WHERE unit = 'C' INTO $upstream",
            with("unit", "c"),
            false,
            &["'c'"],
        ),
        (
            "FROM /messages/* WHERE as_number(t) > 30 INTO $upstream",
            with("t", "hot"),
            false,
            &["not a number"],
        ),
        (
            "FROM /messages/* WHERE temp > '30' INTO $upstream",
            with("tmp", "31"),
            false,
            &["temp", "missing"],
        ),
        (
            "FROM /messages/modules/sensro/* INTO $upstream",
            json!({ "source": FROM_O }),
            false,
            &["sensor", "sensro"],
        ),
        (
            "FROM /messages/modules/sensor/outputs/o INTO $upstream",
            json!({ "source": "/messages/modules/sensor" }),
            false,
            &["named no output", "'o'"],
        ),
        (
            "FROM /messages/modules/sensor/outputs/out INTO $upstream",
            json!({ "source": FROM_O }),
            false,
            &["'out'", "'o'"],
        ),
        (
            "FROM /messages/events INTO $upstream",
            json!({ "source": "/messages" }),
            false,
            &["matches nothing"],
        ),
        (
            "FROM /messages/modules/sen* INTO $upstream",
            json!({ "source": FROM_O }),
            false,
            &["no prefix wildcard"],
        ),
        (
            "FROM /messages/modules/* INTO $upstream",
            json!({ "source": "/messages" }),
            false,
            &["from a device"],
        ),
        (
            "FROM /messages/* WHERE NOT IS_DEFINED($connectionModuleId) INTO $upstream",
            json!({ "source": FROM_O, "systemProperties": { "connectionModuleId": "sensor" } }),
            false,
            &["connectionModuleId"],
        ),
        (
            "FROM /messages/* WHERE a = '1' AND (b = '2' OR c = '3') INTO $upstream",
            json!({ "source": FROM_O, "properties": { "a": "1", "b": "x", "c": "y" } }),
            false,
            &["'x'", "'y'"],
        ),
        (
            "FROM /twinChangeNotifications INTO $upstream",
            json!({ "source": FROM_O }),
            false,
            &["twin"],
        ),
        (
            "FROM /messages/* WHERE $correlationId = '7' INTO $upstream",
            json!({ "source": FROM_O, "systemProperties": { "cid": "7" } }),
            true,
            &["$upstream", "wins"],
        ),
        (
            "FROM /messages/* WHERE is_null(gone) INTO $upstream",
            json!({ "source": FROM_O }),
            false,
            &["gone"],
        ),
    ]
}

#[test]
fn explain_says_why_a_message_is_not_routed() {
    for (route, message, matched, words) in scenarios() {
        let (found, text) = explain(route, &message);
        assert_eq!(found, matched, "{route}\n{message}\n{text}");
        for word in words {
            assert!(
                text.contains(word),
                "'{word}' is not in\n{text}\n{route}\n{message}"
            );
        }
    }
}

#[test]
fn explain_says_which_route_and_priority_win() {
    let dir = tempfile::tempdir().unwrap();
    let input = r#"INTO BrokeredEndpoint(\"/modules/b/inputs/i\")"#;
    let routes = format!(
        r#"{{"bulk":"FROM /messages/* {input}",
            "urgent":{{"route":"FROM /messages/* WHERE a = '1' {input}","priority":0}}}}"#
    );
    fs::write(dir.path().join("manifest.json"), manifest(&routes)).unwrap();
    let message = json!({ "source": FROM_O, "properties": { "a": "1" } }).to_string();
    let args = [
        "routes",
        "explain",
        "--manifest",
        "manifest.json",
        "--message",
        &message,
    ];
    let text = String::from_utf8(edgehub(dir.path(), &args).stdout).unwrap();
    assert!(
        text.contains("route 'urgent' matches: to b/i, priority 0, which wins"),
        "{text}"
    );
    assert!(
        text.contains("route 'bulk' matches: to b/i, priority 2000000000"),
        "{text}"
    );
    assert_eq!(text.matches("wins").count(), 1, "{text}");
}

const KEPT: &str = r#""kept":"FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/kept\")""#;
const GONE: &str = r#""gone":"FROM /messages/modules/a/outputs/y INTO BrokeredEndpoint(\"/modules/b/inputs/gone\")""#;

fn hits(hub: &common::Hub, route: &str) -> Option<u64> {
    let status = hub.status();
    let routes = status["routes"].as_array().unwrap().clone();
    let found = routes.into_iter().find(|row| row["name"] == route)?;
    found["hits"].as_u64()
}

#[tokio::test]
async fn a_removed_routes_queue_waits_and_unchanged_routes_keep_their_counters() {
    let both = format!("{{{KEPT},{GONE}}}");
    let setup = Setup::new(&both, &["a", "b"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "y", ""), b"waits").await;
    publish(&mut a, &output("a", "x", ""), b"first").await;
    setup.write_manifest(&format!("{{{KEPT}}}"), &["a", "b"], 7200);
    hub.until("the route is gone", |hub| hits(hub, "gone").is_none());
    assert_eq!(hits(&hub, "kept"), Some(1));
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    assert_eq!(
        message(&mut b).await,
        ("kept".to_owned(), b"first".to_vec())
    );
    publish(&mut a, &output("a", "x", ""), b"second").await;
    assert_eq!(
        message(&mut b).await,
        ("kept".to_owned(), b"second".to_vec())
    );
    setup.write_manifest(&both, &["a", "b"], 7200);
    assert_eq!(
        message(&mut b).await,
        ("gone".to_owned(), b"waits".to_vec())
    );
    assert_eq!(hits(&hub, "kept"), Some(2));
    assert_eq!(hits(&hub, "gone"), Some(0));
}
