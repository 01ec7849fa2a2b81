//! Certificates that stand for themselves: `client_ca` vouches for a name that is no identity of
//! the registry (`DESIGN` §3.2).
//!
//! An authority may vouch for many, those that were taken out of the registry included. So only
//! whom a rule names as `cert:NAME` is let in; nobody else could do anything.

use super::login::{KeptOut, Login, Outcome, Proof};
use super::{Hub, Now, Peer};
use crate::identity::rules::CERTIFICATE_PREFIX;
use crate::identity::users::check_name;
use crate::identity::{ClientCertificate, Identity, authenticate};
use crate::mqtt::{Connect, ConnectReturnCode};

impl Hub {
    /// The certificate of a client that shows nothing else, if neither its common name nor the
    /// client id is the registry's.
    pub(super) fn stands_for_itself<'a>(
        &self,
        connect: &Connect<'_>,
        peer: &'a Peer,
    ) -> Option<&'a ClientCertificate> {
        let shown = peer.certificate.as_ref()?;
        let is_all = connect.username.is_none_or(str::is_empty)
            && connect.password.is_none_or(<[u8]>::is_empty);
        let name = shown.common_name.as_deref()?;
        let is_free = !self.is_listed(name) && !self.is_listed(connect.client_id);
        (is_all && is_free).then_some(shown)
    }

    /// Decides about a client by its certificate alone.
    pub(super) fn login_certificate(
        &self,
        shown: &ClientCertificate,
        connect: &Connect<'_>,
        mut login: Login,
        now: Now,
    ) -> Result<Outcome, KeptOut> {
        let (kind, expires_unix) = self.check_certificate(shown, now)?;
        login.identity = self.plain_identity(&kind, connect, &mut login, now)?;
        login.expires_unix = Some(expires_unix);
        login.proof = Some(Proof::Certificate(Box::new(shown.clone())));
        self.check_connect(login).map(Outcome::In)
    }

    /// What rules call it, and its last second. Asked again when something has changed.
    pub(super) fn check_certificate(
        &self,
        shown: &ClientCertificate,
        now: Now,
    ) -> Result<(String, u64), KeptOut> {
        let refused = |reason, text| KeptOut::new(ConnectReturnCode::NotAuthorized, reason, text);
        let expires_unix = authenticate::vouched_for(shown, now.unix)
            .map_err(|denied| refused(denied.reason(), denied.to_string()))?;
        let name = shown.common_name.as_deref().unwrap_or_default();
        check_name(name)
            .map_err(|error| refused("certificate_name", format!("its common name: {error}")))?;
        let kind = format!("{CERTIFICATE_PREFIX}{name}");
        if self.is_listed(name) {
            let text = "the certificate's common name is an identity's".to_owned();
            return Err(refused("certificate_name", text));
        }
        if !self.is_named(&Identity::plain(&kind, "")) {
            let text = format!("no authorization rule names {kind}");
            return Err(refused("certificate_not_named", text));
        }
        Ok((kind, expires_unix))
    }

    fn is_listed(&self, text: &str) -> bool {
        let identity = Identity::parse(text);
        identity.is_some_and(|identity| self.registry.load().get(&identity).is_some())
    }
}
