//! Scenarios from users' reports (facts §11 item 23): why was this message not routed?

use super::messages::Message;
use crate::message::{Priority, SystemProperty};
use crate::routes::{
    Condition, Outcome, Route, RouteTable, explain, explain_all, explain_condition,
};

fn route(text: &str) -> Route {
    Route::compile("r", text, Priority::DEFAULT, None).unwrap()
}

/// The explanation for a message that the route does not take.
fn why(text: &str, message: &Message) -> String {
    let explanation = explain(&route(text), &message.view());
    assert!(!explanation.matched, "{text}");
    explanation.to_string()
}

fn says(text: &str, message: &Message, expected: &str) {
    let found = why(text, message);
    assert!(found.contains(expected), "{found}\n  lacks: {expected}");
}

fn with(name: &str, value: &str) -> Message {
    Message::with(&[(name, Some(value))])
}

#[test]
fn sources_that_do_not_match_say_what_would() {
    let device = Message::with(&[]);
    let sensor = Message::from_module("sensor", Some("temperature"));
    let silent = Message::from_module("sensor", None);
    let mut twin = Message::with(&[]);
    twin.source = "/twinChangeNotifications/".to_owned();
    for (source, message, expected) in [
        (
            "/messages/events",
            &device,
            "device messages come from /messages/*",
        ),
        (
            "/messages/modules/sens*",
            &sensor,
            "`sens*` is no prefix wildcard",
        ),
        (
            "/messages/modules/*/outputs/x",
            &sensor,
            "`*` in the middle is no wildcard",
        ),
        (
            "/messages/modules/sensro/*",
            &sensor,
            "only module 'sensro', a similar name",
        ),
        (
            "/messages/modules/camera/*",
            &sensor,
            "the route takes only module 'camera'",
        ),
        (
            "/messages/modules/sensor/outputs/temp",
            &sensor,
            "only output 'temp'",
        ),
        (
            "/messages/modules/sensor/outputs/temperatur",
            &sensor,
            "'temperatur', a similar name",
        ),
        (
            "/messages/modules/sensor/outputs/temperature",
            &silent,
            "named no output",
        ),
        (
            "/messages/modules/sensor/outputs/*",
            &silent,
            "only named outputs",
        ),
        ("/messages/modules/*", &device, "messages of modules only"),
        ("/messages/*", &twin, "the message is a twin change"),
        (
            "/twinChangeNotifications",
            &sensor,
            "takes twin changes only",
        ),
        (
            "/messages/modules/sensor/temperature",
            &sensor,
            "outputs/temperature",
        ),
        (
            "/messages/modules/sensor/inputs/x",
            &sensor,
            "messages come from outputs",
        ),
    ] {
        says(&format!("FROM {source} INTO $upstream"), message, expected);
    }
}

#[test]
fn conditions_on_properties_say_which_part_is_not_true() {
    let temp = with("temp", "20");
    says(
        "FROM /* WHERE temp = '30' INTO $upstream",
        &temp,
        "property 'temp' is '20'",
    );
    says(
        "FROM /* WHERE tmep = '30' INTO $upstream",
        &temp,
        "property 'tmep' is missing, the message has 'temp'",
    );
    says(
        "FROM /* WHERE as_number(temp) > 3 INTO $upstream",
        &with("temp", "hot"),
        "not a number",
    );
    let text = "FROM /* WHERE temp = '20' AND level = 'high' INTO $upstream";
    let found = why(text, &temp);
    assert!(found.contains("`level = \"high\"` is undefined: property 'level' is missing"));
    assert!(!found.contains("'temp'"), "{found}");
    let found = why("FROM /* WHERE a = 'x' OR temp = '1' INTO $upstream", &temp);
    assert!(
        found.contains("'a' is missing") && found.contains("'temp' is '20'"),
        "{found}"
    );
    let found = why("FROM /* WHERE NOT (temp = '20') INTO $upstream", &temp);
    assert!(
        found.contains("`temp = \"20\"` is true: property 'temp' is '20'"),
        "{found}"
    );
    let null = Message::with(&[("temp", None)]);
    says(
        "FROM /* WHERE temp <> '1' INTO $upstream",
        &null,
        "property 'temp' has no value",
    );
    says(
        "FROM /* WHERE 'text' INTO $upstream",
        &temp,
        "a text alone is never true",
    );
    says(
        "FROM /* WHERE INTO $upstream",
        &temp,
        "the condition is empty",
    );
    says(
        "FROM /* WHERE 1 > 2 INTO $upstream",
        &temp,
        "it is always false",
    );
    says(
        "FROM /* WHERE $to = 'x' INTO $upstream",
        &temp,
        "system property $to is missing",
    );
    says(
        "FROM /* WHERE $twoo = 'x' INTO $upstream",
        &temp,
        "$twoo is not a system property",
    );
    says(
        "FROM /* WHERE $body = 'x' INTO $upstream",
        &temp,
        "name a member of the body",
    );
    says(
        "FROM /* WHERE 1 % 0 = 1 INTO $upstream",
        &temp,
        "division by 0",
    );
    let text = "FROM /* WHERE substring(temp, 9) = 'x' INTO $upstream";
    says(text, &temp, "`substring(temp, 9)` is out of range");
}

