//! Checks across keys.

use super::*;

#[test]
fn listeners_open_to_the_network_need_a_word() {
    let listener = "[[listener]]\nbind = \"0.0.0.0:1883\"\ntransport = \"tcp\"\nanonymous = true\n";
    assert_eq!(
        errors_below(listener),
        [
            "10:13: transport \"tcp\" sends keys in clear text, on 0.0.0.0 \
             (use \"tls\", bind to 127.0.0.1, or set `allow_cleartext = true`)",
            "11:13: anonymous clients are let in from the network, on 0.0.0.0 \
             (bind to 127.0.0.1, or set `allow_remote_anonymous = true`)",
        ]
    );
    let allowed = "allow_cleartext = true\nallow_remote_anonymous = true";
    assert_eq!(errors_below(&format!("{listener}{allowed}")), [""; 0]);
    for loopback in [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        let text = listener.replace("0.0.0.0:1883", loopback);
        assert_eq!(errors_below(&text), [""; 0], "{loopback}");
    }
}

#[test]
fn encrypted_listeners_need_tls() {
    let text = format!("{BASE}[[listener]]\nbind = \"127.0.0.1:8883\"\n");
    let expected =
        "5:1: transport \"tls\" needs a `[tls]` section (it names `certificate` and `key`)";
    assert_eq!(errors(parse(&text)), [expected]);
    let plain = format!("{text}transport = \"tcp\"\n");
    assert_eq!(parse(&plain).unwrap().0.tls, None);
    // A section that is there and broken is not missing.
    let broken = format!("{text}[tls]\nkey = 1\n");
    let expected = [
        "7:1: `certificate` is missing",
        "8:7: `key` must be a string, not an integer (put the value in double quotes)",
    ];
    assert_eq!(errors(parse(&broken)), expected);
}

#[test]
fn one_port_is_bound_once() {
    let two = |one: &str, other: &str| {
        let section = format!("[[listener]]\nbind = \"{one}\"\n[[listener]]\nbind = \"{other}\"\n");
        errors_below(&section)
    };
    let expected = "11:8: 127.0.0.1:8883 is taken: the file binds 0.0.0.0:8883 already";
    assert_eq!(two("0.0.0.0:8883", "127.0.0.1:8883"), [expected]);
    assert_eq!(two("127.0.0.1:8883", "127.0.0.1:8883").len(), 1);
    assert_eq!(two("127.0.0.1:0", "127.0.0.1:0"), [""; 0]);
    assert_eq!(two("127.0.0.1:8883", "127.0.0.2:8883"), [""; 0]);
    assert_eq!(two("127.0.0.1:8883", "[::1]:8883"), [""; 0]);
    let http = "[http]\nbind = \"127.0.0.1:8883\"";
    let expected = "9:8: 127.0.0.1:8883 is taken: the file binds 0.0.0.0:8883 already";
    assert_eq!(errors_below(http), [expected]);
}

#[test]
fn no_listener_at_all_is_an_error_only_when_written() {
    let text = format!("listener = []\n{BASE}{TLS}");
    let expected = "1:12: there is no listener (leave `listener` out for TLS on 0.0.0.0:8883)";
    assert_eq!(errors(parse(&text)), [expected]);
    assert_eq!(errors_below("[[listener]]\n"), ["8:1: `bind` is missing"]);
}

#[test]
fn sizes_have_to_fit_each_other() {
    for (section, expected) in [
        (
            "[store]\nmax_bytes = \"3MiB\"",
            "9:13: `max_bytes` (3145728) is less than the store needs: 3686400 (one segment to \
             write, one in reserve for acknowledgements, one to turn over; lower \
             `max_message_bytes` makes segments smaller)",
        ),
        (
            "[limits]\nmax_message_bytes = \"8MiB\"",
            "9:21: `max_message_bytes` (8388608) does not fit a segment, which has room for \
             8273920 (raise `segment_bytes` in `[store]`)",
        ),
        (
            "[store]\nsegment_bytes = \"1MiB\"",
            "9:17: `max_message_bytes` (1048576) does not fit a segment, which has room for \
             933888 (raise `segment_bytes` in `[store]`)",
        ),
        (
            "[limits]\nendpoint_max_bytes = \"64KiB\"",
            "9:22: `endpoint_max_bytes` is less than `max_message_bytes` \
             (the largest message would never be queued)",
        ),
    ] {
        assert_eq!(errors_below(section), [expected]);
    }
}

