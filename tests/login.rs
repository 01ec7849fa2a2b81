//! Who gets in: every row of the authentication table over TLS, and who has to leave again.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edgehub::client::{Client, ClientError, Hello};
use edgehub::identity::Identity;
use edgehub::iothub::sas;
use edgehub::mqtt::{Connect, FromClient};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};

use common::{
    DEVICE, Hub, IOTHUB, LIMIT, Setup, certs, closed, output, publish, replace, unix_now,
};

const DEVICE_KEY: [u8; 32] = [1; 32];
const A: [u8; 32] = [2; 32];
const A_SECONDARY: [u8; 32] = [3; 32];
const B: [u8; 32] = [4; 32];
const OTHERS: [u8; 32] = [5; 32];
const WRONG: [u8; 32] = [9; 32];

/// One row of the table: what a client shows, and what it gets.
struct Row {
    name: &'static str,
    client_id: String,
    username: Option<String>,
    password: Option<String>,
    certificate: Option<&'static str>,
    code: u8,
    /// The label in the metrics; empty where it is let in.
    reason: &'static str,
}

fn row(name: &'static str, id: &str) -> Row {
    Row {
        name,
        client_id: id.to_owned(),
        username: Some(format!("{IOTHUB}/{id}/?api-version=2021-04-12")),
        password: None,
        certificate: None,
        code: 0,
        reason: "",
    }
}

impl Row {
    fn client_id(mut self, client_id: &str) -> Self {
        self.client_id = client_id.to_owned();
        self
    }

    fn user(mut self, username: Option<&str>) -> Self {
        self.username = username.map(str::to_owned);
        self
    }

    fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// A token for the IoT Hub's name that lasts for an hour.
    fn token(self, audience: &str, key: &[u8]) -> Self {
        self.token_of(IOTHUB, audience, key, 3600)
    }

    fn token_of(self, host: &str, audience: &str, key: &[u8], seconds: i64) -> Self {
        self.password(&token(host, audience, key, seconds))
    }

    fn certificate(mut self, file: &'static str) -> Self {
        self.certificate = Some(file);
        self
    }

    fn gets(mut self, code: u8, reason: &'static str) -> Self {
        (self.code, self.reason) = (code, reason);
        self
    }

    fn hello(&self) -> Hello {
        Hello {
            client_id: self.client_id.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
            clean_session: true,
            keep_alive_seconds: 60,
        }
    }
}

fn token(host: &str, audience: &str, key: &[u8], seconds: i64) -> String {
    let identity = Identity::parse(audience).unwrap();
    let expiry = unix_now().checked_add_signed(seconds).unwrap();
    sas::sign(key, &sas::resource(host, &identity), expiry)
}

fn accepted_tokens() -> Vec<Row> {
    let a = "edge-1/a";
    vec![
        row("right primary key", a).token(a, &A),
        row("right secondary key", a).token(a, &A_SECONDARY),
        row("gateway as audience", a).token_of("localhost", a, &A, 3600),
        row("audience in capitals", a).token_of("HUB.EXAMPLE", a, &A, 3600),
        row("expired within the skew", a).token_of(IOTHUB, a, &A, -285),
        row("a device", DEVICE).token(DEVICE, &DEVICE_KEY),
        row("a device's token for its module", a).token(DEVICE, &DEVICE_KEY),
        row("a token and a foreign certificate", a)
            .token(a, &A)
            .certificate("foreign/client-edge-1-ca-module"),
        row("old user name", a)
            .user(Some("hub.example/edge-1/a/api-version=2018-06-30"))
            .token(a, &A),
    ]
}

