//! `tests/routes_table.jsonl`: expressions with expected results, written from the facts.

use serde_json::{Value, json};

use super::messages::Message;
use crate::message::Priority;
use crate::routes::{Condition, Outcome, Route, RouteError};

const TABLE: &str = include_str!("../../../tests/routes_table.jsonl");

fn position(errors: &[RouteError]) -> Value {
    json!({"error": {"line": errors[0].line, "column": errors[0].column}})
}

fn evaluate(line: &Value) -> Value {
    let text = line["expression"].as_str().unwrap();
    let message = Message::from_line(line);
    if line["kind"] == "condition" {
        return match Condition::compile(text) {
            Ok(condition) => {
                json!({"result": condition.evaluate(&message.view()) == Outcome::True})
            }
            Err(errors) => position(&errors),
        };
    }
    match Route::compile("table", text, Priority::DEFAULT, None) {
        Ok(_) if line["message"].is_null() => json!({"result": true}),
        Ok(route) => json!({"result": route.matches(&message.view())}),
        Err(errors) => position(&errors),
    }
}

#[test]
fn every_line_of_the_table_holds() {
    let mut wrong = Vec::new();
    let mut ids = std::collections::HashSet::new();
    for text in TABLE.lines() {
        let line: Value = serde_json::from_str(text).unwrap();
        assert!(ids.insert(line["id"].to_string()), "twice: {text}");
        let found = evaluate(&line);
        if found != line["expect"] {
            wrong.push(format!("{text}\n   found {found}"));
        }
    }
    assert!(ids.len() >= 400, "only {} lines", ids.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_compiles_prints_as_text_that_compiles_and_prints_the_same() {
    for text in TABLE.lines() {
        let line: Value = serde_json::from_str(text).unwrap();
        let text = line["expression"].as_str().unwrap();
        let message = Message::from_line(&line);
        if line["kind"] == "condition" {
            let Ok(first) = Condition::compile(text) else {
                continue;
            };
            let printed = first.to_string();
            let second = Condition::compile(&printed).expect(&printed);
            assert_eq!(second.to_string(), printed, "{text}");
            let view = message.view();
            assert_eq!(second.evaluate(&view), first.evaluate(&view), "{text}");
        } else if let Ok(first) = Route::compile("r", text, Priority::DEFAULT, None) {
            let printed = first.to_string();
            let second = Route::compile("r", &printed, Priority::DEFAULT, None).expect(&printed);
            assert_eq!(second.to_string(), printed, "{text}");
            assert_eq!(
                second.matches(&message.view()),
                first.matches(&message.view())
            );
        }
    }
}
