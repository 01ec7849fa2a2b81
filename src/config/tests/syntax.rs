//! Places, and texts that are not TOML.

use super::*;

#[test]
fn columns_count_characters() {
    let errors = errors_below("[log]\n\"é\" = 1\nformat = { \"é\" = 1 }");
    assert_eq!(errors[0], "9:1: unknown key `é` in `[log]`");
    assert_eq!(errors[1], "10:10: `format` must be a string, not a table");
}

#[test]
fn syntax_errors_come_with_the_others() {
    let text = format!("{BASE}gateway_hostname = \"x\n[store]\nsync == 1\n[server]\nworker = 1\n");
    let errors = errors(parse(&text));
    let places: Vec<&str> = errors
        .iter()
        .filter_map(|one| one.split(": ").next())
        .collect();
    assert_eq!(places, ["5:22", "7:7", "9:1"], "{errors:#?}");
    assert!(errors[2].ends_with("(did you mean `workers`?)"));
    let twice = format!("{BASE}{TLS}device_id = \"x\"\n[tls]\n");
    let errors = self::errors(parse(&twice));
    assert!(
        errors.iter().any(|one| one == "9:2: duplicate key"),
        "{errors:#?}"
    );
}

#[test]
fn every_spelling_of_a_table_has_its_place() {
    let text = "\u{feff}device_id.x = 1\ntls.certificate = \"c\"\n\
                listener = [ {}, { bind = 3 } ]\r\n[ store ]\n limits.x = 3\n";
    assert_eq!(
        errors(parse(text)),
        [
            "0:0: `iothub_hostname` is missing",
            "0:0: `manifest` is missing",
            "0:0: `identities` is missing",
            "1:1: `device_id` must be a string, not a table",
            "2:1: `key` is missing",
            "3:14: `bind` is missing",
            "3:27: `bind` must be a string, not an integer (put the value in double quotes)",
            "5:2: unknown section `limits` in `[store]`",
        ]
    );
}

#[test]
fn a_broken_value_causes_no_second_error() {
    let section = "[store]\nsegment_bytes = \"2GiB\"\n[limits]\nmax_message_bytes = \"16MiB\"";
    assert_eq!(errors_below(section).len(), 1);
    let errors = errors(parse("[tls\ncertificate = \"c\"\n"));
    assert_eq!(errors, ["1:5: unclosed table, expected `]`"]);
}