fn refused_tokens() -> Vec<Row> {
    let (a, b, other) = ("edge-1/a", "edge-1/b", "edge-2");
    let tampered = token(IOTHUB, a, &A, 3600).replace("&se=", "&se=1");
    let shifted = token(IOTHUB, a, &A, 3600).replace("%2Fa&", "%2Fb&");
    vec![
        row("wrong key", a)
            .token(a, &WRONG)
            .gets(5, "token_signature"),
        row("another module's key", a)
            .token(a, &B)
            .gets(5, "token_signature"),
        row("another module's token", a)
            .token(b, &B)
            .gets(5, "token_identity"),
        row("another module's audience", a)
            .token(b, &A)
            .gets(5, "token_identity"),
        row("a module's token for its device", DEVICE)
            .token(a, &A)
            .gets(5, "token_identity"),
        row("another device's token", a)
            .token(other, &OTHERS)
            .gets(5, "token_identity"),
        row("the device's key in a module's token", a)
            .token(a, &DEVICE_KEY)
            .gets(5, "token_signature"),
        row("expired beyond the skew", a)
            .token_of(IOTHUB, a, &A, -310)
            .gets(5, "token_expired"),
        row("expiry changed", a)
            .password(&tampered)
            .gets(5, "token_signature"),
        row("audience changed", b)
            .password(&shifted)
            .gets(5, "token_signature"),
        row("wrong audience host", a)
            .token_of("other.example", a, &A, 3600)
            .gets(5, "token_host"),
        row("unknown module", "edge-1/nobody")
            .token("edge-1/nobody", &A)
            .gets(5, "unknown_identity"),
        row("unknown module with its device's token", "edge-1/nobody")
            .token(DEVICE, &DEVICE_KEY)
            .gets(5, "unknown_identity"),
        row("unknown device", "edge-9")
            .token("edge-9", &A)
            .gets(5, "unknown_identity"),
        row("disabled", "edge-1/off")
            .token("edge-1/off", &OTHERS)
            .gets(5, "disabled"),
        row("a disabled device's module", "edge-3/m")
            .token("edge-3/m", &OTHERS)
            .gets(5, "device_disabled"),
        row("no means of authentication", "edge-1/none")
            .token("edge-1/none", &A)
            .gets(5, "no_method"),
        row("a token for a certificate identity", "edge-1/sha1")
            .token("edge-1/sha1", &A)
            .gets(5, "token_not_accepted"),
    ]
}

fn forms() -> Vec<Row> {
    let a = "edge-1/a";
    let mismatch = |name, client_id: &str| {
        let right = row(name, a).token(a, &A);
        right.client_id(client_id).gets(2, "client_id_mismatch")
    };
    let user = |name, user| {
        let right = row(name, a).token(a, &A);
        right.user(Some(user)).gets(4, "bad_user_name")
    };
    let bare = token(IOTHUB, a, &A, 3600).replace("&sig=", "&xyz=");
    vec![
        mismatch("another module's client id", "edge-1/b"),
        mismatch("its device's client id", "edge-1"),
        mismatch("client id in capitals", "EDGE-1/A"),
        mismatch("client id of no identity", "a/b/c"),
        mismatch("empty client id", ""),
        user("user name without a host", "edge-1/a"),
        user("user name without api-version", "hub.example/edge-1/a/"),
        user(
            "user name with an empty api-version",
            "hub.example/edge-1/a/?api-version=",
        ),
        user(
            "user name with one level too many",
            "hub.example/edge-1/a/b/?api-version=1",
        ),
        user("empty user name", ""),
        user(
            "user name of no identity",
            "hub.example/edge 1/a/?api-version=1",
        ),
        row("no credentials", a).gets(5, "no_credentials"),
        row("empty password", a)
            .password("")
            .gets(5, "no_credentials"),
        row("neither user name nor password", a)
            .user(None)
            .gets(5, "no_credentials"),
        row("nothing at all", "")
            .user(None)
            .gets(5, "no_credentials"),
        row("garbage password", a)
            .password("hunter2")
            .gets(5, "malformed_token"),
        row("a key as password", a)
            .password(&BASE64_STANDARD.encode(A))
            .gets(5, "malformed_token"),
        row("token without signature", a)
            .password(&bare)
            .gets(5, "malformed_token"),
        row("password of 5,000 bytes", a)
            .password(&"x".repeat(5000))
            .gets(5, "malformed_token"),
    ]
}

