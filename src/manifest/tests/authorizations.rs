//! `mqttBroker`: statements, and what is passed over.

use super::*;
use crate::identity::rules::{Grant, Operation};

/// Statements that are kept, and what is said, of a section `mqttBroker` that starts in line 3.
fn broker(section: &str) -> (Vec<Statement>, Vec<String>) {
    let text = with_hub(&format!(
        "{{\"properties.desired.mqttBroker\": {section},\n\
         \"properties.desired.schemaVersion\": \"1.2\"}}"
    ));
    let (manifest, diagnostics) = parse(&text);
    (manifest.unwrap().authorizations, said(&diagnostics))
}

/// The same for the values of `authorizations`, from line 4.
fn statements(values: &str) -> (Vec<Statement>, Vec<String>) {
    broker(&format!("{{\"authorizations\": [\n{values}\n]}}"))
}

#[test]
fn statements_are_read_in_their_order() {
    let (read, said) = statements(
        r#"{"identities": ["{{iot:identity}}"], "deny": null,
 "allow": [{"operations": ["mqtt:connect"]},
  {"operations": ["mqtt:publish", "mqtt:subscribe"], "resources": ["a/{{iot:module_id}}/+"]}]},
{"identities": ["edge-1/sensor", "user:bob"],
 "deny": [{"operations": ["mqtt:connect"], "resources": []}]}"#,
    );
    assert_eq!(said, [""; 0]);
    let expected = [
        Statement {
            identities: vec!["{{iot:identity}}".to_owned()],
            allow: vec![
                Grant {
                    operations: vec![Operation::Connect],
                    resources: Vec::new(),
                },
                Grant {
                    operations: vec![Operation::Publish, Operation::Subscribe],
                    resources: vec!["a/{{iot:module_id}}/+".to_owned()],
                },
            ],
            deny: Vec::new(),
        },
        Statement {
            identities: vec!["edge-1/sensor".to_owned(), "user:bob".to_owned()],
            allow: Vec::new(),
            deny: vec![Grant {
                operations: vec![Operation::Connect],
                resources: Vec::new(),
            }],
        },
    ];
    assert_eq!(read, expected);
}

#[test]
fn a_broken_statement_costs_only_itself() {
    let missing = "{{iot:identity}}, {{iot:device_id}}, {{iot:module_id}}, \
                   {{mqtt:client_id}}, {{iot:this_device_id}}";
    let unknown = format!(
        "5:48: error: authorization 1: `resources` holds \"{{{{x}}}}\", \
         which has an unknown variable {{{{x}}}}: there are {missing}"
    );
    for (statement, expected) in [
        (
            "5",
            "4:1: error: authorization 1: `authorizations` must hold objects, not a number",
        ),
        ("{}", "4:1: error: authorization 1: `identities` is missing"),
        (
            r#"{"identities": []}"#,
            "4:16: error: authorization 1: `identities` is empty",
        ),
        (
            r#"{"identities": "d"}"#,
            "4:16: error: authorization 1: `identities` must be an array, not a string",
        ),
        (
            r#"{"identities": [7]}"#,
            "4:17: error: authorization 1: `identities` must hold strings, not a number",
        ),
        (
            r#"{"identities": ["a/b/c"]}"#,
            "4:17: error: authorization 1: `identities` holds \"a/b/c\", which is no identity, \
             such as DEVICE, DEVICE/MODULE, user:NAME or cert:NAME",
        ),
        (
            r#"{"identities": ["d"], "dney": [{"operations": ["mqtt:connect"]}]}"#,
            "4:23: error: authorization 1: unknown key `dney` (did you mean `deny`?)",
        ),
        (
            r#"{"identities": ["d"], "deny": [true]}"#,
            "4:32: error: authorization 1: `deny` must hold objects, not a boolean",
        ),
        (
            r#"{"identities": ["d"], "allow": [{}]}"#,
            "4:33: error: authorization 1: `operations` is missing",
        ),
        (
            r#"{"identities": ["d"], "allow": [{"operations": ["mqtt:publsh"]}]}"#,
            "4:49: error: authorization 1: `operations` has no \"mqtt:publsh\": there are \
             mqtt:connect, mqtt:publish, mqtt:subscribe (did you mean `mqtt:publish`?)",
        ),
        (
            r#"{"identities": ["d"], "allow": [{"operations": ["mqtt:publish"]}]}"#,
            "4:33: error: authorization 1: `resources` is missing",
        ),
        (
            r#"{"identities": ["d"], "allow": [
{"operations": ["mqtt:publish"], "resources": ["{{x}}"]}]}"#,
            &unknown,
        ),
        (
            r#"{"identities": ["d"], "allow": [
{"operations": ["mqtt:connect"], "resources": ["$SYS/#"]}]}"#,
            "5:48: error: authorization 1: `resources` holds \"$SYS/#\", \
             which is under $ or devices/, which rules are not for",
        ),
    ] {
        let good = r##"{"identities": ["good"]}"##;
        let (read, said) = statements(&format!("{statement},\n{good}"));
        assert_eq!(said, [expected], "{statement}");
        assert_eq!(read.len(), 1, "{statement}");
        assert_eq!(read[0].identities, ["good"]);
    }
}

#[test]
fn everything_wrong_in_statements_is_said_at_once() {
    let (read, said) = statements(
        r#"{"identities": [""], "x": 1,
"allow": [{"operations": ["publish"], "resources": ["a#"]}]},
{"identities": ["d"], "allow": {}}"#,
    );
    assert!(read.is_empty());
    let begins = [
        "4:17: error: authorization 1: `identities` holds \"\"",
        "4:22: error: authorization 1: unknown key `x`",
        "5:27: error: authorization 1: `operations` has no \"publish\"",
        "5:53: error: authorization 1: `resources` holds \"a#\"",
        "6:32: error: authorization 2: `allow` must be an array, not an object",
    ];
    assert_eq!(said.len(), begins.len(), "{said:#?}");
    for (said, begin) in said.iter().zip(begins) {
        assert!(said.starts_with(begin), "{said}\n{begin}");
    }
}

#[test]
fn the_rest_of_the_section_does_not_matter() {
    let said = |section| broker(section).1;
    let bridges = "3:47: warning: `mqttBroker.bridges` has no effect \
                   (`[upstream]` of the configuration leads to other brokers)";
    let bridged = r#"{"bridges": [{"endpoint": "$upstream", "settings": []}]}"#;
    assert!(
        said(bridged).iter().any(|one| one == bridges),
        "{:#?}",
        said(bridged)
    );
    for nothing in [
        "null",
        "{}",
        r#"{"bridges": null, "authorizations": null, "x": 1}"#,
    ] {
        assert_eq!(broker(nothing), (Vec::new(), Vec::new()), "{nothing}");
    }
    for (broken, expected) in [
        (
            "[]",
            "3:35: error: `mqttBroker` must be an object, not an array",
        ),
        (
            r#"{"authorizations": {}}"#,
            "3:54: error: `authorizations` must be an array, not an object",
        ),
    ] {
        let said = said(broken);
        assert!(said.iter().any(|one| one == expected), "{said:#?}");
    }
}
