//! Who may use which plain topics: the statements of the configuration, then the manifest's.

use std::sync::{Arc, PoisonError};

use super::client::Client;
use super::{Hub, brief, sys};
use crate::identity::Identity;
use crate::identity::policy::Forbidden;
use crate::identity::rules::{Action, Decision, Rules, Statement, Who};
use crate::mailbox::RECHECK;
use crate::store::journal::Subscription;

/// The statements by where they come from.
#[derive(Debug, Default)]
pub(super) struct Statements {
    configured: Vec<Statement>,
    manifest: Vec<Statement>,
}

impl Hub {
    /// Takes the statements of the configuration.
    pub fn set_authorization(&self, statements: Vec<Statement>) {
        self.change_rules(|known| known.configured = statements);
    }

    /// Takes the statements of the manifest.
    pub(super) fn set_manifest_authorization(&self, statements: Vec<Statement>) {
        self.change_rules(|known| known.manifest = statements);
    }

    fn change_rules(&self, change: impl FnOnce(&mut Statements)) {
        let mut known = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut known);
        let all = known.configured.iter().chain(&known.manifest);
        let rules = Rules::new(all.cloned().collect());
        drop(known);
        if *self.rules.load_full() != rules {
            self.rules.store(Arc::new(rules));
            self.space.forget_matches();
            self.announce(RECHECK);
        }
    }

    /// Whether a client may do something in the plain topic space.
    pub(super) fn may(&self, client: &Client, action: Action<'_>) -> Result<(), Forbidden> {
        let action = match action {
            // The hub's own topics are for those who may see everything.
            Action::Subscribe(filter) if filter.starts_with(sys::PREFIX) => Action::Subscribe("#"),
            action => action,
        };
        match self.decide(&client.identity, action) {
            Decision::Allowed => Ok(()),
            Decision::Denied | Decision::NoRule => Err(Forbidden::PlainTopics),
        }
    }

    /// Takes subscriptions from a client that it may no longer have.
    pub(super) fn cut_subscriptions(&self, client: &mut Client) {
        let is_cut = |one: &Subscription| {
            one.is_plain() && self.may(client, Action::Subscribe(&one.filter)).is_err()
        };
        let cut: Vec<_> = client
            .subscriptions
            .iter()
            .filter(|one| is_cut(one))
            .collect();
        let cut: Vec<Subscription> = cut.into_iter().cloned().collect();
        if cut.is_empty() {
            return;
        }
        for subscription in cut {
            let (id, filter) = (client.identity.as_str(), brief(&subscription.filter));
            tracing::warn!(id, filter, "subscription ended: no rule allows it any more");
            self.forget_subscription(client, &subscription.filter);
        }
        self.keep_subscriptions(client);
        self.refresh_inputs(client);
    }

    /// What the rules say.
    pub(super) fn decide(&self, identity: &Identity, action: Action<'_>) -> Decision {
        self.rules.load().decide(&self.who(identity), action)
    }

    /// Whether a rule speaks of this client.
    pub(super) fn is_named(&self, identity: &Identity) -> bool {
        self.rules.load().names(&self.who(identity))
    }

    fn who<'a>(&'a self, identity: &'a Identity) -> Who<'a> {
        let is_plain = identity.is_plain();
        Who {
            name: identity.rule_name(),
            client_id: match identity.module_id() {
                Some(client_id) if is_plain => client_id,
                _ => identity.as_str(),
            },
            device_id: (!is_plain).then(|| identity.device_id()),
            module_id: identity.module_id().filter(|_| !is_plain),
            this_device_id: self.device_id(),
        }
    }
}