fn accepted_certificates() -> Vec<Row> {
    vec![
        row("SHA-1 thumbprint", "edge-1/sha1").certificate("client-edge-1-sha1"),
        row("SHA-256 thumbprint", "edge-1/sha256").certificate("client-edge-1-sha256"),
        row("secondary thumbprint", "edge-1/second").certificate("client-edge-1-second"),
        row("self-signed with a thumbprint", "edge-1/self").certificate("self-signed"),
        row("by authority, a module", "edge-1/ca-module").certificate("client-edge-1-ca-module"),
        row("by authority, a device", "leaf-7").certificate("client-leaf-7"),
        row("by the bundle's second authority", "edge-1/ca-module").certificate("second"),
        row("by certificate without a user name", "leaf-7")
            .user(None)
            .certificate("client-leaf-7"),
    ]
}

fn refused_certificates() -> Vec<Row> {
    let module = |name| row(name, "edge-1/ca-module");
    vec![
        row("another certificate than the registered", "edge-1/sha256")
            .certificate("renewed")
            .gets(5, "certificate_thumbprint"),
        module("from a foreign authority")
            .certificate("foreign/client-edge-1-ca-module")
            .gets(5, "certificate_untrusted"),
        module("a self-signed one where an authority is due")
            .certificate("self-signed-ca-module")
            .gets(5, "certificate_untrusted"),
        row("for another name", "edge-1/ca-2")
            .certificate("client-edge-1-ca-module")
            .gets(5, "certificate_name"),
        row("its device's certificate", "leaf-7/m")
            .certificate("client-leaf-7")
            .gets(5, "certificate_name"),
        row("a registered one for another name", "edge-1/misnamed")
            .certificate("client-edge-1-sha1")
            .gets(5, "certificate_name"),
        module("without extended key usage")
            .certificate("no-usage")
            .gets(5, "certificate_usage"),
        module("for servers only")
            .certificate("for-servers")
            .gets(5, "certificate_usage"),
        row("expired", "edge-1/ca-2")
            .certificate("expired")
            .gets(5, "certificate_expired"),
        row("not yet valid", "edge-1/ca-2")
            .certificate("early")
            .gets(5, "certificate_not_yet_valid"),
        row("an authority's own", "edge-1/ca-3")
            .certificate("authority")
            .gets(5, "certificate_is_ca"),
        row("on an entry of type sas", "edge-1/b")
            .certificate("client-edge-1-b")
            .gets(5, "certificate_not_accepted"),
        row("of a disabled identity", "edge-1/ca-off")
            .certificate("client-edge-1-ca-off")
            .gets(5, "disabled"),
        row("of an unknown identity", "edge-1/nobody")
            .certificate("client-edge-1-nobody")
            .gets(5, "unknown_identity"),
        row("right certificate, garbage password", "leaf-7")
            .certificate("client-leaf-7")
            .password("hunter2")
            .gets(5, "malformed_token"),
        row("none where one is due", "leaf-7").gets(5, "no_credentials"),
    ]
}

fn entry(id: &str, authentication: &Value) -> Value {
    let (device, module) = id.split_once('/').unwrap_or((id, ""));
    let mut entry = json!({ "deviceId": device, "authentication": authentication });
    if !module.is_empty() {
        entry["moduleId"] = module.into();
    }
    entry
}

fn with_keys(id: &str, primary: &[u8], secondary: &[u8]) -> Value {
    let [primary, secondary] = [primary, secondary].map(|key| BASE64_STANDARD.encode(key));
    let keys = json!({ "primaryKey": primary, "secondaryKey": secondary });
    entry(id, &json!({ "type": "sas", "symmetricKey": keys }))
}

fn with_thumbprints(id: &str, primary: &str, secondary: &str) -> Value {
    let prints = json!({ "primaryThumbprint": primary, "secondaryThumbprint": secondary });
    entry(
        id,
        &json!({ "type": "selfSigned", "x509Thumbprint": prints }),
    )
}

