mod authorizations;

use super::*;
use crate::diagnostic::Severity;

type Parsed = (Option<Manifest>, Vec<Diagnostic>);

fn parse(text: &str) -> Parsed {
    Manifest::parse(text, Path::new("m.json"))
}

/// Diagnostics as `line:column: severity: message (hint)`.
fn said(diagnostics: &[Diagnostic]) -> Vec<String> {
    let say = |one: &Diagnostic| {
        let hint = one.hint.as_ref().map(|hint| format!(" ({hint})"));
        let hint = hint.unwrap_or_default();
        format!(
            "{}:{}: {}: {}{hint}",
            one.line, one.column, one.severity, one.message
        )
    };
    diagnostics.iter().map(say).collect()
}

/// A manifest whose routes start in line 5.
fn with_routes(version: &str, routes: &str) -> String {
    format!(
        r#"{{"modulesContent": {{
"$edgeAgent": {{"properties.desired": {{"modules": {{}}}}}},
"$edgeHub": {{"properties.desired": {{
"schemaVersion": "{version}", "routes": {{
{routes}
}},
"storeAndForwardConfiguration": {{"timeToLiveSecs": 7200}}}}}}}}}}"#
    )
}

/// A manifest whose hub section is line 3.
fn with_hub(hub: &str) -> String {
    format!("{{\"modulesContent\": {{\n\"$edgeAgent\": {{}}, \"$edgeHub\":\n{hub}}}}}")
}

const WHOLE: &str = r#"{
  "id": "deployment-1",
  "content": {
    "modulesContent": {
      "$edgeAgent": {
        "properties.desired": {
          "schemaVersion": "1.1",
          "runtime": {"type": "docker"},
          "systemModules": {"edgeHub": {"env": {"A": {"value": 1}, "B": {"value": null}}}},
          "modules": {
            "sensor": {"version": "1.0", "env": {"N": {"value": 2.5}, "T": {"value": true}}},
            "filter": {"startupOrder": 2}
          }
        }
      },
      "$edgeHub": {
        "properties.desired": {
          "schemaVersion": "1.2.0",
          "routes": {
            "up": "FROM /messages/* INTO $upstream",
            "hot": {
              "route": "FROM /messages/modules/sensor/* WHERE temp > '30' INTO $upstream",
              "priority": 0,
              "timeToLiveSecs": 60
            },
            "plain": {"route": "FROM /* INTO $upstream", "timeToLiveSecs": 0, "priority": null}
          },
          "storeAndForwardConfiguration": {"timeToLiveSecs": 86400, "storeLimits": {}},
          "mqttBroker": {"authorizations": [{"identities": ["x"]}], "bridges": []}
        }
      },
      "camera": {"properties.desired": {"rate": 5, "nested": {"on": true}}},
      "quiet": {}
    }
  }
}"#;

#[test]
fn a_whole_document_is_read() {
    let (manifest, diagnostics) = parse(WHOLE);
    let manifest = manifest.unwrap();
    assert_eq!(manifest.schema_version, (1, 2));
    assert_eq!(manifest.ttl, Ttl::Seconds(86_400));
    assert_eq!(manifest.modules, ["camera", "filter", "quiet", "sensor"]);
    assert!(manifest.has_module("quiet") && !manifest.has_module("Quiet"));
    assert_eq!(manifest.desired.len(), 1);
    assert_eq!(manifest.desired["camera"]["nested"]["on"], true);
    let routes: Vec<_> = manifest
        .routes
        .iter()
        .map(|route| (route.name.as_str(), route.priority, route.ttl_seconds))
        .collect();
    let urgent = Priority::new(0).unwrap();
    assert_eq!(
        routes,
        [
            ("up", Priority::DEFAULT, None),
            ("hot", urgent, Some(60)),
            ("plain", Priority::DEFAULT, None),
        ]
    );
    assert_eq!(manifest.routes[0].text, "FROM /messages/* INTO $upstream");
    assert_eq!(manifest.authorizations[0].identities, ["x"]);
    assert_eq!(
        said(&diagnostics),
        ["29:80: warning: `mqttBroker.bridges` has no effect \
             (`[upstream]` of the configuration leads to other brokers)",]
    );
}

