//! Clients that are no modules and log in by a certificate that names no identity.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use edgehub::client::{Client, ClientError, Hello};
use edgehub::mqtt::SubAckCode;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use common::{Hub, LIMIT, Setup, certs, closed, message_with_topic, publish, replace};

const RULE: &str = "[[authorization]]\nidentities = [\"cert:scanner\", \"cert:Büro 2:x\"]\n\
    allow = [{ operations = [\"mqtt:publish\", \"mqtt:subscribe\"], resources = [\"scans/#\"] }]\n";
const REGISTRY: &str = r#"{"identities":[
{"deviceId":"leaf-7","authentication":{"type":"certificateAuthority"}},
{"deviceId":"edge-1","moduleId":"a","authentication":{"type":"certificateAuthority"}}]}"#;

/// Validity from now, in hours.
type Hours = (i64, i64);
const NOW: Hours = (-1, 1);

/// A second authority of the trust bundle, for certificates as the command does not make them.
struct Authority<'a> {
    dir: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(dir: &'a Path) -> Self {
        let mut own = params("authority", NOW, vec![ExtendedKeyUsagePurpose::ClientAuth]);
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        own.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().unwrap();
        let pem = own.self_signed(&key).unwrap().pem();
        write(dir, "authority", &pem, &key);
        let bundle = fs::read_to_string(dir.join("ca.pem")).unwrap();
        fs::write(dir.join("ca.pem"), format!("{bundle}{pem}")).unwrap();
        let issuer = Issuer::new(own, key);
        Self { dir, issuer }
    }

    fn issue(&self, file: &str, params: &CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        write(self.dir, file, &pem, &key);
    }
}

