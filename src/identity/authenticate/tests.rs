//! Every way in, and every way that must stay shut.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use ring::hmac;

const HOSTS: Audience<'_> = Audience {
    iothub_hostname: "Hub.net",
    gateway_hostname: "gateway",
};
/// 2025-06-01, between the dates of the certificates below.
const NOW: u64 = 1_748_736_000;

fn id(text: &str) -> Identity {
    Identity::parse(text).unwrap()
}

fn registry(thumbprints: [&str; 2]) -> Registry {
    let key = |byte| BASE64.encode([byte; 32]);
    let sas = |first, second| {
        format!(
            r#""authentication":{{"type":"sas","symmetricKey":{{"primaryKey":"{}",
                "secondaryKey":"{}"}}}}"#,
            key(first),
            key(second)
        )
    };
    let [sha1, sha256] = thumbprints;
    Registry::parse(&format!(
        r#"{{"identities":[
        {{"deviceId":"d",{}}},
        {{"deviceId":"d","moduleId":"m",{}}},
        {{"deviceId":"d","moduleId":"n",{}}},
        {{"deviceId":"d","moduleId":"off","status":"disabled",{}}},
        {{"deviceId":"d","moduleId":"none","authentication":{{"type":"none"}}}},
        {{"deviceId":"d","moduleId":"one","authentication":{{"type":"sas",
            "symmetricKey":{{"primaryKey":"{}"}}}}}},
        {{"deviceId":"gone","status":"disabled",{}}},
        {{"deviceId":"gone","moduleId":"m",{}}},
        {{"deviceId":"ca","moduleId":"m","authentication":{{"type":"certificateAuthority"}}}},
        {{"deviceId":"thumb","authentication":{{"type":"selfSigned","x509Thumbprint":
            {{"primaryThumbprint":"{sha1}","secondaryThumbprint":"{sha256}"}}}}}}
        ]}}"#,
        sas(1, 2),
        sas(3, 4),
        sas(5, 6),
        sas(7, 8),
        key(9),
        sas(10, 11),
        sas(12, 13)
    ))
    .unwrap()
}

fn token(resource: &str, key: u8, expiry: u64) -> Option<Password> {
    let resource = resource.replace('/', "%2f");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[key; 32]);
    let signature = hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = BASE64.encode(signature).replace('=', "%3D");
    let fields = format!("sr={resource}&sig={signature}&se={expiry}");
    Password::read(format!("SharedAccessSignature {fields}").as_bytes())
}

/// Who, the audience without `devices/`, the key that signs, the expiry after `NOW`, the result.
const TOKENS: [(&str, &str, u8, i64, &str); 30] = [
    ("d/m", "hub.net/d/modules/m", 3, 0, "ok"),
    ("d/m", "hub.net/d/modules/m", 4, 3600, "ok"),
    ("d/m", "GATEWAY/D/modules/M", 3, 0, "ok"),
    ("d/m", "hub.net/d/modules/m", 3, -300, "ok"),
    ("d/m", "hub.net/d/modules/m", 3, -301, "token_expired"),
    ("d/m", "hub.net/d/modules/m", 5, 0, "token_signature"),
    ("d/m", "hub.net/d/modules/m", 1, 0, "token_signature"),
    ("d/m", "other.net/d/modules/m", 3, 0, "token_host"),
    ("d/m", "hub.net/d/modules/n", 5, 0, "token_identity"),
    ("d/m", "hub.net/d/modules/n", 3, 0, "token_identity"),
    ("d/m", "hub.net/e/modules/m", 3, 0, "token_identity"),
    ("d/m", "hub.net/d", 1, 0, "ok"),
    ("d/m", "hub.net/d", 2, 0, "ok"),
    ("d/m", "hub.net/d", 3, 0, "token_signature"),
    ("d", "hub.net/d", 1, 0, "ok"),
    ("d", "hub.net/d/modules/m", 3, 0, "token_identity"),
    ("d/x", "hub.net/d/modules/x", 0, 0, "unknown_identity"),
    ("d/x", "hub.net/d", 1, 0, "unknown_identity"),
    ("D/m", "hub.net/d/modules/m", 3, 0, "unknown_identity"),
    ("d/off", "hub.net/d/modules/off", 7, 0, "disabled"),
    ("d/off", "hub.net/d", 1, 0, "disabled"),
    ("d/off", "hub.net/d/modules/off", 1, 0, "token_signature"),
    ("d/none", "hub.net/d/modules/none", 0, 0, "no_method"),
    ("d/none", "hub.net/d", 1, 0, "no_method"),
    ("d/one", "hub.net/d/modules/one", 9, 0, "ok"),
    ("d/one", "hub.net/d/modules/one", 0, 0, "token_signature"),
    ("gone", "hub.net/gone", 10, 0, "disabled"),
    ("gone/m", "hub.net/gone/modules/m", 12, 0, "device_disabled"),
    ("ca/m", "hub.net/ca/modules/m", 0, 0, "token_not_accepted"),
    ("ca/m", "hub.net/ca", 0, 0, "unknown_identity"),
];

#[test]
fn tokens() {
    let registry = registry([&"0".repeat(40), ""]);
    for (who, audience, key, after, expected) in TOKENS {
        let resource = audience.replacen('/', "/devices/", 1);
        let expiry = NOW.saturating_add_signed(after);
        let shown = Credentials {
            identity: id(who),
            password: token(&resource, key, expiry),
            certificate: None,
        };
        let decided = authenticate(&registry, &shown, &HOSTS, NOW);
        let row = format!("{who} {resource} {key} {after}");
        assert_eq!(
            decided.as_ref().map_or_else(|why| why.reason(), |_| "ok"),
            expected,
            "{row}"
        );
        if let Ok(client) = decided {
            assert_eq!(client.identity(), &shown.identity);
            assert_eq!(client.expires_at(), Some(expiry + 300));
        }
    }
}

