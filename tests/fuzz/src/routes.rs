//! Any text as a route and as a condition, on any message; and any line of `routes eval`.
//!
//! An input is a text, an empty line, a source path, a property bag, and then the body.

use std::sync::Arc;

use edgehub::iothub::bag;
use edgehub::message::{Priority, Properties};
use edgehub::routes::{
    Condition, Explanation, Outcome, Reason, Route, RouteError, RouteTable, TEXT_BYTES_MAX, View,
    explain, explain_all, explain_condition, line,
};

const INPUT_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX;

/// Runs one input.
pub fn run(input: &[u8]) {
    let input = &input[..input.len().min(INPUT_BYTES_MAX)];
    let end = input.windows(2).position(|two| two == b"\n\n");
    let (text, message) = input.split_at(end.unwrap_or(input.len()));
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if text.starts_with('{') {
        let answer = line::answer(text);
        assert!(answer["result"].is_boolean() != answer["error"].is_object());
    }
    let mut parts = message
        .get(2..)
        .unwrap_or_default()
        .splitn(3, |byte| *byte == b'\n');
    let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (source, bag, body) = (part(), part(), part());
    let mut properties = Properties::default();
    let _ = bag::decode(&bag, &mut properties);
    let source = match &*source {
        "" => "/messages/modules/sensor/outputs/out/".to_owned(),
        _ => source,
    };
    let view = View {
        source: &source,
        properties: &properties,
        body: body.as_bytes(),
    };
    route(text, &view);
    condition(text, &view);
}

fn route(text: &str, view: &View<'_>) {
    let compile = |text: &str| Route::compile("route", text, Priority::DEFAULT, None);
    let route = match compile(text) {
        Ok(route) => route,
        Err(errors) => return places(text, &errors, true),
    };
    places(text, route.warnings(), false);
    let outcome = route.condition_outcome(view);
    let matches = route.matches_source(view.source) && outcome == Outcome::True;
    assert_eq!(route.matches(view), matches);
    let printed = route.to_string();
    if printed.len() <= TEXT_BYTES_MAX {
        let again = compile(&printed).unwrap_or_else(|errors| panic!("{printed}: {errors:?}"));
        assert_eq!(again.to_string(), printed);
        assert_eq!(again.endpoint(), route.endpoint());
        assert_eq!(again.condition_outcome(view), outcome, "{text}: {printed}");
        assert_eq!(
            again.matches_source(view.source),
            route.matches_source(view.source)
        );
    }
    let explanation = explain(&route, view);
    explained(text, &explanation, matches, outcome);
    let _ = explanation.to_string();
    let table = RouteTable::new(vec![Arc::new(route)]);
    let mut targets = Vec::new();
    table.evaluate(&table.candidates(view.source), view, &mut targets);
    assert_eq!(targets.len(), usize::from(matches));
    let all = explain_all(&table, view);
    assert!(all.len() == 1 && all[0].wins == matches);
}

fn explained(text: &str, explanation: &Explanation, matches: bool, outcome: Outcome) {
    assert_eq!(explanation.matched, matches);
    assert!(matches || !explanation.source_matched || outcome != Outcome::True);
    assert_eq!(
        explanation.source_reason.is_none(),
        explanation.source_matched
    );
    match explanation.condition {
        Some(own) => assert_eq!(own, outcome),
        None => assert_eq!(outcome, Outcome::True),
    }
    reasons(text, &explanation.reasons, outcome);
}

/// There is a reason exactly where a condition is not true, and it is about a part of the text.
fn reasons(text: &str, reasons: &[Reason], outcome: Outcome) {
    assert_eq!(
        reasons.is_empty(),
        outcome == Outcome::True,
        "{text}: {reasons:?}"
    );
    for reason in reasons {
        assert!(text.is_char_boundary(reason.offset), "{reason:?}");
        assert!(!reason.why.is_empty());
    }
}

fn condition(text: &str, view: &View<'_>) {
    let condition = match Condition::compile(text) {
        Ok(condition) => condition,
        Err(errors) => return places(text, &errors, true),
    };
    places(text, condition.warnings(), false);
    let outcome = condition.evaluate(view);
    assert_eq!(condition.evaluate(view), outcome);
    reasons(text, &explain_condition(&condition, view), outcome);
    let printed = condition.to_string();
    if printed.len() <= TEXT_BYTES_MAX {
        let again = Condition::compile(&printed);
        let again = again.unwrap_or_else(|errors| panic!("{printed}: {errors:?}"));
        assert_eq!(again.to_string(), printed);
        assert_eq!(again.evaluate(view), outcome, "{text}: {printed}");
    }
}

/// Findings have their place in the text; errors come in its order.
fn places(text: &str, findings: &[RouteError], are_errors: bool) {
    assert!(
        !are_errors || !findings.is_empty(),
        "{text}: refused without a word"
    );
    for finding in findings {
        let before = text.get(..finding.offset);
        let before = before.unwrap_or_else(|| panic!("{finding:?} is not in {text:?}"));
        let line = before.rsplit('\n').next().unwrap_or_default();
        assert_eq!(finding.line as usize, before.matches('\n').count() + 1);
        assert_eq!(finding.column as usize, line.chars().count() + 1);
    }
    assert!(!are_errors || findings.is_sorted_by_key(|finding| finding.offset));
}
