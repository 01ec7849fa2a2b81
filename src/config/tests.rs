mod authorization;
mod checks;
mod syntax;
mod variables;

use super::*;
use crate::diagnostic::Severity;
use crate::identity::rules::Operation;
use crate::topic::template::Template;
use crate::upstream::dial;

/// What every configuration needs.
const BASE: &str = r#"device_id = "edge-1"
iothub_hostname = "example.azure-devices.net"
manifest = "routes/m.json"
identities = "identities.json"
"#;
const TLS: &str = "[tls]\ncertificate = \"certs/server.pem\"\nkey = \"/keys/server.key\"\n";
const MEMORY: &str = "[store]\nsync = \"memory\"\n";

type Parsed = Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>>;

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Parsed {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::parse(text, Path::new("/etc/edgehub/hub.toml"), &variables)
}

fn parse(text: &str) -> Parsed {
    parse_with(text, &[])
}

/// The errors as `line:column: message (hint: …)`, warnings left out.
fn errors(parsed: Parsed) -> Vec<String> {
    let diagnostics = match parsed {
        Ok(_) => Vec::new(),
        Err(diagnostics) => diagnostics,
    };
    said(diagnostics, Severity::Error)
}

fn said(diagnostics: Vec<Diagnostic>, severity: Severity) -> Vec<String> {
    diagnostics
        .into_iter()
        .filter(|one| one.severity == severity)
        .map(|one| {
            let hint = one
                .hint
                .map(|hint| format!(" ({hint})"))
                .unwrap_or_default();
            format!("{}:{}: {}{hint}", one.line, one.column, one.message)
        })
        .collect()
}

/// Errors of a section that stands below the base and `[tls]`: its first line is line 8.
fn errors_below(section: &str) -> Vec<String> {
    errors(parse(&format!("{BASE}{TLS}{section}")))
}

fn assert_said(section: &str, expected: &str) {
    let errors = errors_below(section);
    assert!(
        errors.iter().any(|one| one == expected),
        "{section}\n{errors:#?}"
    );
}

fn config_below(section: &str) -> Config {
    parse(&format!("{BASE}{TLS}{section}")).unwrap().0
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let (config, warnings) = parse(&format!("{BASE}{TLS}{MEMORY}")).unwrap();
    assert_eq!(warnings, []);
    let expected = Config {
        file: PathBuf::from("/etc/edgehub/hub.toml"),
        device_id: "edge-1".to_owned(),
        iothub_hostname: "example.azure-devices.net".to_owned(),
        gateway_hostname: "localhost".to_owned(),
        data_dir: PathBuf::from("/etc/edgehub/data"),
        manifest: PathBuf::from("/etc/edgehub/routes/m.json"),
        identities: PathBuf::from("/etc/edgehub/identities.json"),
        users: None,
        listeners: vec![Listener {
            bind: "0.0.0.0:8883".parse().unwrap(),
            transport: Transport::Tls,
            anonymous: false,
            allow_remote_anonymous: false,
            allow_cleartext: false,
            trusted_proxies: Vec::new(),
        }],
        tls: Some(Tls {
            certificate: PathBuf::from("/etc/edgehub/certs/server.pem"),
            key: PathBuf::from("/keys/server.key"),
            client_ca: None,
            min_version: TlsVersion::Tls12,
        }),
        store: StoreConfig {
            sync: Sync::Memory,
            max_syncs_per_second: 0,
            max_bytes: 1 << 30,
            min_free_bytes: 64 << 20,
            when_full: WhenFull::Reject,
            segment_bytes: 8 << 20,
        },
        limits: Limits::default(),
        server: Server { workers: 0 },
        upstream: Upstream {
            kind: UpstreamKind::None,
            servers: Vec::new(),
            ca: None,
            certificate: None,
            key: None,
            client_id: None,
            username: None,
            password_file: None,
            transport: Transport::Tls,
            topic: Template::parse("devices/{device}/modules/{module}/messages/events/").unwrap(),
            subscribe: Vec::new(),
            qos: 1,
            proxy: None,
            window: 100,
            path: "/mqtt".to_owned(),
            version: MqttVersion::V311,
            drain: DrainOrder::Fifo,
            live_share: 80,
            max_messages_per_second: 0,
            max_message_bytes: None,
            dead_peer_seconds: 10,
            idle_timeout_seconds: 3600,
            token_ttl_seconds: 3600,
        },
        http: None,
        authorization: Vec::new(),
        log: Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
        },
    };
    assert_eq!(config, expected);
}