fn with_ca(id: &str) -> Value {
    entry(id, &json!({ "type": "certificateAuthority" }))
}

fn disabled(mut entry: Value) -> Value {
    entry["status"] = "disabled".into();
    entry
}

fn write_identities(setup: &Setup, entries: &[Value]) {
    let text = json!({ "identities": entries }).to_string();
    replace(&setup.path("identities.json"), &text);
}

/// The hash of a certificate file's first certificate, in hex.
fn thumbprint(setup: &Setup, name: &str, algorithm: &'static digest::Algorithm) -> String {
    let path = setup.path("certs").join(format!("{name}.pem"));
    let leaf = CertificateDer::from_pem_file(path).unwrap();
    let digest = digest::digest(algorithm, &leaf);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

fn table_identities(setup: &Setup) -> Vec<Value> {
    let sha1 = |name| thumbprint(setup, name, &digest::SHA1_FOR_LEGACY_USE_ONLY);
    let sha256 = |name| thumbprint(setup, name, &digest::SHA256);
    let zeros = "0".repeat(64);
    vec![
        with_keys(DEVICE, &DEVICE_KEY, &WRONG[..5]),
        with_keys("edge-1/a", &A, &A_SECONDARY),
        with_keys("edge-1/b", &B, &OTHERS),
        with_keys("edge-2", &OTHERS, &OTHERS),
        disabled(with_keys("edge-1/off", &OTHERS, &OTHERS)),
        disabled(with_keys("edge-3", &OTHERS, &OTHERS)),
        with_keys("edge-3/m", &OTHERS, &OTHERS),
        entry("edge-1/none", &json!({ "type": "none" })),
        with_thumbprints("edge-1/sha1", &sha1("client-edge-1-sha1"), ""),
        with_thumbprints(
            "edge-1/sha256",
            &sha256("client-edge-1-sha256").to_lowercase(),
            "",
        ),
        with_thumbprints("edge-1/second", &zeros, &sha256("client-edge-1-second")),
        with_thumbprints("edge-1/self", &sha256("self-signed"), ""),
        with_thumbprints("edge-1/misnamed", &sha1("client-edge-1-sha1"), ""),
        with_ca("edge-1/ca-module"),
        with_ca("edge-1/ca-2"),
        with_ca("edge-1/ca-3"),
        disabled(with_ca("edge-1/ca-off")),
        with_ca("leaf-7"),
        with_ca("leaf-7/m"),
    ]
}

fn params(name: &str, usages: Vec<ExtendedKeyUsagePurpose>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = usages;
    let now = time::OffsetDateTime::from(SystemTime::now());
    params.not_before = now - Duration::from_secs(86_400);
    params.not_after = now + Duration::from_secs(86_400);
    params
}

fn write_pair(dir: &Path, name: &str, chain: &str, key: &KeyPair) {
    fs::write(dir.join(format!("{name}.pem")), chain).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// Certificates that `edgehub certs` does not make, by a second authority of the trust bundle.
fn unusual_certificates(dir: &Path) {
    let client = || vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = time::OffsetDateTime::from(SystemTime::now());
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let mut authority = params("edge-1/ca-3", client());
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let authority_key = KeyPair::generate().unwrap();
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    write_pair(dir, "authority", &authority_pem, &authority_key);
    let bundle = fs::read_to_string(dir.join("ca.pem")).unwrap();
    fs::write(dir.join("ca.pem"), format!("{bundle}{authority_pem}")).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let issue = |file: &str, params: CertificateParams| {
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &issuer).unwrap().pem();
        write_pair(dir, file, &chain, &key);
    };
    issue("second", params("edge-1/ca-module", client()));
    issue("renewed", params("edge-1/sha256", client()));
    issue("no-usage", params("edge-1/ca-module", Vec::new()));
    let servers = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue("for-servers", params("edge-1/ca-module", servers));
    let mut expired = params("edge-1/ca-2", client());
    expired.not_after = now - hours(1);
    issue("expired", expired);
    let mut early = params("edge-1/ca-2", client());
    early.not_before = now + hours(1);
    issue("early", early);
    for (file, name) in [
        ("self-signed", "edge-1/self"),
        ("self-signed-ca-module", "edge-1/ca-module"),
    ] {
        let key = KeyPair::generate().unwrap();
        let pem = params(name, client()).self_signed(&key).unwrap().pem();
        write_pair(dir, file, &pem, &key);
    }
}

fn table_setup() -> Setup {
    let setup = Setup::new("{}", &[]);
    let dir = setup.path("certs");
    let clients = [
        "edge-1/sha1",
        "edge-1/sha256",
        "edge-1/second",
        "edge-1/ca-module",
        "edge-1/ca-off",
        "edge-1/b",
        "edge-1/nobody",
        "leaf-7",
    ];
    certs(&dir, &["localhost"], &clients);
    certs(&dir.join("foreign"), &["localhost"], &["edge-1/ca-module"]);
    unusual_certificates(&dir);
    write_identities(&setup, &table_identities(&setup));
    setup
}

/// Logs in and returns the connection with CONNACK's code.
async fn log_in(hub: &Hub, hello: &Hello, certificate: Option<&str>) -> (Client, u8) {
    let mut client = hub.tls(certificate).await.unwrap();
    let code = match tokio::time::timeout(LIMIT, client.connect(hello)).await {
        Ok(Ok(_)) => 0,
        Ok(Err(ClientError::Refused(code))) => code as u8,
        other => panic!("{}: {other:?}", hello.client_id),
    };
    (client, code)
}

async fn run_rows(rows: Vec<Row>) {
    let setup = table_setup();
    let hub = setup.start();
    let right = row("", "edge-1/a").token("edge-1/a", &A).hello();
    let mut wrong = Vec::new();
    for row in rows {
        let before = hub.metric("edgehub_client_connect_failed_total", &[]);
        let (mut client, code) = log_in(&hub, &row.hello(), row.certificate).await;
        if code != row.code {
            wrong.push(format!("{}: CONNACK {code}, not {}", row.name, row.code));
        }
        let reason = format!("reason=\"{}\"", row.reason);
        let known = if row.reason == "unknown_identity" {
            "unknown"
        } else {
            ""
        };
        let labels = [reason.as_str(), known];
        let counted = hub.metric("edgehub_client_connect_failed_total", &[]) - before;
        if code != 0 {
            closed(&mut client).await;
            if counted < 1.0 || hub.metric("edgehub_client_connect_failed_total", &labels) < 1.0 {
                wrong.push(format!("{}: not counted as {reason}", row.name));
            }
            // Every row begins without failures to its name.
            if row.client_id == right.client_id {
                assert_eq!(log_in(&hub, &right, None).await.1, 0, "after {}", row.name);
            }
        } else if counted > 0.0 {
            wrong.push(format!("{}: let in and counted as failed", row.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let metrics = hub.get("/metrics").1;
    assert!(
        !metrics.contains("nobody"),
        "a stranger's name is a label:\n{metrics}"
    );
    assert_eq!(hub.terminate(), Some(0));
}

#[tokio::test]
async fn tokens_that_are_accepted() {
    run_rows(accepted_tokens()).await;
}

#[tokio::test]
async fn tokens_that_are_refused() {
    run_rows(refused_tokens()).await;
}

#[tokio::test]
async fn names_and_passwords() {
    run_rows(forms()).await;
}

#[tokio::test]
async fn certificates_that_are_accepted() {
    run_rows(accepted_certificates()).await;
}

#[tokio::test]
async fn certificates_that_are_refused() {
    run_rows(refused_certificates()).await;
}

/// TLS with one protocol version and a certificate whose key may be another one's.
fn tls_with(
    dir: &Path,
    version: &'static SupportedProtocolVersion,
    certificate: &str,
    key: &str,
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(dir.join("ca.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_file_iter(dir.join(format!("{certificate}.pem"))).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{key}.key"))).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(resolver));
    Arc::new(config)
}

#[tokio::test]
async fn a_copied_certificate_fails_the_handshake() {
    let setup = table_setup();
    let hub = setup.start();
    let dir = setup.path("certs");
    let address = hub.address("tls");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (id, certificate) in [
            ("edge-1/sha256", "client-edge-1-sha256"),
            ("edge-1/ca-module", "client-edge-1-ca-module"),
        ] {
            let hello = row("", id).hello();
            let copied = tls_with(&dir, version, certificate, "client-leaf-7");
            let error = match Client::tls(address, "localhost", copied).await {
                Err(error) => error,
                // In TLS 1.3 the client has finished before the hub looks.
                Ok(mut client) => client.connect(&hello).await.unwrap_err(),
            };
            assert!(
                matches!(error, ClientError::Io(_) | ClientError::Closed),
                "{error:?}"
            );
            let own = tls_with(&dir, version, certificate, certificate);
            let mut client = Client::tls(address, "localhost", own).await.unwrap();
            client.connect(&hello).await.unwrap();
        }
    }
    let failed = hub.metric("edgehub_connections_closed_total", &["\"tls_handshake\""]);
    assert_eq!(failed as u64, 4);
    assert_eq!(
        hub.metric("edgehub_client_connect_success_total", &[]) as u64,
        4
    );
}

/// A connected client with its own token, over TLS.
async fn connected(hub: &Hub, id: &str, key: &[u8], seconds: i64) -> Client {
    let hello = row("", id).token_of(IOTHUB, id, key, seconds).hello();
    let (client, code) = log_in(hub, &hello, None).await;
    assert_eq!(code, 0, "{id}");
    client
}

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let setup = table_setup();
    let hub = setup.start();
    let mut b = connected(&hub, "edge-1/b", &B, 3600).await;
    let started = Instant::now();
    let mut a = connected(&hub, "edge-1/a", &A, -297).await;
    publish(&mut a, &output("a", "out", ""), b"still in").await;
    closed(&mut a).await;
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    hub.until("the end is counted", |hub| {
        hub.metric("edgehub_connections_closed_total", &["\"revoked\""]) as u64 == 1
    });
    hub.until("the reason is logged", |hub| {
        hub.log_text().contains("the token has expired")
    });
    publish(&mut b, &output("b", "out", ""), b"stays").await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let setup = table_setup();
    let dir = setup.path("certs");
    let key = KeyPair::generate().unwrap();
    let mut short = params("edge-1/self", vec![ExtendedKeyUsagePurpose::ClientAuth]);
    short.not_after = time::OffsetDateTime::from(SystemTime::now()) + Duration::from_secs(3);
    let pem = short.self_signed(&key).unwrap().pem();
    write_pair(&dir, "self-signed", &pem, &key);
    write_identities(&setup, &table_identities(&setup));
    let hub = setup.start();
    let hello = row("", "edge-1/self").hello();
    let (mut client, code) = log_in(&hub, &hello, Some("self-signed")).await;
    assert_eq!(code, 0);
    closed(&mut client).await;
    hub.until("the reason is logged", |hub| {
        hub.log_text().contains("the certificate has expired")
    });
    assert_eq!(log_in(&hub, &hello, Some("self-signed")).await.1, 5);
}

#[tokio::test]
async fn clients_leave_when_their_identity_changes() {
    let setup = table_setup();
    let keys = |id: &str| with_keys(id, &OTHERS, &B);
    let names = ["removed", "off", "rekeyed", "second", "retyped", "same"];
    let id = |name: &str| format!("edge-1/{name}");
    let mut before: Vec<_> = names.iter().map(|name| keys(&id(name))).collect();
    before.extend([
        with_keys("edge-5", &A, &A),
        keys("edge-5/m"),
        keys("edge-6/m"),
    ]);
    write_identities(&setup, &before);
    let hub = setup.start();
    let mut clients = Vec::new();
    for name in names {
        let key = if name == "second" { &B } else { &OTHERS };
        clients.push(connected(&hub, &id(name), key, 3600).await);
    }
    let mut of_device = connected(&hub, "edge-5/m", &OTHERS, 3600).await;
    let mut unlisted = connected(&hub, "edge-6/m", &OTHERS, 3600).await;
    let after = [
        disabled(keys("edge-1/off")),
        with_keys("edge-1/rekeyed", &A, &B),
        // The token was signed with the secondary key, which stays.
        with_keys("edge-1/second", &A, &B),
        with_ca("edge-1/retyped"),
        disabled(with_keys("edge-5", &A, &A)),
        keys("edge-5/m"),
        keys("edge-6/m"),
        keys("edge-1/same"),
    ];
    write_identities(&setup, &after);
    for gone in [0, 1, 2, 4] {
        closed(&mut clients[gone]).await;
    }
    closed(&mut of_device).await;
    publish(&mut clients[3], &output("second", "o", ""), b"stays").await;
    publish(&mut clients[5], &output("same", "o", ""), b"stays").await;
    let topic = "devices/edge-6/modules/m/messages/events/";
    publish(&mut unlisted, topic, b"stays").await;
    hub.until("all ends are counted", |hub| {
        hub.metric("edgehub_connections_closed_total", &["\"revoked\""]) as u64 == 5
    });
    assert_eq!(hub.metric("edgehub_connected_clients", &[]) as u64, 3);
    let removed = row("", "edge-1/removed").token("edge-1/removed", &OTHERS);
    assert_eq!(log_in(&hub, &removed.hello(), None).await.1, 5);
    let rekeyed = row("", "edge-1/rekeyed").token("edge-1/rekeyed", &A);
    assert_eq!(log_in(&hub, &rekeyed.hello(), None).await.1, 0);
}

#[tokio::test]
async fn guessing_is_slowed_and_locks_nobody_out() {
    let setup = table_setup();
    let hub = setup.start();
    let guess = row("", "edge-1/a").token("edge-1/a", &WRONG).hello();
    let mut guessing = Vec::new();
    for _ in 0..30 {
        let mut client = hub.tls(None).await.unwrap();
        let connect = FromClient::Connect(Connect {
            clean_session: true,
            keep_alive_seconds: 60,
            client_id: &guess.client_id,
            will: None,
            username: guess.username.as_deref(),
            password: guess.password.as_deref().map(str::as_bytes),
        });
        client.send(&connect).await.unwrap();
        guessing.push(client);
    }
    hub.until("all guesses are counted", |hub| {
        hub.metric("edgehub_client_connect_failed_total", &[]) as u64 == 30
    });
    let started = Instant::now();
    connected(&hub, "edge-1/a", &A, 3600).await;
    let other = row("", "edge-1/b").token("edge-1/b", &WRONG).hello();
    assert_eq!(log_in(&hub, &other, None).await.1, 5);
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    for _ in 0..3 {
        assert_eq!(log_in(&hub, &other, None).await.1, 5);
    }
    // 200, 400 and 800 ms.
    assert!(
        started.elapsed() > Duration::from_millis(1200),
        "{:?}",
        started.elapsed()
    );
    let started = Instant::now();
    connected(&hub, "edge-1/b", &B, 3600).await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn anonymous_clients_choose_no_metric_labels() {
    let mut setup = table_setup();
    setup.listeners = "[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"tcp\"\n\
                       anonymous = true\n"
        .to_owned();
    let hub = setup.start();
    let hello = Hello {
        client_id: "chosen-by-a-stranger".to_owned(),
        clean_session: true,
        ..Hello::default()
    };
    let mut client = Client::tcp(hub.tcp()).await.unwrap();
    client.connect(&hello).await.unwrap();
    let metrics = hub.get("/metrics").1;
    let label = metrics.lines().find(|line| line.contains(&hello.client_id));
    assert_eq!(label, None);
}
