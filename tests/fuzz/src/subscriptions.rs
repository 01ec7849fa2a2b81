//! The tree of subscriptions beside a list of them, filters beside each other, and rules.

use arbitrary::{Arbitrary, Unstructured};
use edgehub::identity::rules::{Action, Decision, Grant, Operation, Rules, Statement, Who};
use edgehub::subscriptions::Trie;
use edgehub::topic::relation::{covers, overlaps};
use edgehub::topic::{check_filter, check_name, matches};

const STEPS_MAX: usize = 64;
const LEVELS_MAX: usize = 8;
const LEVELS: [&str; 10] = ["a", "b", "", "+", "#", "é", "$x", "$share", "ab", "devices"];

/// A filter or a name: of few levels, so that they meet, or any text.
#[derive(Debug, Arbitrary)]
enum Text {
    Levels(Vec<u8>),
    Any(String),
}

impl Text {
    fn text(&self) -> String {
        match self {
            Self::Levels(levels) => {
                let levels = levels.iter().take(LEVELS_MAX);
                let levels: Vec<_> = levels
                    .map(|level| LEVELS[usize::from(*level) % LEVELS.len()])
                    .collect();
                levels.join("/")
            }
            Self::Any(text) => text.chars().take(200).collect(),
        }
    }

    fn filter(&self) -> Option<String> {
        Some(self.text()).filter(|text| check_filter(text).is_ok())
    }

    fn name(&self) -> Option<String> {
        Some(self.text()).filter(|text| check_name(text).is_ok())
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Insert(Text, u8),
    Remove(Text, u8),
    Match(Text),
    Compare(Text, Text),
    Decide(Vec<(bool, bool, Text)>, bool),
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let steps: Vec<Step> = super::steps(&mut Unstructured::new(input), STEPS_MAX);
    let mut trie = Trie::default();
    let mut list: Vec<(String, u8)> = Vec::new();
    let mut names = vec!["a".to_owned(), "a/b".to_owned(), "$x/a".to_owned()];
    for step in &steps {
        match step {
            Step::Insert(filter, value) => {
                let Some(filter) = filter.filter() else {
                    continue;
                };
                let known = list.contains(&(filter.clone(), *value));
                let before = trie.insert(&filter, *value, |other| other == value);
                assert_eq!(before, known.then_some(*value));
                if !known {
                    list.push((filter, *value));
                }
            }
            Step::Remove(filter, value) => {
                let Some(filter) = filter.filter() else {
                    continue;
                };
                let removed = trie.remove(&filter, |other| other == value);
                let at = list.iter().position(|one| *one == (filter.clone(), *value));
                assert_eq!(removed.is_some(), at.is_some(), "{filter}");
                at.map(|at| list.remove(at));
            }
            Step::Match(name) => names.extend(name.name()),
            Step::Compare(one, other) => {
                if let (Some(one), Some(other)) = (one.filter(), other.filter()) {
                    compare(&one, &other, &names);
                }
            }
            Step::Decide(grants, denies_first) => decide(grants, *denies_first, &names),
        }
        assert_eq!((trie.len(), trie.is_empty()), (list.len(), list.is_empty()));
        for name in &names {
            let mut found = Vec::new();
            trie.for_each_match(name, |value| found.push(*value));
            found.sort_unstable();
            let mut expected: Vec<u8> = list
                .iter()
                .filter(|(filter, _)| naive(filter, name))
                .map(|(_, value)| *value)
                .collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{name} in {list:?}");
        }
    }
}

/// Level by level, as MQTT 5 §4.7 says it.
fn naive(filter: &str, name: &str) -> bool {
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let filter: Vec<_> = filter.split('/').collect();
    let name: Vec<_> = name.split('/').collect();
    let (last, before) = filter.split_last().unwrap();
    let fits = |(wanted, level): (&&str, &&str)| *wanted == "+" || wanted == level;
    if *last == "#" {
        return name.len() >= before.len() && before.iter().zip(&name).all(fits);
    }
    filter.len() == name.len() && filter.iter().zip(&name).all(fits)
}

fn compare(one: &str, other: &str, names: &[String]) {
    assert!(covers(one, one) && overlaps(one, one), "{one}");
    assert_eq!(overlaps(one, other), overlaps(other, one), "{one}, {other}");
    if covers(one, other) {
        assert!(overlaps(one, other), "{one} covers {other}");
    }
    for name in names {
        let (by_one, by_other) = (matches(one, name), matches(other, name));
        assert_eq!(by_one, naive(one, name), "{one}, {name}");
        if by_other && covers(one, other) {
            assert!(by_one, "{one} covers {other}, but not {name}");
        }
        if by_one && by_other {
            assert!(overlaps(one, other), "{one} and {other} match {name}");
        }
    }
}

/// The first statement that speaks of a topic decides, and there deny wins.
fn decide(grants: &[(bool, bool, Text)], asks_to_subscribe: bool, names: &[String]) {
    let who = Who {
        name: "{{anonymous}}",
        client_id: "c",
        device_id: None,
        module_id: None,
        this_device_id: "edge-1",
    };
    let mut statements = Vec::new();
    for (denies, is_ours, resource) in grants.iter().take(LEVELS_MAX) {
        let grant = Grant {
            operations: vec![Operation::Publish, Operation::Subscribe],
            resources: vec![resource.text()],
        };
        let mut statement = Statement {
            identities: vec![if *is_ours { who.name } else { "user:other" }.to_owned()],
            ..Statement::default()
        };
        match denies {
            true => statement.deny.push(grant),
            false => statement.allow.push(grant),
        }
        statements.push(statement);
    }
    let sound: Vec<_> = statements
        .iter()
        .filter(|one| one.check().is_empty() && one.identities[0] == who.name)
        .map(|one| match one.deny.first() {
            Some(grant) => (Decision::Denied, grant.resources[0].clone()),
            None => (Decision::Allowed, one.allow[0].resources[0].clone()),
        })
        .collect();
    if sound.iter().any(|(_, resource)| resource.contains("{{")) {
        return;
    }
    let rules = Rules::new(statements);
    for name in names {
        let is_reserved = name.starts_with('$') || name.split('/').next() == Some("devices");
        let decision = match asks_to_subscribe {
            true if name.starts_with("$share") => continue,
            true => rules.decide(&who, Action::Subscribe(name)),
            false => rules.decide(&who, Action::Publish(name)),
        };
        let mut matching = sound.iter().filter(|(_, resource)| naive(resource, name));
        let expected = match matching.next() {
            Some((decision, _)) if !is_reserved => *decision,
            _ => Decision::NoRule,
        };
        assert_eq!(decision, expected, "{name}, {sound:?}");
    }
}