const WHOLE: &str = r##"
device_id = "edge-1"
iothub_hostname = "example.azure-devices.net"
gateway_hostname = "gateway"
data_dir = "/var/lib/edgehub"
manifest = "m.json"
identities = "i.json"
users = "users.txt"

[[listener]]
bind = "0.0.0.0:8883"

[[listener]]
bind = "127.0.0.1:1883"
transport = "tcp"
anonymous = true

[[listener]]
bind = "[::]:0"
transport = "tcp"
anonymous = true
allow_remote_anonymous = true
allow_cleartext = true

[tls]
certificate = "c.pem"
key = "k.pem"
client_ca = "ca.pem"
min_version = "1.3"

[store]
sync = "interval"
interval_ms = 250
max_syncs_per_second = 20
max_bytes = "2GiB"
min_free_bytes = 1_000_000
when_full = "drop-oldest"
segment_bytes = "64MiB"

[limits]
max_message_bytes = "256KiB"
max_connections = 50
max_connections_per_login = 40
max_keep_alive_seconds = 600
max_connects_per_second = 30
max_messages_per_second = 20
max_pending_connections = 5
max_inflight = 10
max_subscriptions = 20
max_topic_bytes = 1024
connect_timeout_seconds = 5
publish_stall_seconds = 0
ack_stall_seconds = 0
drain_timeout_seconds = 3
endpoint_max_bytes = "1MB"
endpoint_max_messages = 1000
max_output_bytes = "64KiB"
max_routes = 40
max_sessions = 9
max_retained_messages = 7
max_retained_bytes = "1MiB"

[server]
workers = 2

[upstream]
kind = "none"
servers = ["one:8883", "two:8883"]
password_file = "secret"
qos = 0
version = "5"
proxy = "http://proxy:3128"
drain = "live-first"
max_message_bytes = "128KiB"
subscribe = [{ filter = "to/+/#", input = "worker/commands" }]

[http]

[[authorization]]
identities = ["{{anonymous}}"]
allow = [{ operations = ["mqtt:publish", "mqtt:subscribe"], resources = ["#"] }]
[[authorization.deny]]
operations = ["mqtt:connect"]

[log]
level = "info,edgehub::session=debug"
format = "json"
"##;

fn the_upstream_section(upstream: Upstream) {
    let servers: Vec<_> = upstream
        .servers
        .iter()
        .map(dial::Server::to_string)
        .collect();
    assert_eq!(servers, ["one:8883", "two:8883"]);
    assert_eq!(upstream.qos, 0);
    assert_eq!(upstream.version, MqttVersion::V5);
    assert_eq!(upstream.drain, DrainOrder::LiveFirst);
    assert_eq!(upstream.max_message_bytes, Some(131_072));
    let subscription = &upstream.subscribe[0];
    assert_eq!(subscription.filter, "to/+/#");
    assert_eq!(subscription.input.to_string(), "worker/commands");
    assert_eq!(upstream.proxy.unwrap().to_string(), "proxy:3128");
    let password_file = upstream.password_file.unwrap();
    assert_eq!(password_file, Path::new("/etc/edgehub/secret"));
}

