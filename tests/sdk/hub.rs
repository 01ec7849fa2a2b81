//! A hub under test: its folder, its loopback address, its process.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;

pub const DEVICE: &str = "edge-1";
/// The name that modules connect to and that the certificate is for; see `module.py`.
pub const GATEWAY: &str = "edgehub.test";
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Hub {
    process: Option<Process>,
    address: Ipv4Addr,
    folder: TempDir,
}

impl Hub {
    /// A running hub with these routes. `modules` gives desired properties by module; the modules
    /// `sender` and `receiver` are always there.
    pub fn start(routes: Value, modules: Value) -> Self {
        let mut hub = Self {
            process: None,
            address: own_address(),
            folder: TempDir::new().unwrap(),
        };
        fs::write(hub.path("edgehub.toml"), hub.config()).unwrap();
        fs::write(
            hub.path("manifest.json"),
            manifest(routes, modules).to_string(),
        )
        .unwrap();
        let names = ["--hostname", GATEWAY, "--hostname", "localhost"];
        hub.command(&["certs", "new", "--dir", "certs"], &names);
        hub.launch();
        hub
    }

    /// Starts the process and waits until it is ready.
    pub fn launch(&mut self) {
        let begin = Instant::now();
        let mut command = self.edgehub(&["run", "--config", "edgehub.toml"]);
        let process = Process::start("edgehub", &mut command, &self.path("hub.log"));
        let line = process
            .next_line(begin + PATIENCE)
            .expect("the hub ends before it is ready");
        let ready: Value = serde_json::from_str(&line).expect("a JSON line");
        assert_eq!(ready["event"], "ready", "{line}");
        println!("hub at {} ready in {:?}", self.address, begin.elapsed());
        self.process = Some(process);
    }

    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// What the hub prints for a module to connect with.
    pub fn connection_string(&self, module: &str) -> String {
        let identity = format!("{DEVICE}/{module}");
        let words = [
            "identity",
            "connection-string",
            &identity,
            "--config",
            "edgehub.toml",
        ];
        self.command(&words, &[]).trim().to_owned()
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("hub.log")).unwrap()
    }

    fn command(&self, words: &[&str], more: &[&str]) -> String {
        let mut command = self.edgehub(words);
        Process::run(
            words[0],
            command.args(more),
            &self.path("command.log"),
            PATIENCE,
        )
    }

    fn edgehub(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgehub"));
        command.args(words).current_dir(self.folder.path());
        command
    }

    fn config(&self) -> String {
        let address = self.address;
        format!(
            r#"
            device_id = "{DEVICE}"
            iothub_hostname = "example.azure-devices.net"
            gateway_hostname = "{GATEWAY}"
            data_dir = "data"
            manifest = "manifest.json"
            identities = "identities.json"

            [[listener]]
            bind = "{address}:8883"
            transport = "tls"

            [tls]
            certificate = "certs/server.pem"
            key = "certs/server.key"

            [http]
            bind = "{address}:0"
            "#
        )
    }
}

/// A loopback address that no other hub under test has: from the process id, and in it by count.
fn own_address() -> Ipv4Addr {
    const HUBS_PER_PROCESS: u32 = 16;
    static HUBS: AtomicU32 = AtomicU32::new(0);
    let hub = HUBS.fetch_add(1, Ordering::Relaxed) % HUBS_PER_PROCESS;
    let number = std::process::id()
        .wrapping_mul(HUBS_PER_PROCESS)
        .wrapping_add(hub);
    // Digits of 1 to 250 only: the ends of a network are not addresses.
    let digit = |place: u32| (number / 250_u32.pow(place) % 250 + 1) as u8;
    Ipv4Addr::new(127, digit(2), digit(1), digit(0))
}

fn manifest(routes: Value, modules: Value) -> Value {
    let mut content = json!({
        "$edgeHub": { "properties.desired": {
            "schemaVersion": "1.1",
            "routes": routes,
            "storeAndForwardConfiguration": { "timeToLiveSecs": 7200 },
        }},
        "sender": { "properties.desired": {} },
        "receiver": { "properties.desired": {} },
    });
    for (module, desired) in modules.as_object().unwrap() {
        content[module] = json!({ "properties.desired": desired });
    }
    json!({ "modulesContent": content })
}

/// One field of a connection string.
pub fn connection_field<'a>(connection: &'a str, name: &str) -> &'a str {
    let mut fields = connection
        .split(';')
        .filter_map(|field| field.split_once('='));
    fields
        .find(|(key, _)| *key == name)
        .unwrap_or_else(|| panic!("no {name}"))
        .1
}

/// The connection string with another key.
pub fn with_key(connection: &str, key: &str) -> String {
    connection.replace(connection_field(connection, "SharedAccessKey"), key)
}
