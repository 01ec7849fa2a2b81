//! Who may come in: SAS tokens against an identities file, by the hub's own validator.

use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use edgehub::files;
use edgehub::identity::authenticate::Audience;
use edgehub::identity::{Credentials, Password, Registry, authenticate};
use edgehub::iothub::username::UserName;

/// Longest part of a client id that is repeated on stderr, in characters.
const ID_CHARS_MAX: usize = 128;

/// What decides about logins.
#[derive(Debug)]
pub struct Door {
    registry: Registry,
    iothub_hostname: String,
}

impl Door {
    /// Reads the identities that may come in.
    ///
    /// # Errors
    /// What is wrong with the file, one line each.
    pub fn open(identities: &Path, iothub_hostname: String) -> Result<Self, String> {
        let registry = files::read_identities(identities).map_err(|errors| errors.join("\n"))?;
        if registry.is_empty() {
            return Err(format!("{}: no identity in it", identities.display()));
        }
        Ok(Self {
            registry,
            iothub_hostname,
        })
    }

    /// Whether a client may come in; why not goes to stderr, since rumqttd closes the connection
    /// without a word.
    #[must_use]
    pub fn admits(&self, client_id: &str, username: &str, password: &str) -> bool {
        let Err(why) = self.check(client_id, username, password) else {
            return true;
        };
        let shown: String = client_id.chars().take(ID_CHARS_MAX).collect();
        // Nobody may be listening; the client is refused all the same.
        let _ = writeln!(io::stderr().lock(), "edge-cloud: refused {shown:?}: {why}");
        false
    }

    fn check(&self, client_id: &str, username: &str, password: &str) -> Result<(), String> {
        let name = UserName::parse(username).map_err(|error| format!("user name: {error}"))?;
        let device = name.identity.device_id();
        if client_id != device {
            return Err(format!("the client id is not the device id {device}"));
        }
        let credentials = Credentials {
            identity: name.identity,
            password: Password::read(password.as_bytes()),
            certificate: None,
        };
        let audience = Audience {
            iothub_hostname: &self.iothub_hostname,
            gateway_hostname: "",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        authenticate(&self.registry, &credentials, &audience, now)
            .map(|_| ())
            .map_err(|denied| denied.to_string())
    }
}