#[test]
fn every_key_reaches_its_field() {
    let (config, warnings) = parse(WHOLE).unwrap();
    assert_eq!(config.gateway_hostname, "gateway");
    assert_eq!(config.data_dir, Path::new("/var/lib/edgehub"));
    let users = Path::new("/etc/edgehub/users.txt");
    assert_eq!(config.users.as_deref(), Some(users));
    assert_eq!(config.listeners[0].transport, Transport::Tls);
    assert!(config.listeners[1].anonymous);
    assert_eq!(config.listeners[2].bind, "[::]:0".parse().unwrap());
    let tls = config.tls.unwrap();
    assert_eq!(
        tls.client_ca.as_deref(),
        Some(Path::new("/etc/edgehub/ca.pem"))
    );
    assert_eq!(tls.min_version, TlsVersion::Tls13);
    let expected = StoreConfig {
        sync: Sync::Interval { ms: 250 },
        max_syncs_per_second: 20,
        max_bytes: 2 << 30,
        min_free_bytes: 1_000_000,
        when_full: WhenFull::DropOldest,
        segment_bytes: 64 << 20,
    };
    assert_eq!(config.store, expected);
    let expected = Limits {
        max_message_bytes: 256 * 1024,
        max_connections: 50,
        max_connections_per_login: 40,
        max_keep_alive_seconds: 600,
        max_connects_per_second: 30,
        max_messages_per_second: 20,
        max_pending_connections: 5,
        max_inflight: 10,
        max_subscriptions: 20,
        max_topic_bytes: 1_024,
        connect_timeout_seconds: 5,
        publish_stall_seconds: 0,
        ack_stall_seconds: 0,
        drain_timeout_seconds: 3,
        endpoint_max_bytes: 1_000_000,
        endpoint_max_messages: 1_000,
        max_output_bytes: 64 * 1024,
        max_routes: 40,
        max_sessions: 9,
        max_retained_messages: 7,
        max_retained_bytes: 1 << 20,
    };
    assert_eq!(config.limits, expected);
    assert_eq!(config.server.workers, 2);
    the_upstream_section(config.upstream);
    assert_eq!(config.http.unwrap().bind, "127.0.0.1:9600".parse().unwrap());
    let authorization = &config.authorization[0];
    assert_eq!(authorization.identities, ["{{anonymous}}"]);
    assert_eq!(
        authorization.allow[0].operations,
        [Operation::Publish, Operation::Subscribe]
    );
    assert_eq!(authorization.deny[0].operations, [Operation::Connect]);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(warnings, []);
}

#[test]
fn an_empty_file_names_every_missing_key_at_once() {
    assert_eq!(
        errors(parse("")),
        [
            "0:0: `device_id` is missing",
            "0:0: `iothub_hostname` is missing",
            "0:0: `manifest` is missing",
            "0:0: `identities` is missing",
            "0:0: `[tls]` is missing, which the default listener needs \
             (without `[[listener]]` the hub listens with TLS on 0.0.0.0:8883)",
        ]
    );
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    let text = "device_id = \"a/b\"\niothub_hostname = 7\nmanifest = \"\"\nidentites = \"i\"\n\
                [server]\nworkers = \"two\"\n[tls]\ncertificate = \"c\"\n[sore]\nsync = 1\n";
    assert_eq!(
        errors(parse(text)),
        [
            "0:0: `identities` is missing",
            "1:13: `device_id` is not a device id: \"a/b\" \
             (1 to 128 ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ ')",
            "2:19: `iothub_hostname` must be a string, not an integer \
             (put the value in double quotes)",
            "3:12: `manifest` is empty",
            "4:1: unknown key `identites` (did you mean `identities`?)",
            "6:11: `workers` must be an integer, not a string",
            "7:1: `key` is missing",
            "9:2: unknown section `sore` (did you mean `store`?)",
        ]
    );
}