#[test]
fn places_in_a_route_are_places_in_the_file() {
    let text = with_routes("1.1", r#"  "é": "FROM \"/m\u00e9\" ?""#);
    let route = &parse(&text).0.unwrap().routes[0];
    assert_eq!(route.text, "FROM \"/mé\" ?");
    let place = |offset| {
        let position = route.locate(offset);
        (position.line, position.column)
    };
    assert_eq!(place(0), (5, 9));
    assert_eq!(place(5), (5, 14), "the escaped quote");
    assert_eq!(place(6), (5, 16));
    assert_eq!(place(8), (5, 18), "the escaped letter");
    assert_eq!(place(10), (5, 24), "what follows it");
    assert_eq!(place(route.text.len()), (5, 28), "the closing quote");
    assert_eq!(route.position(), Position { line: 5, column: 8 });
}

#[test]
fn a_broken_route_costs_only_itself() {
    for (route, expected) in [
        (
            r#"  "a.b": "FROM /* INTO $upstream""#,
            "5:3: error: \"a.b\" is not a route name \
             (at least one character, and none of . $ # and blank)",
        ),
        (
            r#""": "FROM /* INTO $upstream""#,
            "5:1: error: \"\" is not a route name \
             (at least one character, and none of . $ # and blank)",
        ),
        (r#""r": """#, "5:6: error: route `r` is empty"),
        (r#""r": null"#, "5:6: error: route `r` is empty"),
        (
            r#""r": 5"#,
            "5:6: error: route `r` must be a text or an object, not a number",
        ),
        (
            r#""r": ["x"]"#,
            "5:6: error: route `r` must be a text or an object, not an array",
        ),
        (r#""r": {}"#, "5:6: error: route `r` has no `route`"),
        (
            r#""r": {"route": 5}"#,
            "5:16: error: the text of route `r` must be a string, not a number",
        ),
        (
            r#""r": {"route": " "}"#,
            "5:16: error: the text of route `r` must be a string, not an empty one",
        ),
        (
            r#""r": {"route": "FROM", "priority": 10}"#,
            "5:36: error: `priority` of route `r` must be from 0 to 9, not 10",
        ),
        (
            r#""r": {"route": "FROM", "priority": "1"}"#,
            "5:36: error: `priority` of route `r` must be from 0 to 9, not \"1\"",
        ),
        (
            r#""r": {"route": "FROM", "priority": 1.5}"#,
            "5:36: error: `priority` of route `r` must be from 0 to 9, not 1.5",
        ),
        (
            r#""r": {"route": "FROM", "timeToLiveSecs": -1}"#,
            "5:42: error: `timeToLiveSecs` of route `r` must be from 0 to 4294967295, not -1",
        ),
        (
            r#""r": {"route": "FROM", "timeToLiveSecs": {}}"#,
            "5:42: error: `timeToLiveSecs` of route `r` must be from 0 to 4294967295, \
             not an object",
        ),
    ] {
        let text = with_routes(
            "1.1",
            &format!("{route},\n\"good\": \"FROM /* INTO $upstream\""),
        );
        let (manifest, diagnostics) = parse(&text);
        assert_eq!(said(&diagnostics), [expected]);
        let manifest = manifest.unwrap();
        assert_eq!(manifest.routes.len(), 1, "{route}");
        assert_eq!(manifest.routes[0].name, "good");
    }
}

#[test]
fn a_route_object_with_two_errors_says_both() {
    let route = r#""r": {"route": 1, "priority": 11, "timeToLiveSecs": "x", "prioirty": 1}"#;
    let (_, diagnostics) = parse(&with_routes("1.3", route));
    assert_eq!(
        said(&diagnostics),
        [
            "5:16: error: the text of route `r` must be a string, not a number",
            "5:31: error: `priority` of route `r` must be from 0 to 9, not 11",
            "5:53: error: `timeToLiveSecs` of route `r` must be from 0 to 4294967295, not \"x\"",
            "5:58: warning: unknown key `prioirty` in route `r` (did you mean `priority`?)",
        ]
    );
}

#[test]
fn the_largest_time_to_live_of_a_route_is_kept() {
    let route = r#""r": {"route": "FROM", "priority": 9, "timeToLiveSecs": 4294967295}"#;
    let manifest = parse(&with_routes("1.1", route)).0.unwrap();
    assert_eq!(manifest.routes[0].ttl_seconds, Some(u32::MAX));
    assert_eq!(manifest.routes[0].priority, Priority::new(9).unwrap());
}

#[test]
fn schema_one_zero_knows_text_routes_only() {
    let routes = r#""a": {"route": "FROM /* INTO $upstream"}, "b": "", "c": "FROM""#;
    let (manifest, diagnostics) = parse(&with_routes("1.0", routes));
    assert_eq!(
        said(&diagnostics),
        [
            "5:6: error: route `a` must be a text under schema version 1.0 \
             (set `schemaVersion` to \"1.1\")",
            "5:48: warning: route `b` is empty (it is skipped)",
        ]
    );
    assert_eq!(manifest.unwrap().routes[0].name, "c");
}

#[test]
fn schema_versions_are_one_zero_to_one_three() {
    for (version, expected) in [("1.0", 0), ("1.1.0", 1), ("1.2.17", 2), ("1.3", 3)] {
        let manifest = parse(&with_routes(version, "")).0.unwrap();
        assert_eq!(manifest.schema_version, (1, expected));
    }
    for version in [
        "0.1", "1", "2.0", "1.4", "", "1.", "1.1.x", "1.1.1.1", "+1.1", " 1.1", "1.-1",
    ] {
        let (manifest, diagnostics) = parse(&with_routes(version, ""));
        assert_eq!(manifest, None, "{version}");
        let expected =
            format!("4:18: error: `schemaVersion` must be \"1.0\" to \"1.3\", not \"{version}\"");
        assert_eq!(said(&diagnostics), [expected]);
    }
}

#[test]
fn a_broken_frame_refuses_the_manifest() {
    for (text, expected) in [
        (
            "[]",
            "1:1: error: the manifest must be an object, not an array",
        ),
        ("{}", "1:1: error: `modulesContent` is missing"),
        (
            " {\"moduleContent\": {}}",
            "1:2: error: `modulesContent` is missing (rename `moduleContent` to `modulesContent`)",
        ),
        (
            "{\"modulesContent\":\n null}",
            "2:2: error: `modulesContent` must be an object, not null",
        ),
        (
            "{\"content\": {\n\"modulesContent\": {\"$edgeAgent\": {}, \"$edgehub\": {}}}}",
            "2:19: error: `$edgeHub` is missing (rename `$edgehub` to `$edgeHub`)",
        ),
        (
            &with_hub("7"),
            "3:1: error: `$edgeHub` must be an object, not a number",
        ),
        (
            &with_hub("{}"),
            "3:1: error: `properties.desired` of `$edgeHub` is missing",
        ),
        (
            &with_hub("{\"properties.desired\": []}"),
            "3:24: error: `properties.desired` must be an object, not an array",
        ),
    ] {
        let (manifest, diagnostics) = parse(text);
        assert_eq!(manifest, None);
        let said = said(&diagnostics);
        assert!(said.iter().any(|one| one == expected), "{text}\n{said:#?}");
    }
}

#[test]
fn everything_missing_in_the_hub_section_is_said_at_once() {
    let (manifest, diagnostics) = parse(&with_hub("{\"properties.desired\": {}}"));
    assert_eq!(manifest, None);
    assert_eq!(
        said(&diagnostics),
        [
            "3:24: error: `schemaVersion` is missing",
            "3:24: error: `storeAndForwardConfiguration` is missing",
            "3:24: error: `routes` is missing (it may be empty: \"routes\": {})",
        ]
    );
    let hub = r#"{"properties.desired": {"schemaVersion": 1.1,
"routes": [], "storeAndForwardConfiguration": 5}}"#;
    assert_eq!(
        said(&parse(&with_hub(hub)).1),
        [
            "3:42: error: `schemaVersion` must be \"1.0\" to \"1.3\", not 1.1",
            "4:11: error: `routes` must be an object, not an array",
            "4:47: error: `storeAndForwardConfiguration` must be an object, not a number",
        ]
    );
}

#[test]
fn the_time_to_live_is_seconds_or_for_ever() {
    let ttl = |seconds: &str| {
        let text = with_routes("1.1", "").replace("7200", seconds);
        let (manifest, diagnostics) = parse(&text);
        (manifest.map(|manifest| manifest.ttl), said(&diagnostics))
    };
    assert_eq!(ttl("1"), (Some(Ttl::Seconds(1)), vec![]));
    assert_eq!(ttl("-1"), (Some(Ttl::Forever), vec![]));
    assert_eq!(ttl("4294967295"), (Some(Ttl::Seconds(u32::MAX)), vec![]));
    let expired = "7:52: warning: `timeToLiveSecs` is 0: messages expire at once \
                   (a negative number keeps them until they are delivered)";
    assert_eq!(ttl("0"), (Some(Ttl::Seconds(0)), vec![expired.to_owned()]));
    for broken in ["\"7200\"", "1.5", "null", "4294967296", "[1]"] {
        let (ttl, said) = ttl(broken);
        assert_eq!(ttl, None, "{broken}");
        assert!(said[0].starts_with("7:52: error: `timeToLiveSecs` must be a whole number"));
    }
    let text = with_routes("1.1", "").replace("\"timeToLiveSecs\": 7200", "");
    let (manifest, diagnostics) = parse(&text);
    assert_eq!(manifest.unwrap().ttl, Ttl::DEFAULT);
    let expected = "7:33: warning: `timeToLiveSecs` is missing (7200 s is assumed)";
    assert_eq!(said(&diagnostics), [expected]);
}

#[test]
fn layers_are_read_on_their_own_and_over_a_base() {
    let layer = r#"{"content": {"modulesContent": {
"$edgeAgent": {"properties.desired.modules.filter": {"type": "docker"}},
"$edgeHub": {"properties.desired.routes.up": "FROM /* INTO $upstream",
  "properties.desired.routes.hot": {"route": "FROM /messages/* INTO $upstream", "priority": 1}},
"camera": {"properties.desired.limits.rate": 5, "properties.desired.limits.on": true}}}}"#;
    let (manifest, diagnostics) = parse(layer);
    let manifest = manifest.unwrap();
    assert_eq!(manifest.modules, ["camera", "filter"]);
    assert_eq!(manifest.routes.len(), 2);
    assert_eq!(
        (manifest.schema_version, manifest.ttl),
        ((1, 1), Ttl::DEFAULT)
    );
    let limits = serde_json::json!({"rate": 5, "on": true});
    assert_eq!(manifest.desired["camera"]["limits"], limits);
    let expected = "3:13: warning: a layered deployment without its base \
                    (schema version 1.1 and a time to live of 7200 s are assumed)";
    assert_eq!(said(&diagnostics), [expected]);

    let text = with_hub(
        r#"{"properties.desired": {"schemaVersion": "1.1", "routes": {"up": "OLD", "b": "B"},
"storeAndForwardConfiguration": {"timeToLiveSecs": 5}},
"properties.desired.routes.up": "NEW", "properties.desired.routes.c.d": "X",
"properties.desired.storeAndForwardConfiguration.timeToLiveSecs": 6}"#,
    );
    let (manifest, diagnostics) = parse(&text);
    let manifest = manifest.unwrap();
    let texts: Vec<_> = manifest
        .routes
        .iter()
        .map(|route| route.text.as_str())
        .collect();
    assert_eq!(texts, ["NEW", "B"]);
    assert_eq!(manifest.ttl, Ttl::Seconds(6));
    assert_eq!(
        said(&diagnostics),
        [
            "5:1: warning: route `up` replaces one above",
            "5:40: error: \"c.d\" is not a route name \
             (at least one character, and none of . $ # and blank)",
        ]
    );
}

