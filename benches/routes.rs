//! The routes language on the hot path: `cargo bench --bench routes`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use edgehub::message::{Priority, Properties, SystemProperty};
use edgehub::routes::{Condition, Route, RouteTable, View};

const SOURCE: &str = "/messages/modules/m/outputs/o/";

fn properties() -> Properties {
    let mut properties = Properties::default();
    for (name, value) in [("temp", "31"), ("unit", "C"), ("line", "7"), ("kind", "a")] {
        properties.set(name, Some(value));
    }
    properties.set_system(SystemProperty::ContentType, Some("application/json"));
    properties.set_system(SystemProperty::ContentEncoding, Some("utf-8"));
    properties
}

/// A JSON object of about 1 KiB whose last member is `a.b`.
fn body() -> String {
    let mut body = "{".to_owned();
    let mut number = 0;
    while body.len() < 1000 {
        write!(body, "\"field{number}\":{number}.5,").unwrap();
        number += 1;
    }
    body.push_str("\"a\":{\"b\":31}}");
    body
}

fn conditions(criterion: &mut Criterion) {
    let (properties, body) = (properties(), body());
    let view = View {
        source: SOURCE,
        properties: &properties,
        body: body.as_bytes(),
    };
    for (name, text) in [
        ("property comparison (at most 50 ns)", "unit = 'C'"),
        (
            "four terms (at most 200 ns)",
            "unit = 'C' AND line = '7' AND NOT (kind = 'b') AND as_number(temp) > 30",
        ),
        ("$body.a.b > 30 in 1 KiB (at most 1 us)", "$body.a.b > 30"),
    ] {
        let condition = Condition::compile(text).unwrap();
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| black_box(&condition).evaluate(black_box(&view)));
        });
    }
}

fn table(criterion: &mut Criterion) {
    let (properties, body) = (properties(), body());
    let view = View {
        source: SOURCE,
        properties: &properties,
        body: body.as_bytes(),
    };
    for others in [0, 1000] {
        let mut routes: Vec<_> = (0..others).map(|n| route(&format!("other{n}"))).collect();
        routes.push(route("m"));
        let table = RouteTable::new(routes);
        let candidates = table.candidates(SOURCE);
        let mut targets = Vec::new();
        criterion.bench_function(
            &format!("one route, {others} of other modules"),
            |bencher| {
                bencher.iter(|| table.evaluate(&candidates, black_box(&view), &mut targets));
            },
        );
    }
}

fn route(module: &str) -> Arc<Route> {
    let text = format!(
        "FROM /messages/modules/{module}/outputs/o WHERE unit = 'C' \
         INTO BrokeredEndpoint(\"/modules/{module}/inputs/i\")"
    );
    Arc::new(Route::compile(module, &text, Priority::DEFAULT, None).unwrap())
}

criterion_group!(benches, conditions, table);
criterion_main!(benches);
