//! Statements of `[[authorization]]`.

use super::*;
use crate::identity::rules::{Grant, Statement};

#[test]
fn rules_have_identities_operations_and_resources() {
    let section = "[[authorization]]\nallow = [{ operations = [\"mqtt:publsh\"], resource = [] }]\n\
                   [[authorization]]\nidentities = []\n\
                   deny = [{ operations = [\"mqtt:publish\"] }, 5]";
    assert_eq!(
        errors_below(section),
        [
            "8:1: `identities` is missing",
            "9:26: `operations` must be \"mqtt:connect\", \"mqtt:publish\" or \
             \"mqtt:subscribe\", not \"mqtt:publsh\" (did you mean `mqtt:publish`?)",
            "9:42: unknown key `resource` in `[authorization]` (did you mean `resources`?)",
            "11:14: `identities` is empty",
            "12:9: `resources` is missing",
            "12:44: `deny` must hold tables, not an integer",
        ]
    );
}

#[test]
fn statements_come_in_the_order_of_the_file() {
    let section = "[[authorization]]\nidentities = [\"edge-1/sensor\", \"{{iot:identity}}\"]\n\
                   allow = [{ operations = [\"mqtt:connect\"] },\n\
                            { operations = [\"mqtt:publish\"], \
                              resources = [\"a/{{mqtt:client_id}}/#\", \"b\"] }]\n\
                   [[authorization]]\nidentities = [\"user:bob\"]\n\
                   deny = [{ operations = [\"mqtt:subscribe\"], resources = [\"+/c\"] }]";
    let texts = |texts: &[&str]| texts.iter().map(|one| (*one).to_owned()).collect();
    let grant = |operation, resources| Grant {
        operations: vec![operation],
        resources: texts(resources),
    };
    let expected = [
        Statement {
            identities: texts(&["edge-1/sensor", "{{iot:identity}}"]),
            allow: vec![
                grant(Operation::Connect, &[]),
                grant(Operation::Publish, &["a/{{mqtt:client_id}}/#", "b"]),
            ],
            deny: Vec::new(),
        },
        Statement {
            identities: texts(&["user:bob"]),
            allow: Vec::new(),
            deny: vec![grant(Operation::Subscribe, &["+/c"])],
        },
    ];
    let config = config_below(section);
    assert_eq!(config.authorization, expected);
    for statement in config.authorization {
        assert_eq!(statement.check(), [""; 0]);
    }
}

#[test]
fn statements_are_checked_value_by_value() {
    let section = "[[authorization]]\nidentities = [\"a/b/c\", \"{{iot:device_id}}\"]\n\
                   alow = []\n\
                   [[authorization.allow]]\noperations = [\"mqtt:publish\"]\n\
                   resources = [\"ok/#\", \"no/#/a\", \"{{x}}\", \"$SYS/#\", 5]\n\
                   [[authorization.deny]]\noperations = []\nresources = [\"devices/#\"]";
    assert_eq!(
        errors_below(section),
        [
            "9:15: `identities` holds \"a/b/c\", which is no identity, such as DEVICE, \
             DEVICE/MODULE, user:NAME or cert:NAME",
            "9:24: `identities` holds \"{{iot:device_id}}\", which has an unknown variable: \
             there are {{iot:identity}} and {{anonymous}}",
            "10:1: unknown key `alow` in `[authorization]` (did you mean `allow`?)",
            "13:22: `resources` holds \"no/#/a\", which is no topic filter: \
             # is not the last level",
            "13:32: `resources` holds \"{{x}}\", which has an unknown variable {{x}}: \
             there are {{iot:identity}}, {{iot:device_id}}, {{iot:module_id}}, \
             {{mqtt:client_id}}, {{iot:this_device_id}}",
            "13:41: `resources` holds \"$SYS/#\", which is under $ or devices/, \
             which rules are not for",
            "13:51: `resources` must be an array of strings, not an integer",
            "15:14: `operations` is empty",
            "16:14: `resources` holds \"devices/#\", which is under $ or devices/, \
             which rules are not for",
        ]
    );
}