#[test]
fn of_doubles_the_last_counts() {
    let routes = "\"r\": \"ONE\",\n \"r\": \"TWO\"";
    let (manifest, diagnostics) = parse(&with_routes("1.1", routes));
    let routes = manifest.unwrap().routes;
    assert_eq!((routes.len(), routes[0].text.as_str()), (1, "TWO"));
    let expected = "6:2: warning: `r` is here twice (the last one counts)";
    assert_eq!(said(&diagnostics), [expected]);
}

#[test]
fn broken_modules_cost_only_themselves() {
    let text = WHOLE
        .replace(
            "\"quiet\": {}",
            "\"a/b\": {}, \"odd\": {\"properties.desired\": 5}",
        )
        .replace("\"filter\": {", "\"\": {");
    let (manifest, diagnostics) = parse(&text);
    let manifest = manifest.unwrap();
    assert_eq!(manifest.modules, ["camera", "odd", "sensor"]);
    assert!(!manifest.desired.contains_key("odd"));
    let errors: Vec<_> = diagnostics
        .iter()
        .filter(|one| one.severity == Severity::Error)
        .map(|one| (one.line, one.column, one.message.as_str()))
        .collect();
    assert_eq!(
        errors,
        [
            (12, 13, "\"\" is not a module name"),
            (33, 7, "\"a/b\" is not a module name"),
            (33, 48, "desired properties of `odd` must be an object"),
        ]
    );
}

