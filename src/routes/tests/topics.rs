//! Routes from and to plain topics.

use std::sync::Arc;

use super::messages::Message;
use crate::message::{Endpoint, Priority, Source};
use crate::routes::{Route, RouteTable, explain};

fn route(text: &str) -> Route {
    Route::compile("r", text, Priority::DEFAULT, None).unwrap()
}

fn errors(text: &str) -> String {
    let errors = Route::compile("r", text, Priority::DEFAULT, None).unwrap_err();
    let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
    all.join("\n")
}

const SOURCES: [(&str, &[&str], &[&str]); 7] = [
    ("/topics/#", &["a", "a/b", "/"], &["$x/a"]),
    ("/topics/a/+/c", &["a/b/c", "a//c"], &["a/b", "A/b/c"]),
    ("/Topics/a/#", &["a", "a/b"], &["b"]),
    ("/topics//a", &["/a"], &["a"]),
    ("/topics/a:b?[1]={x}", &["a:b?[1]={x}"], &["a"]),
    ("/topics/a/", &["a/"], &["a"]),
    ("/topics/grün", &["grün"], &["gr\u{fc}n/"]),
];

#[test]
fn a_source_is_a_topic_filter() {
    for (source, taken, others) in SOURCES {
        let route = route(&format!("FROM {source} INTO $upstream"));
        assert_eq!(route.warnings(), [], "{source}");
        for (names, expected) in [(taken, true), (others, false)] {
            for name in names {
                let source = Source::Topic(name).to_string();
                assert_eq!(
                    route.matches_source(&source),
                    expected,
                    "{} {name}",
                    route.text()
                );
            }
        }
    }
}

#[test]
fn plain_topics_and_messages_of_modules_stay_apart() {
    let sources = [
        "/*",
        "/messages/*",
        "/topics/#",
        "/topics/messages/#",
        "/topics/+",
    ];
    let routes = sources.map(|source| Arc::new(route(&format!("FROM {source} INTO $upstream"))));
    let table = RouteTable::new(routes.to_vec());
    for (source, expected) in [
        ("/messages/modules/a/outputs/b/", &[0, 1][..]),
        ("/messages/", &[0, 1]),
        ("/topics/messages/modules", &[2, 3]),
        ("/topics/a", &[2, 4]),
        ("/topics/$SYS/a", &[]),
    ] {
        assert_eq!(*table.candidates(source), *expected, "{source}");
    }
}

#[test]
fn a_sink_is_a_topic_with_places() {
    let text = "FROM /* INTO Topic(\"f/{module}/{output}/{property:line}\")";
    let route = route(text);
    let template = "f/{module}/{output}/{property:line}".into();
    assert_eq!(route.endpoint(), &Endpoint::Topic { template });
    assert_eq!(route.to_string(), format!("SELECT * {text}"));
    assert_eq!(
        route.endpoint().to_string(),
        "Topic(\"f/{module}/{output}/{property:line}\")"
    );
}

#[test]
fn errors_say_what_to_write() {
    for (text, place, expected) in [
        (
            "FROM /topics/ INTO $upstream",
            "1:6",
            "a topic filter is missing",
        ),
        (
            "FROM /topics/a/#/b INTO $upstream",
            "1:6",
            "is no topic filter",
        ),
        (
            "FROM /topics/a+ INTO $upstream",
            "1:6",
            "is no topic filter",
        ),
        ("FROM /topics/* INTO $upstream", "1:6", "write /topics/#"),
        (
            "FROM /topics/$SYS/# INTO $upstream",
            "1:6",
            "is no plain topic",
        ),
        (
            "FROM /topics/devices/# INTO $upstream",
            "1:6",
            "is no plain topic",
        ),
        ("FROM /* INTO Topic('a/#')", "1:20", "is no topic"),
        ("FROM /* INTO Topic('a/{modul}')", "1:20", "{module}"),
        ("FROM /* INTO Topic('$SYS/a')", "1:20", "belong to the hub"),
        (
            "FROM /* INTO Topic('devices/a')",
            "1:20",
            "belong to the hub",
        ),
        ("FROM /* INTO Topic()", "1:20", "a topic in quotes"),
        ("FROM /* INTO Topc('a')", "1:14", "did you mean Topic?"),
        ("FROM /* INTO nowhere", "1:14", "Topic(\"{topic}\")"),
    ] {
        let found = errors(text);
        assert!(found.starts_with(place), "{text}: {found}");
        assert!(found.contains(expected), "{text}: {found}");
    }
    let near = route("FROM /topic/a INTO $upstream");
    let warning = near.warnings()[0].to_string();
    assert!(warning.contains("did you mean `topics`?"), "{warning}");
}

#[test]
fn why_a_topic_is_not_taken() {
    let mut plain = Message::with(&[]);
    plain.source = Source::Topic("a/b").to_string();
    for (source, message, expected) in [
        (
            "/topics/a",
            &plain,
            "comes from topic 'a/b', the route takes 'a'",
        ),
        ("/*", &plain, "which only routes FROM /topics/"),
        ("/topics/#", &Message::with(&[]), "of plain topics only"),
    ] {
        let route = route(&format!("FROM {source} INTO $upstream"));
        let why = explain(&route, &message.view()).to_string();
        assert!(why.contains(expected), "{why}");
    }
}