#[test]
fn a_host_that_is_not_configured_is_no_audience() {
    let nowhere = Audience {
        iothub_hostname: "",
        gateway_hostname: "",
    };
    let shown = Credentials {
        identity: id("d/m"),
        password: token("hub.net/devices/d/modules/m", 3, NOW),
        certificate: None,
    };
    let decided = authenticate(
        &registry(["", "0".repeat(64).as_str()]),
        &shown,
        &nowhere,
        NOW,
    );
    assert_eq!(decided, Err(Denied::TokenHost));
}

struct Made {
    name: &'static str,
    is_ca: bool,
    usage: Vec<ExtendedKeyUsagePurpose>,
    last_year: i32,
}

const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;

fn certificate(made: Made, ca_trusted: bool) -> ClientCertificate {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, made.name);
    params.extended_key_usages = made.usage;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(made.last_year, 1, 1);
    if made.is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    ClientCertificate::from_der(der.der(), ca_trusted).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who, the certificate's name, whether it is a CA, its usage, its last year, whether its chain
/// leads to the trust bundle, the result.
const CERTIFICATES: [(&str, &str, bool, &str, i32, bool, &str); 12] = [
    ("ca/m", "ca/m", false, "client", 2030, true, "ok"),
    ("ca/m", "ca/m", false, "client", 2030, false, "untrusted"),
    ("ca/m", "ca/n", false, "client", 2030, true, "name"),
    ("ca/m", "CA/m", false, "client", 2030, true, "name"),
    ("ca/m", "ca", false, "client", 2030, true, "name"),
    ("ca/m", "ca/m", false, "server", 2030, true, "usage"),
    ("ca/m", "ca/m", false, "", 2030, true, "usage"),
    ("ca/m", "ca/m", true, "client", 2030, true, "is_ca"),
    ("ca/m", "ca/m", false, "client", 2024, true, "expired"),
    (
        "ca/x",
        "ca/x",
        false,
        "client",
        2030,
        true,
        "unknown_identity",
    ),
    ("d/m", "d/m", false, "client", 2030, true, "not_accepted"),
    ("d/none", "d/none", false, "client", 2030, true, "no_method"),
];

#[test]
fn certificates_of_an_authority() {
    let registry = registry([&"0".repeat(40), ""]);
    for (who, name, is_ca, usage, last_year, trusted, expected) in CERTIFICATES {
        let usage = match usage {
            "client" => vec![CLIENT],
            "server" => vec![ExtendedKeyUsagePurpose::ServerAuth],
            _ => vec![],
        };
        let made = Made {
            name,
            is_ca,
            usage,
            last_year,
        };
        let shown = Credentials {
            identity: id(who),
            password: None,
            certificate: Some(certificate(made, trusted)),
        };
        match authenticate(&registry, &shown, &HOSTS, NOW) {
            Ok(client) => {
                assert_eq!(expected, "ok", "{who} {name}");
                assert_eq!(client.expires_at(), Some(1_893_456_000));
                let decided = authenticate(&registry, &shown, &HOSTS, 0);
                assert_eq!(decided, Err(Denied::CertificateNotYetValid));
            }
            Err(why) => {
                let reason = why.reason();
                let reason = reason.strip_prefix("certificate_").unwrap_or(reason);
                assert_eq!(reason, expected, "{who} {name}");
            }
        }
    }
}

#[test]
fn certificates_by_thumbprint() {
    let made = |name, usage| Made {
        name,
        is_ca: true,
        usage,
        last_year: 2030,
    };
    let known = certificate(made("thumb", vec![CLIENT]), false);
    let (sha1, sha256) = (hex(&known.sha1).to_uppercase(), hex(&known.sha256));
    let other = certificate(made("thumb", vec![CLIENT]), true);
    let wrong_usage = certificate(made("thumb", vec![]), true);
    let wrong_name = certificate(made("other", vec![CLIENT]), true);
    let shows = |certificate: &ClientCertificate| Credentials {
        identity: id("thumb"),
        password: None,
        certificate: Some(certificate.clone()),
    };
    for thumbprints in [[sha1.as_str(), ""], ["", &sha256], [&"0".repeat(64), &sha1]] {
        let registry = registry(thumbprints);
        let decided = authenticate(&registry, &shows(&known), &HOSTS, NOW).unwrap();
        assert_eq!(decided.expires_at(), Some(1_893_456_000));
        let decided = authenticate(&registry, &shows(&other), &HOSTS, NOW);
        assert_eq!(decided, Err(Denied::CertificateThumbprint));
    }
    let decides = |shown: &ClientCertificate| {
        let registry = registry([&hex(&shown.sha1), ""]);
        authenticate(&registry, &shows(shown), &HOSTS, NOW)
    };
    assert_eq!(decides(&wrong_usage), Err(Denied::CertificateUsage));
    assert_eq!(decides(&wrong_name), Err(Denied::CertificateName));
    let mut both = shows(&known);
    both.password = Password::read(b"no token");
    let why = Err(Denied::MalformedToken(TokenError::NotAToken));
    assert_eq!(
        authenticate(&registry([&sha1, ""]), &both, &HOSTS, NOW),
        why
    );
}

#[test]
fn nothing_shown_is_nobody() {
    let shown = Credentials {
        identity: id("d/m"),
        password: None,
        certificate: None,
    };
    let decided = authenticate(&registry([&"0".repeat(40), ""]), &shown, &HOSTS, NOW);
    assert_eq!(decided, Err(Denied::NoCredentials));
    assert_eq!(Denied::NoCredentials.reason(), "no_credentials");
}
