//! Errors with their hints, warnings, limits, and the table of routes.

use std::sync::Arc;

use super::messages::Message;
use crate::message::{Endpoint, Priority, Target};
use crate::routes::{Condition, EXPRESSION_DEPTH_MAX, Outcome, Route, RouteTable, TEXT_BYTES_MAX};

fn compile(text: &str) -> Route {
    Route::compile("r", text, Priority::DEFAULT, None).unwrap()
}

fn errors(text: &str) -> Vec<String> {
    let errors = Route::compile("r", text, Priority::DEFAULT, None).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn errors_carry_hints() {
    for (condition, hint) in [
        (
            "temp > 30",
            "write as_number(temp) for a number, '30' for a text",
        ),
        ("'30' > 30", "write the number without quotes"),
        ("a == 'x'", "one `=`"),
        ("a = 'x' && b = 'y'", "write AND"),
        ("a = 'x' | b = 'y'", "write OR"),
        ("startswith(a, 'x')", "did you mean starts_with?"),
        ("nonsense_here(a)", "functions are abs, "),
        ("a = null", "write is_null(a)"),
        ("a = undefined", "write is_defined(a)"),
        ("a = true", "write 'true' in quotes"),
        ("NOT a = 'x'", "NOT binds tightly"),
        ("a -1 = 'x'", "blanks on both sides"),
        ("a = 'x' adn b = 'y'", "did you mean AND?"),
        ("a IN ('x')", "write a = 'x' OR"),
        ("a LIKE 'x%'", "starts_with"),
        ("a[0] = 'x'", "body path only"),
        ("a = 'x", "close it with '"),
        ("(a ?? 'x' = 'y')", "use parentheses"),
        ("- $body.a = 1", "write as_number($body.a)"),
        ("true AND $body.a", "write $body.a = true"),
        ("length(5) = 1", "in quotes"),
        ("abs(a) = 1", "write as_number(a)"),
        ("{a} = 'x'", "system property or a body path"),
        ("a = 'b\\n'", "the escapes are"),
        ("twin_change_includes('a')", "leave the function out"),
    ] {
        let found = errors(&format!("FROM /* WHERE {condition} INTO $upstream")).join("\n");
        assert!(found.contains(hint), "{condition}: {found}\n lacks {hint}");
    }
    for (text, hint) in [
        (
            "FROM /* INTO $upstream WHERE a = 'x'",
            "WHERE must stand before INTO",
        ),
        ("FROM /* INTO $upstream, $upstream", "one route per sink"),
        ("FROM /* INTO upstream", "write $upstream"),
        ("FROM /* INTO $upstrem", "did you mean $upstream?"),
        (
            "FROM /* INTO BrokerEndpoint('/modules/m/inputs/i')",
            "did you mean BrokeredEndpoint?",
        ),
        ("FROM messages/* INTO $upstream", "write /messages/*"),
        ("FORM /* INTO $upstream", "did you mean FROM?"),
        (
            "FROM /* INTO BrokeredEndpoint('m/i')",
            "/modules/{module}/inputs/{input}",
        ),
    ] {
        let found = errors(text).join("\n");
        assert!(found.contains(hint), "{text}: {found}\n lacks {hint}");
    }
}

#[test]
fn all_errors_are_found_at_once() {
    let found = errors("FRM /* WERE a > 5 AND x == 'y' AND lenght(b) = 1 INTO upstream WHERE c");
    let places: Vec<_> = found
        .iter()
        .map(|error| error.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        ["1:1", "1:8", "1:17", "1:25", "1:36", "1:55"],
        "{found:#?}"
    );
}

#[test]
fn one_mistake_is_one_error() {
    for text in [
        "FROM /* WHERE a = 'x INTO $upstream",
        "FROM /* WHERE a = 'x' /* why INTO $upstream",
        "FROM /* WHERE a = 'x' INOT $upstream",
        "FROM /* WHERE a == 'x' INTO $upstream",
        "FROM /* WHERE abs(,1) = 1 INTO $upstream",
        "FROM /* WHERE a & b INTO $upstream",
        "FROM /* WHERE (a = 'x' AND b = 5) OR NOT (c = 'x') INTO $upstream",
        "FROM /* WHERE abs(nosuch(1)) = 'x' OR b = 'x' INTO $upstream",
        "FROM /* INTO $upstream WHERE a = 5 AND (",
    ] {
        assert_eq!(errors(text).len(), 1, "{text}: {:#?}", errors(text));
    }
}

#[test]
fn legal_texts_that_are_not_meant_are_warned_of() {
    for (text, warning) in [
        ("FROM /messages/events INTO $upstream", "matches nothing"),
        (
            "FROM /messages/modules/temp* INTO $upstream",
            "no prefix wildcard",
        ),
        (
            "FROM /messages/modules/*/outputs/o INTO $upstream",
            "in the middle",
        ),
        ("FROM /mesages/* INTO $upstream", "did you mean `messages`?"),
        (
            "FROM /devicelifecycleevents INTO $upstream",
            "the cloud has this source",
        ),
        (
            "FROM /* WHERE a = on INTO $upstream",
            "write 'on' in quotes",
        ),
        (
            "FROM /* WHERE a = 'x'||'y' INTO $upstream",
            "put blanks around operators",
        ),
        ("FROM /* WHERE a = ‘x’ INTO $upstream", "curly quotes"),
        (
            "FROM /* WHERE a = TRUE INTO $upstream",
            "write `true` in lower case",
        ),
        (
            "FROM /* WHERE $conectionModuleId = 'x' INTO $upstream",
            "$connectionModuleId?",
        ),
        (
            "FROM /* WHERE $body = 'x' INTO $upstream",
            "name a member of the body",
        ),
        ("FROM /* WHERE a INTO $upstream", "never true"),
        ("FROM /* WHERE INTO $upstream", "leave WHERE out"),
        (
            "FROM /* INTO BrokeredEndpoint('/a/b/c/d')",
            "is not /modules/",
        ),
    ] {
        let route = compile(text);
        let found: Vec<_> = route.warnings().iter().map(ToString::to_string).collect();
        assert!(found.join("\n").contains(warning), "{text}: {found:?}");
    }
    for text in [
        "FROM /* INTO $upstream",
        "FROM /messages/* WHERE a = 'x' INTO $upstream",
        "FROM /messages/modules/* INTO $upstream",
        "FROM /messages/modules/m/outputs/* INTO BrokeredEndpoint('/modules/m/inputs/i')",
        "FROM /twinChangeNotifications INTO $upstream",
    ] {
        assert_eq!(compile(text).warnings(), [], "{text}");
    }
}

#[test]
fn limits_hold_and_the_stack_does_too() {
    let long = format!(
        "FROM /* WHERE a = '{}' INTO $upstream",
        "x".repeat(TEXT_BYTES_MAX)
    );
    assert!(errors(&long)[0].contains("bytes"));
    let text = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
    assert!(Condition::compile(&text(EXPRESSION_DEPTH_MAX - 1)).is_ok());
    let errors = Condition::compile(&text(EXPRESSION_DEPTH_MAX)).unwrap_err();
    assert!(errors[0].message.contains("nested deeper"));
    assert_eq!(errors.len(), 1);
    for piece in [
        "(", "NOT ", "- ", "abs(", "{", "1 = ", "a AND ", "'x' || ", "1 + ", "a ?? ",
    ] {
        let text = piece.repeat(TEXT_BYTES_MAX / piece.len() - 2);
        let _ = Condition::compile(&text);
        let _ = Condition::compile(&format!("{text}'x'"));
        let _ = Condition::compile(&format!("{text}1"));
    }
    let chain = format!("{}true", "true = ".repeat(2_000));
    let condition = Condition::compile(&chain).unwrap();
    assert_eq!(
        condition.evaluate(&Message::with(&[]).view()),
        Outcome::True
    );
}

fn route(name: &str, text: &str, priority: Option<u64>, ttl: Option<u32>) -> Arc<Route> {
    let priority = priority
        .and_then(Priority::new)
        .unwrap_or(Priority::DEFAULT);
    Arc::new(Route::compile(name, text, priority, ttl).unwrap())
}

fn targets(table: &RouteTable, message: &Message) -> Vec<Target> {
    let mut targets = vec![Target {
        endpoint: 99,
        priority: Priority::DEFAULT,
        ttl_seconds: None,
    }];
    let candidates = table.candidates(&message.source);
    table.evaluate(&candidates, &message.view(), &mut targets);
    targets
}

#[test]
fn each_endpoint_gets_one_copy_with_the_most_urgent_priority() {
    let input = "INTO BrokeredEndpoint('/modules/m/inputs/i')";
    let table = RouteTable::new(vec![
        route("a", "FROM /messages/* INTO $upstream", None, Some(5)),
        route(
            "b",
            "FROM /* WHERE a = 'x' INTO $upstream",
            Some(3),
            Some(0),
        ),
        route(
            "c",
            "FROM /* WHERE a = 'x' INTO $UPSTREAM",
            Some(3),
            Some(7),
        ),
        route(
            "d",
            &format!("FROM /messages/modules/s/* {input}"),
            Some(0),
            None,
        ),
        route(
            "e",
            &format!("FROM /* WHERE a = 'y' {input}"),
            Some(1),
            None,
        ),
    ]);
    assert_eq!(table.endpoints().len(), 2);
    assert_eq!(table.endpoints()[0], Endpoint::Upstream);
    assert_eq!(table.endpoints()[1].to_string(), "m/i");
    let mut message = Message::from_module("S", None);
    assert_eq!(*table.candidates(&message.source), [0, 1, 2, 3, 4]);
    assert_eq!(*table.candidates("/messages/modules/other"), [0, 1, 2, 4]);
    assert_eq!(*table.candidates("/twinChangeNotifications/"), [1, 2, 4]);
    message.properties.set("a", Some("x"));
    let found = targets(&table, &message);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].priority, Priority::new(3).unwrap());
    assert_eq!(found[0].ttl_seconds, None, "a time to live of 0 is none");
    assert_eq!((found[1].endpoint, found[1].priority.index()), (1, 0));
    let counters = table.routes()[4].counters();
    assert_eq!(
        (counters.hits(), counters.misses(), counters.undefined()),
        (0, 1, 0)
    );
    let found = targets(&table, &Message::with(&[]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].ttl_seconds, Some(5));
    let counters = table.routes()[4].counters();
    assert_eq!(
        (counters.hits(), counters.misses(), counters.undefined()),
        (0, 1, 1)
    );
    assert_eq!(targets(&RouteTable::default(), &message), []);
}