fn write(dir: &Path, file: &str, pem: &str, key: &KeyPair) {
    fs::write(dir.join(format!("{file}.pem")), pem).unwrap();
    fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

fn params(name: &str, hours: Hours, usages: Vec<ExtendedKeyUsagePurpose>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = usages;
    let now = time::OffsetDateTime::from(SystemTime::now());
    params.not_before = now + time::Duration::hours(hours.0);
    params.not_after = now + time::Duration::hours(hours.1);
    params
}

fn setup() -> Setup {
    let mut setup = Setup::new("{}", &[]);
    setup.extra = RULE.to_owned();
    replace(&setup.path("identities.json"), REGISTRY);
    let dir = setup.path("certs");
    let clients = ["scanner", "printer", "leaf-7", "edge-1/gone"];
    certs(&dir, &["localhost"], &clients);
    certs(&dir.join("foreign"), &["localhost"], &["scanner"]);
    setup
}

fn hello(client_id: &str, username: Option<&str>) -> Hello {
    Hello {
        client_id: client_id.to_owned(),
        username: username.map(str::to_owned),
        password: None,
        clean_session: true,
        keep_alive_seconds: 60,
    }
}

async fn log_in(hub: &Hub, certificate: &str, hello: &Hello) -> (Client, u8) {
    let mut client = hub.tls(Some(certificate)).await.unwrap();
    let code = match tokio::time::timeout(LIMIT, client.connect(hello)).await {
        Ok(Ok(_)) => 0,
        Ok(Err(ClientError::Refused(code))) => code as u8,
        other => panic!("{certificate}: {other:?}"),
    };
    (client, code)
}

#[tokio::test]
async fn rules_say_whom_the_authority_lets_in() {
    let setup = setup();
    let dir = setup.path("certs");
    let authority = Authority::new(&dir);
    let client = || vec![ExtendedKeyUsagePurpose::ClientAuth];
    authority.issue("buero", &params("Büro 2:x", NOW, client()));
    let hub = setup.start();
    for (certificate, username) in [
        ("client-scanner", None),
        ("client-scanner", Some("")),
        ("buero", None),
    ] {
        let (mut one, code) = log_in(&hub, certificate, &hello("any id", username)).await;
        assert_eq!(code, 0, "{certificate} {username:?}");
        let granted = one.subscribe("scans/#").await.unwrap();
        assert_ne!(granted, SubAckCode::Failure);
        for filter in ["#", "devices/leaf-7/messages/devicebound/#"] {
            let refused = one.subscribe(filter).await.unwrap();
            assert_eq!(refused, SubAckCode::Failure, "{filter}");
        }
        let (mut other, code) = log_in(&hub, certificate, &hello("", None)).await;
        assert_eq!(code, 0);
        publish(&mut other, "scans/1", b"x").await;
        assert_eq!(message_with_topic(&mut one).await.0, "scans/1");
    }
    assert!(hub.get("/metrics").1.contains("id=\"cert:scanner\""));
    // The same client id belongs to the certificate, and to no other.
    let (mut scanner, _) = log_in(&hub, "client-scanner", &hello("same", None)).await;
    assert_eq!(log_in(&hub, "buero", &hello("same", None)).await.1, 0);
    publish(&mut scanner, "scans/1", b"still there").await;
}

#[tokio::test]
async fn who_is_not_let_in() {
    let setup = setup();
    let dir = setup.path("certs");
    let authority = Authority::new(&dir);
    let client = || vec![ExtendedKeyUsagePurpose::ClientAuth];
    let servers = vec![ExtendedKeyUsagePurpose::ServerAuth];
    authority.issue("expired", &params("scanner", (-2, -1), client()));
    authority.issue("early", &params("scanner", (1, 2), client()));
    authority.issue("for-servers", &params("scanner", NOW, servers));
    authority.issue("no-usage", &params("scanner", NOW, Vec::new()));
    authority.issue("variable", &params("{{anonymous}}", NOW, client()));
    authority.issue("wildcard", &params("#", NOW, client()));
    let mut own = params("scanner", NOW, client());
    own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.issue("authority-scanner", &own);
    let hub = setup.start();
    // Each another client, so that no answer is held back.
    for (certificate, client_id, code, reason) in [
        ("client-printer", "x1", 5, "certificate_not_named"),
        ("client-edge-1-gone", "x2", 5, "certificate_name"),
        ("foreign/client-scanner", "x3", 5, "certificate_untrusted"),
        ("expired", "x4", 5, "certificate_expired"),
        ("early", "x5", 5, "certificate_not_yet_valid"),
        ("for-servers", "x6", 5, "certificate_usage"),
        ("no-usage", "x7", 5, "certificate_usage"),
        ("authority-scanner", "x8", 5, "certificate_is_ca"),
        ("variable", "x9", 5, "certificate_name"),
        ("wildcard", "x10", 5, "certificate_name"),
        // Whoever claims to be of the registry is judged by it.
        ("client-scanner", "leaf-7", 5, "certificate_name"),
        ("client-leaf-7", "x11", 5, "unknown_identity"),
        ("client-leaf-7", "leaf-7", 0, ""),
    ] {
        let label = format!("reason=\"{reason}\"");
        let count = |hub: &Hub| hub.metric("edgehub_client_connect_failed_total", &[&label]);
        let before = count(&hub);
        let got = log_in(&hub, certificate, &hello(client_id, None)).await.1;
        assert_eq!(got, code, "{certificate} {client_id}");
        let counted = if code == 0 { 0.0 } else { 1.0 };
        assert_eq!(count(&hub), before + counted, "{certificate} {reason}");
    }
    // With a user name or a password it is these that count.
    let mut with_password = hello("y", Some(""));
    with_password.password = Some("x".to_owned());
    assert_eq!(log_in(&hub, "client-scanner", &with_password).await.1, 4);
    let with_name = hello("z", Some("scanner"));
    assert_eq!(log_in(&hub, "client-scanner", &with_name).await.1, 4);
}

#[tokio::test]
async fn a_client_leaves_with_its_rule_with_its_name_and_with_its_certificate() {
    let mut setup = setup();
    let dir = setup.path("certs");
    let authority = Authority::new(&dir);
    let client = || vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut short = params("scanner", NOW, client());
    short.not_after = time::OffsetDateTime::from(SystemTime::now()) + Duration::from_secs(4);
    authority.issue("short", &short);
    authority.issue("buero", &params("Büro 2:x", NOW, client()));
    let hub = setup.start();
    let (mut ends, code) = log_in(&hub, "short", &hello("short", None)).await;
    assert_eq!(code, 0);
    let (mut buero, code) = log_in(&hub, "buero", &hello("buero", None)).await;
    assert_eq!(code, 0);
    closed(&mut ends).await;
    assert!(hub.log_text().contains("the certificate has expired"));
    // An identity of this name is listed now: it is the registry's.
    let (mut named, code) = log_in(&hub, "client-scanner", &hello("named", None)).await;
    assert_eq!(code, 0);
    let more = REGISTRY.replace(
        "leaf-7\",",
        "scanner\",\"authentication\":{\"type\":\"none\"}},{\"deviceId\":\"leaf-7\",",
    );
    replace(&setup.path("identities.json"), &more);
    closed(&mut named).await;
    publish(&mut buero, "scans/1", b"still in").await;
    setup.extra = RULE.replace(", \"cert:Büro 2:x\"", "");
    setup.write_config();
    closed(&mut buero).await;
    assert_eq!(log_in(&hub, "buero", &hello("x", None)).await.1, 5);
    hub.until("the reason is in the log", |hub| {
        let log = hub.log_text();
        log.contains("no authorization rule names cert:B")
    });
}