#[test]
fn broken_values_are_called_by_line_and_column() {
    for (section, expected) in [
        (
            "[store]\n  snyc = \"os\"",
            "9:3: unknown key `snyc` in `[store]` (did you mean `sync`?)",
        ),
        (
            "[store]\nsync = \"alway\"",
            "9:8: `sync` must be \"always\", \"interval\", \"os\" or \"memory\", not \"alway\" \
             (did you mean `always`?)",
        ),
        (
            "[store]\nwhen_full = true",
            "9:13: `when_full` must be a string, not a boolean (put the value in double quotes)",
        ),
        (
            "[store]\nmax_bytes = \"1 TiB\"",
            "9:13: `max_bytes` is not a size: \"1 TiB\" \
             (a number of bytes, or a number with KiB, MiB, GiB, KB, MB or GB)",
        ),
        (
            "[store]\nsegment_bytes = \"4GiB\"",
            "9:17: `segment_bytes` must be from 1MiB to 1GiB, not 4GiB",
        ),
        (
            "[store]\nmax_bytes = 1.5",
            "9:13: `max_bytes` must be a size such as \"64MiB\", not a float",
        ),
        (
            "[store]\ninterval_ms = 0",
            "9:15: `interval_ms` must be from 1 to 600000, not 0",
        ),
    ] {
        assert_said(section, expected);
    }
}

#[test]
fn numbers_out_of_range_are_called_by_line_and_column() {
    for (section, expected) in [
        (
            "[limits]\nmax_inflight = 65_536",
            "9:16: `max_inflight` must be from 1 to 65535, not 65536",
        ),
        (
            "[limits]\nmax_inflight = -1",
            "9:16: `max_inflight` must be from 1 to 65535, not -1",
        ),
        (
            "[limits]\nmax_topic_bytes = 0x1_0000",
            "9:19: `max_topic_bytes` must be from 256 bytes to 65535 bytes, not 0x10000",
        ),
        (
            "[limits]\nmax_message_bytes = -5",
            "9:21: `max_message_bytes` must be from 1KiB to 255MiB, not -5",
        ),
        (
            "[limits]\nmax_message_bytes = 99999999999999999999999",
            "9:21: `max_message_bytes` must be from 1KiB to 255MiB, not 99999999999999999999999",
        ),
    ] {
        assert_said(section, expected);
    }
}

#[test]
fn texts_that_mean_nothing_are_called_by_line_and_column() {
    for (section, expected) in [
        (
            "[http]\nbind = \"127.0.0.1\"",
            "9:8: `bind` is not an address with a port: \"127.0.0.1\" \
             (add a port: \"127.0.0.1:8883\")",
        ),
        (
            "[log]\nlevel = \"info,edgehub=lout\"",
            "9:9: `level` must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\", \
             not \"lout\"",
        ),
        (
            "[upstream]\nservers = [\"a:1\", 2]",
            "9:19: `servers` must be an array of strings, not an integer",
        ),
        (
            "[upstream]\nproxy = \"http://me:secret@proxy\"",
            "9:9: `proxy` must not hold a user name or a password",
        ),
        (
            "[server]\nworkers = 1\nmanifest = \"m\"",
            "10:1: unknown key `manifest` in `[server]` (write `manifest` above the first section)",
        ),
        (
            "[listener]\nbind = \"127.0.0.1:1883\"",
            "8:1: `listener` must be an array of tables (write `[[listener]]`, with two brackets)",
        ),
    ] {
        assert_said(section, expected);
    }
}

#[test]
fn a_section_must_be_a_section() {
    let text = format!("server = 5\n{BASE}{TLS}");
    let expected = "1:10: `server` must be a section (write `[server]` in a line of its own)";
    assert_eq!(errors(parse(&text)), [expected]);
}

#[test]
fn paths_of_a_file_without_directory_stay_relative() {
    let text = format!("{BASE}{TLS}{MEMORY}");
    let (config, _) = Config::parse(&text, Path::new("hub.toml"), &BTreeMap::new()).unwrap();
    assert_eq!(config.manifest, Path::new("routes/m.json"));
    assert_eq!(config.data_dir, Path::new("data"));
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let missing = Path::new("no/such/hub.toml");
    let errors = Config::load(missing).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].file, missing);
    assert!(errors[0].message.starts_with("cannot be read: "));
    assert_eq!(config_below(MEMORY).listeners.len(), 1);
}