#[test]
fn an_absent_agent_is_a_warning() {
    let text = with_routes("1.1", "").replace("$edgeAgent", "agent");
    let (manifest, diagnostics) = parse(&text);
    assert_eq!(manifest.unwrap().modules, ["agent"]);
    let expected = "1:20: warning: `$edgeAgent` is missing \
                    (the hub runs without it; other tools want it)";
    assert_eq!(said(&diagnostics), [expected]);
}

#[test]
fn what_is_not_json_is_called_by_place() {
    for (text, line, column, message) in [
        ("", 1, 1, "invalid JSON: EOF while parsing a value"),
        ("{\n \"é\": <port>\n}", 2, 7, "invalid JSON: expected value"),
        ("{\"a\": 1,}", 1, 9, "invalid JSON: key must be a string"),
        ("{\"a\" 1}", 1, 6, "invalid JSON: expected `:`"),
        ("{} {}", 1, 4, "invalid JSON: trailing characters"),
        ("// c\n{}", 1, 1, "invalid JSON: expected value"),
    ] {
        let (manifest, diagnostics) = parse(text);
        assert_eq!(manifest, None);
        let expected = format!("{line}:{column}: error: {message}");
        assert_eq!(said(&diagnostics), [expected]);
    }
}

#[test]
fn a_byte_order_mark_and_line_ends_do_not_matter() {
    let text = format!(
        "\u{feff}{}",
        with_routes("1.0", "\"r\": 1").replace('\n', "\r\n")
    );
    let expected = "5:6: error: route `r` must be a text or an object, not a number";
    assert_eq!(said(&parse(&text).1), [expected]);
}

#[test]
fn a_file_too_large_is_refused_unread() {
    let text = " ".repeat(crate::limits::MANIFEST_BYTES_MAX + 1);
    let (manifest, diagnostics) = parse(&text);
    assert_eq!(manifest, None);
    assert_eq!(diagnostics[0].position(), Position::WHOLE_FILE);
}