#[test]
fn conditions_on_the_body_say_why_it_is_not_known() {
    let text = "FROM /* WHERE $body.temp > 30 INTO $upstream";
    let mut message = Message::json(r#"{"temp":31}"#);
    assert!(explain(&route(text), &message.view()).matched);
    let mut properties = crate::message::Properties::default();
    std::mem::swap(&mut properties, &mut message.properties);
    says(text, &message, "content type missing");
    says(text, &message, "so $body.temp is undefined");
    message.system(
        SystemProperty::ContentType,
        "application/json; charset=utf-8",
    );
    says(text, &message, "not exactly 'application/json'");
    message.system(SystemProperty::ContentType, "application/json");
    says(text, &message, "content encoding missing");
    message.system(SystemProperty::ContentEncoding, "ascii");
    says(text, &message, "content encoding is 'ascii'");
    let case = "FROM /* WHERE $body.Temp = 31 INTO $upstream";
    let message = Message::json(r#"{"temp":31}"#);
    says(
        case,
        &message,
        "$body.Temp is not in the body, so it is null; the body has 'temp'",
    );
    says(case, &message, "case matters");
    let quoted = Message::json(r#"{"temp":"31"}"#);
    let equal = "FROM /* WHERE $body.temp = 31 INTO $upstream";
    says(
        equal,
        &quoted,
        "$body.temp is the text '31'; a text is never equal to a number",
    );
    says(text, &Message::json("[1]"), "the body is not a JSON object");
    says(
        text,
        &Message::json("{\"temp\":"),
        "the body is not JSON, at byte 8",
    );
    says(text, &Message::json(r#"{"temp":{}}"#), "it is an object");
    says(text, &Message::json(r#"{"temp":[]}"#), "it is an array");
    let date = Message::json(r#"{"temp":"2024-01-01T00:00:00Z"}"#);
    says(text, &date, "it looks like a date");
}

#[test]
fn explanations_are_structured() {
    let message = Message::with(&[]);
    let condition = Condition::compile("true AND  temp > '1'").unwrap();
    let reasons = explain_condition(&condition, &message.view());
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0].offset, 10);
    assert_eq!(reasons[0].expression, "temp > \"1\"");
    assert_eq!(reasons[0].outcome, Outcome::Undefined);
    let found = explain(&route("FROM /* INTO $upstream"), &message.view());
    assert!(found.matched && found.reasons.is_empty() && found.condition.is_none());
    assert_eq!(
        found.to_string(),
        "route 'r' matches: to $upstream, priority 2000000000"
    );
}

#[test]
fn of_several_routes_to_one_endpoint_the_most_urgent_wins() {
    let route = |name: &str, priority: u64, text: &str| {
        let priority = Priority::new(priority).unwrap();
        std::sync::Arc::new(Route::compile(name, text, priority, None).unwrap())
    };
    let table = RouteTable::new(vec![
        route("late", 5, "FROM /* INTO $upstream"),
        route("never", 0, "FROM /* WHERE false INTO $upstream"),
        route("first", 2, "FROM /* INTO $upstream"),
        route("second", 2, "FROM /* INTO $upstream"),
        route(
            "other",
            9,
            "FROM /* INTO BrokeredEndpoint('/modules/m/inputs/i')",
        ),
    ]);
    let found = explain_all(&table, &Message::with(&[]).view());
    let wins: Vec<_> = found.iter().filter(|found| found.wins).collect();
    assert_eq!(wins.len(), 2);
    assert_eq!((&*wins[0].route, &*wins[1].route), ("first", "other"));
    assert!(
        wins[0]
            .to_string()
            .ends_with("to $upstream, priority 2, which wins")
    );
    assert_eq!(
        table.routes()[0].counters().hits(),
        0,
        "explaining counts nothing"
    );
}

#[test]
fn twin_changes_say_what_was_not_reported() {
    let mut message = Message::with(&[]);
    message.source = "/twinChangeNotifications/".to_owned();
    message.body = b"{\"b\":1}".to_vec();
    let text = "FROM /twinChangeNotifications WHERE twin_change_includes('a') INTO $upstream";
    says(text, &message, "the reported change has no \"a\"");
}