#[test]
fn candidates_are_those_whose_source_matches() {
    let paths = [
        "/*",
        "/messages",
        "/messages/modules/*",
        "/messages/modules/a",
        "/a/*/b",
        "/messages/modules/a/outputs/o",
        "/messages/modules/é/*",
        "/twinChangeNotifications",
    ];
    let routes = paths
        .iter()
        .map(|path| route(path, &format!("FROM {path} INTO $upstream"), None, None))
        .collect();
    let table = RouteTable::new(routes);
    let long = format!("/messages/modules/{}", "a/".repeat(10_000));
    for source in [
        "/messages/",
        "/messages/modules/a/",
        "/messages/modules/A/outputs/O/",
        "/messages/modules/ab/",
        "/messages/modules/É/outputs/x/",
        "/twinchangenotifications",
        "",
        "/",
        "/a/*/b/",
        &long,
    ] {
        let found = table.candidates(source);
        for (index, route) in table.routes().iter().enumerate() {
            let expected = route.matches_source(source);
            assert_eq!(
                found.contains(&(index as u16)),
                expected,
                "{source} {}",
                route.name()
            );
        }
    }
}

#[test]
fn a_reload_keeps_the_counters_of_what_did_not_change() {
    let text = "FROM /* INTO $upstream";
    let old = RouteTable::new(vec![
        route("same", text, None, Some(5)),
        route("priority", text, Some(1), None),
        route("text", text, None, None),
        route("ttl", text, None, Some(1)),
        route("gone", text, None, None),
    ]);
    targets(&old, &Message::with(&[]));
    let mut new = RouteTable::new(vec![
        route("new", text, None, None),
        route("ttl", text, None, Some(2)),
        route("text", "FROM /messages INTO $upstream", None, None),
        route("priority", text, Some(2), None),
        route("same", text, None, Some(5)),
    ]);
    let diff = new.adopt(&old);
    assert_eq!(diff.added, ["new"]);
    assert_eq!(diff.removed, ["gone"]);
    assert_eq!(diff.changed, ["priority", "text", "ttl"]);
    assert_eq!(diff.unchanged, ["same"]);
    let hits: Vec<_> = new
        .routes()
        .iter()
        .map(|route| route.counters().hits())
        .collect();
    assert_eq!(hits, [0, 0, 0, 0, 1]);
    targets(&new, &Message::with(&[]));
    assert_eq!(
        old.routes()[0].counters().hits(),
        2,
        "the counters are shared"
    );
}