#[test]
fn doubtful_values_are_warned_of() {
    let section = "[store]\nsync = \"memory\"\ninterval_ms = 5\nsegment_bytes = \"5MiB\"\n";
    let (_, warnings) = parse(&format!("{BASE}{TLS}{section}")).unwrap();
    assert_eq!(
        said(warnings, Severity::Warning),
        [
            "10:15: `interval_ms` has no effect (it belongs to `sync = \"interval\"`)",
            "11:17: `segment_bytes` is not a multiple of 4MiB \
             (flash cards allocate in such steps, and wear faster otherwise)",
        ]
    );
}

#[test]
fn a_proxy_may_be_anywhere_but_not_everywhere() {
    let listener = "[[listener]]\nbind = \"127.0.0.1:0\"\ntrusted_proxies";
    let warnings_of = |ranges: &str| {
        let (_, warnings) = parse(&format!("{BASE}{TLS}{listener} = {ranges}\n")).unwrap();
        said(warnings, Severity::Warning)
    };
    assert_eq!(warnings_of("[\"10.0.0.0/8\", \"::1\"]"), [""; 0]);
    for ranges in ["[\"10.0.0.7\", \"0.0.0.0/0\"]", "[\"::/0\"]"] {
        assert_eq!(
            warnings_of(ranges),
            [
                "10:19: every address is a trusted proxy, so clients can claim any address \
                 (name the proxies' own addresses)"
            ]
        );
    }
}

#[test]
fn websocket_towards_the_cloud_has_a_path_and_ports_of_its_own() {
    let read = |section: &str| {
        let (config, warnings) = parse(&format!("{BASE}{TLS}[upstream]\n{section}")).unwrap();
        let servers = config.upstream.servers.iter().map(ToString::to_string);
        let servers = servers.collect::<Vec<_>>().join(" ");
        (
            servers,
            config.upstream.path,
            said(warnings, Severity::Warning).join("\n"),
        )
    };
    let (servers, path, warnings) = read("kind = \"iothub\"\ntransport = \"wss\"");
    assert!(
        servers.ends_with(":443") && warnings.is_empty(),
        "{servers} {warnings}"
    );
    assert_eq!(path, "/$iothub/websocket");
    let mqtt = "kind = \"mqtt\"\nservers = [\"a\", \"b:1\"]\n";
    let (servers, path, _) = read(&format!("{mqtt}transport = \"ws\""));
    assert_eq!((&*servers, &*path), ("a:80 b:1", "/mqtt"));
    let (_, path, _) = read(&format!("{mqtt}transport = \"ws\"\npath = \"/?a=b\""));
    assert_eq!(path, "/?a=b");
    let (_, _, warnings) = read(&format!("{mqtt}path = \"/x\""));
    assert!(
        warnings.contains("no effect without WebSocket"),
        "{warnings}"
    );
    for bad in ["mqtt", "/a b", "/ä", "/#"] {
        let errors = errors_below(&format!("[upstream]\n{mqtt}path = \"{bad}\""));
        assert!(errors[0].contains("is no path of a URL"), "{errors:?}");
    }
}

#[test]
fn mqtt_5_towards_the_cloud_needs_no_user_name_and_is_not_the_iot_hubs() {
    let said_of = |section: &str| {
        let (_, warnings) = parse(&format!("{BASE}{TLS}{section}")).unwrap();
        said(warnings, Severity::Warning).join("\n")
    };
    let mqtt = "[upstream]\nkind = \"mqtt\"\nservers = [\"h\"]\npassword_file = \"p\"\n";
    assert_eq!(said_of(&format!("{mqtt}version = \"5\"")), "");
    let errors = errors_below(mqtt);
    assert!(
        errors[0].contains("a password needs a `username`"),
        "{errors:?}"
    );
    let iothub = "[upstream]\nkind = \"iothub\"\nversion = \"5\"\n";
    let hub_itself = said_of(iothub);
    assert!(hub_itself.contains("speaks MQTT 3.1.1"), "{hub_itself}");
    assert_eq!(said_of(&format!("{iothub}servers = [\"parent\"]")), "");
}

#[test]
fn a_way_up_in_the_clear_is_remarked_on() {
    let said_of = |servers: &str| {
        let section = format!(
            "[upstream]\nkind = \"mqtt\"\nservers = [{servers}]\ntransport = \"tcp\"\n\
             ca = \"ca.pem\"\nusername = \"u\"\npassword_file = \"secret\"\n"
        );
        let (_, warnings) = parse(&format!("{BASE}{TLS}{section}")).unwrap();
        said(warnings, Severity::Warning).join("\n")
    };
    let near = said_of("\"localhost\", \"127.0.0.1:1\", \"[::1]:1\"");
    assert!(near.contains("`ca` has no effect without TLS"), "{near}");
    assert!(!near.contains("as it is"), "{near}");
    let far = said_of("\"localhost\", \"broker.example\"");
    assert!(
        far.contains("the password goes over the network as it is"),
        "{far}"
    );
}
