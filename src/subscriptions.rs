//! Which subscriptions a topic name matches: a tree of filter levels (MQTT 5 §4.7).
//!
//! The cost of a match depends on the levels of the name and on how many branches have wildcards,
//! not on how many filters there are. Values of one filter are told apart by the caller.

use std::collections::HashMap;

/// Filters and what stands for each of their subscriptions.
#[derive(Debug)]
pub struct Trie<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    levels: HashMap<Box<str>, Node<T>>,
    /// What follows `+`.
    any: Option<Box<Node<T>>>,
    /// Of filters that end here.
    here: Vec<T>,
    /// Of filters that go on with `#`, which matches this level, too.
    all: Vec<T>,
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self {
            root: Node::default(),
            len: 0,
        }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            levels: HashMap::new(),
            any: None,
            here: Vec::new(),
            all: Vec::new(),
        }
    }
}

impl<T> Trie<T> {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value to a filter that has passed [`crate::topic::check_filter`], in place of the
    /// one that is the same; returns that one.
    pub fn insert(&mut self, filter: &str, value: T, is_same: impl Fn(&T) -> bool) -> Option<T> {
        let mut node = &mut self.root;
        let mut is_all = false;
        for level in filter.split('/') {
            match level {
                "#" => is_all = true,
                "+" => node = node.any.get_or_insert_default(),
                _ => node = node.levels.entry(level.into()).or_default(),
            }
        }
        let values = if is_all {
            &mut node.all
        } else {
            &mut node.here
        };
        match values.iter_mut().find(|known| is_same(known)) {
            Some(known) => Some(std::mem::replace(known, value)),
            None => {
                values.push(value);
                self.len += 1;
                None
            }
        }
    }

    /// Takes a value from a filter, and branches that have no value any more.
    pub fn remove(&mut self, filter: &str, is_same: impl Fn(&T) -> bool) -> Option<T> {
        let removed = self.root.remove(filter.split('/'), &is_same);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Finds the values of all filters that match a name which has passed
    /// [`crate::topic::check_name`]. Filters that begin with a wildcard match no name that begins
    /// with `$` (§4.7.2).
    pub fn for_each_match<'a>(&'a self, name: &str, mut found: impl FnMut(&'a T)) {
        let node = &self.root;
        if !name.starts_with('$') {
            node.find(Some(name), &mut found);
            return;
        }
        let (level, rest) = first(name);
        if let Some(node) = node.levels.get(level) {
            node.find(rest, &mut found);
        }
    }
}

impl<T> Node<T> {
    /// As deep as the deepest filter, which the limit of levels bounds.
    fn find<'a>(&'a self, name: Option<&str>, found: &mut impl FnMut(&'a T)) {
        self.all.iter().for_each(&mut *found);
        let Some(name) = name else {
            self.here.iter().for_each(found);
            return;
        };
        let (level, rest) = first(name);
        if let Some(node) = self.levels.get(level) {
            node.find(rest, found);
        }
        if let Some(node) = &self.any {
            node.find(rest, found);
        }
    }

    fn remove<'a>(
        &mut self,
        mut levels: impl Iterator<Item = &'a str>,
        is_same: &impl Fn(&T) -> bool,
    ) -> Option<T> {
        let take = |values: &mut Vec<T>| {
            let at = values.iter().position(is_same)?;
            let value = values.swap_remove(at);
            if values.is_empty() {
                *values = Vec::new();
            }
            Some(value)
        };
        let Some(level) = levels.next() else {
            return take(&mut self.here);
        };
        if level == "#" {
            return take(&mut self.all);
        }
        if level == "+" {
            let node = self.any.as_mut()?;
            let removed = node.remove(levels, is_same);
            if node.is_empty() {
                self.any = None;
            }
            return removed;
        }
        let node = self.levels.get_mut(level)?;
        let removed = node.remove(levels, is_same);
        if node.is_empty() {
            self.levels.remove(level);
        }
        removed
    }

    fn is_empty(&self) -> bool {
        let has_values = !self.here.is_empty() || !self.all.is_empty();
        !has_values && self.any.is_none() && self.levels.is_empty()
    }
}

/// The first level of a name, and what follows it.
fn first(name: &str) -> (&str, Option<&str>) {
    match name.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic;

    fn found(trie: &Trie<(String, u8)>, name: &str) -> Vec<(String, u8)> {
        let mut all = Vec::new();
        trie.for_each_match(name, |value| all.push(value.clone()));
        all.sort();
        all
    }

    #[test]
    fn an_emptied_tree_has_no_branches_left() {
        let mut trie = Trie::default();
        let filters = ["a/b/c", "a/+/c", "#", "a/#", "+", "a/b"];
        for filter in filters {
            assert_eq!(trie.insert(filter, 1, |known| *known == 1), None);
            assert_eq!(trie.insert(filter, 1, |known| *known == 1), Some(1));
        }
        assert_eq!(trie.len(), filters.len());
        assert_eq!(trie.remove("a/b/c/d", |_| true), None);
        assert_eq!(trie.remove("a", |_| true), None);
        for filter in filters {
            assert_eq!(trie.remove(filter, |known| *known == 2), None);
            assert_eq!(trie.remove(filter, |known| *known == 1), Some(1));
        }
        assert!(trie.is_empty() && trie.root.is_empty());
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "", "$x"])
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5).prop_map(|levels| levels.join("/"))
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => level(), 1 => Just("+")];
        (prop::collection::vec(level, 0..4), any::<bool>()).prop_map(|(mut levels, is_all)| {
            if is_all || levels.is_empty() {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_matching_each_filter_finds(
            changes in prop::collection::vec((filter(), 0_u8..3, any::<bool>()), 0..40),
            names in prop::collection::vec(name(), 1..10),
        ) {
            let mut trie = Trie::default();
            let mut model: Vec<(String, u8)> = Vec::new();
            for (filter, who, is_there) in changes {
                prop_assume!(topic::check_filter(&filter).is_ok());
                let value = (filter.clone(), who);
                model.retain(|known| *known != value);
                if is_there {
                    model.push(value.clone());
                    trie.insert(&filter, value.clone(), |known| *known == value);
                } else {
                    trie.remove(&filter, |known| *known == value);
                }
            }
            prop_assert_eq!(trie.len(), model.len());
            for name in names.iter().filter(|name| topic::check_name(name).is_ok()) {
                let mut expected = model.clone();
                expected.retain(|(filter, _)| topic::matches(filter, name));
                expected.sort();
                prop_assert_eq!(found(&trie, name), expected, "{}", name);
            }
        }
    }
}
