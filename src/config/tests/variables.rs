//! Overrides from the environment.

use super::*;

#[test]
fn variables_override_scalar_keys() {
    let text = format!("{BASE}data_dir = 5\n");
    let (config, _) = parse_with(
        &text,
        &[
            ("EDGEHUB_DATA_DIR", "state"),
            ("EDGEHUB_DEVICE_ID", "edge-2"),
            ("EDGEHUB_STORE_SYNC", "interval"),
            ("EDGEHUB_STORE_INTERVAL_MS", "50"),
            ("EDGEHUB_STORE_MAX_BYTES", "32MiB"),
            ("EDGEHUB_LIMITS_MAX_MESSAGE_BYTES", "4096"),
            ("EDGEHUB_LIMITS_MAX_INFLIGHT", "7"),
            ("EDGEHUB_TLS_CERTIFICATE", "c.pem"),
            ("EDGEHUB_TLS_KEY", "/k.pem"),
            ("EDGEHUB_HTTP_BIND", "127.0.0.1:0"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(
        config.data_dir,
        Path::new("state"),
        "relative to the working directory"
    );
    assert_eq!(config.device_id, "edge-2");
    assert_eq!(config.store.sync, Sync::Interval { ms: 50 });
    assert_eq!(config.store.max_bytes, 32 << 20);
    assert_eq!(config.limits.max_message_bytes, 4_096);
    assert_eq!(config.limits.max_inflight, 7);
    let tls = config.tls.unwrap();
    assert_eq!(tls.certificate, Path::new("c.pem"));
    assert_eq!(config.http.unwrap().bind.port(), 0);
}

#[test]
fn broken_variables_are_called_by_name() {
    let parsed = parse_with(
        &format!("{BASE}{TLS}"),
        &[
            ("EDGEHUB_DEVICE_ID", ""),
            ("EDGEHUB_SERVER_WORKERS", "many"),
            ("EDGEHUB_STORE_SYNC", "Always"),
            ("EDGEHUB_STORE_SNYC", "os"),
            ("EDGEHUB_LIMITS_MAX_MESSAGE_BYTES", "big"),
        ],
    );
    let diagnostics = parsed.unwrap_err();
    assert!(
        diagnostics
            .iter()
            .all(|one| one.file == Path::new("environment") || one.severity == Severity::Warning)
    );
    let warnings = said(diagnostics.clone(), Severity::Warning);
    let unknown = "0:0: EDGEHUB_STORE_SNYC: overrides nothing (did you mean `EDGEHUB_STORE_SYNC`?)";
    assert!(warnings.iter().any(|one| one == unknown), "{warnings:#?}");
    assert_eq!(
        said(diagnostics, Severity::Error),
        [
            "0:0: EDGEHUB_DEVICE_ID: `device_id` is empty",
            "0:0: EDGEHUB_STORE_SYNC: `sync` must be \"always\", \"interval\", \"os\" or \
             \"memory\", not \"Always\" (did you mean `always`?)",
            "0:0: EDGEHUB_LIMITS_MAX_MESSAGE_BYTES: `max_message_bytes` is not a size: \"big\" \
             (a number of bytes, or a number with KiB, MiB, GiB, KB, MB or GB)",
            "0:0: EDGEHUB_SERVER_WORKERS: `workers` must be from 0 to 1024, not many",
        ]
    );
}
