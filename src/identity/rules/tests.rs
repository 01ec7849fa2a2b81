use super::*;

/// Clients by the names that the table uses.
fn who(name: &'static str) -> Who<'static> {
    let (device_id, module_id) = match name {
        ANONYMOUS => (None, None),
        // A device whose id looks like the name of a user.
        "device user:bob" => (Some("user:bob"), None),
        _ if name.starts_with("user:") || name.starts_with("cert:") => (None, None),
        _ => match name.split_once('/') {
            Some((device, module)) => (Some(device), Some(module)),
            None => (Some(name), None),
        },
    };
    let name = name.strip_prefix("device ").unwrap_or(name);
    Who {
        name,
        client_id: name,
        device_id,
        module_id,
        this_device_id: "edge-1",
    }
}

fn grant(operations: &[Operation], resources: &[&str]) -> Grant {
    Grant {
        operations: operations.to_vec(),
        resources: resources.iter().map(|one| (*one).to_owned()).collect(),
    }
}

fn statement(identities: &[&str], allow: Vec<Grant>, deny: Vec<Grant>) -> Statement {
    Statement {
        identities: identities.iter().map(|one| (*one).to_owned()).collect(),
        allow,
        deny,
    }
}

const BOTH: [Operation; 2] = [Operation::Publish, Operation::Subscribe];

/// One statement that allows and one resource that it denies.
fn rules(identity: &str, allow: &str, deny: &str) -> Rules {
    let grants = |text: &str| match text {
        "" => Vec::new(),
        resource => vec![grant(&BOTH, &[resource])],
    };
    let statement = statement(&[identity], grants(allow), grants(deny));
    assert_eq!(statement.check(), [""; 0]);
    Rules::new(vec![statement])
}

fn action(text: &'static str) -> Action<'static> {
    match text.split_once(' ') {
        Some(("pub", name)) => Action::Publish(name),
        Some(("sub", filter)) => Action::Subscribe(filter),
        _ => panic!("{text}"),
    }
}

/// Identity of the statement, what it allows, what it denies, the client, what that wants, and
/// the answer: `+` allowed, `-` denied, ` ` no rule.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    char,
);

fn assert_decided(rows: &[Row]) {
    for (identity, allow, deny, client, wanted, expected) in rows {
        let decision = rules(identity, allow, deny).decide(&who(client), action(wanted));
        let expected = match expected {
            '+' => Decision::Allowed,
            '-' => Decision::Denied,
            _ => Decision::NoRule,
        };
        let row = format!("{identity}: +{allow} -{deny}; {client}: {wanted}");
        assert_eq!(decision, expected, "{row}");
    }
}

#[test]
fn identities_are_named_exactly_or_by_kind() {
    assert_decided(&[
        ("d/m", "#", "", "d/m", "pub a", '+'),
        ("d/m", "#", "", "d/n", "pub a", ' '),
        ("d/m", "#", "", "d", "pub a", ' '),
        ("d", "#", "", "d/m", "pub a", ' '),
        ("d", "#", "", "D", "pub a", ' '),
        (ANY_IDENTITY, "#", "", "d/m", "pub a", '+'),
        (ANY_IDENTITY, "#", "", "d", "pub a", '+'),
        (ANY_IDENTITY, "#", "", ANONYMOUS, "pub a", ' '),
        (ANY_IDENTITY, "#", "", "user:bob", "pub a", ' '),
        (ANONYMOUS, "#", "", ANONYMOUS, "pub a", '+'),
        (ANONYMOUS, "#", "", "d", "pub a", ' '),
        ("user:bob", "#", "", "user:bob", "pub a", '+'),
        ("user:bob", "#", "", "user:alice", "pub a", ' '),
        ("user:bob", "#", "", "device user:bob", "pub a", ' '),
        (ANY_IDENTITY, "#", "", "device user:bob", "pub a", '+'),
        ("cert:plc 7", "#", "", "cert:plc 7", "pub a", '+'),
        ("cert:bob", "#", "", "user:bob", "pub a", ' '),
        ("*", "#", "", "d", "pub a", ' '),
        ("*", "#", "", "*", "pub a", '+'),
    ]);
}

#[test]
fn publications_match_and_subscriptions_are_covered_or_overlap() {
    assert_decided(&[
        ("d", "a/+", "", "d", "pub a/b", '+'),
        ("d", "a/+", "", "d", "pub a/b/c", ' '),
        ("d", "a/#", "", "d", "pub a", '+'),
        ("d", "#", "a/#", "d", "pub a/b", '-'),
        ("d", "#", "a/#", "d", "pub b", '+'),
        ("d", "", "a/#", "d", "pub b", ' '),
        ("d", "a/#", "", "d", "sub a/#", '+'),
        ("d", "a/#", "", "d", "sub a", '+'),
        ("d", "a/#", "", "d", "sub a/+/c", '+'),
        ("d", "a/#", "", "d", "sub +/b", ' '),
        ("d", "a/+", "", "d", "sub a/#", ' '),
        ("d", "a/b", "", "d", "sub a/+", ' '),
        ("d", "#", "", "d", "sub #", '+'),
        ("d", "#", "a/b", "d", "sub a/b", '-'),
        ("d", "#", "a/b", "d", "sub a/+", '-'),
        ("d", "#", "a/b", "d", "sub #", '-'),
        ("d", "#", "a/b", "d", "sub a/c", '+'),
        ("d", "#", "a/b/#", "d", "sub +/c", '+'),
        ("d", "a/#", "", "d", "sub $share/g/a/b", '+'),
        ("d", "a/#", "", "d", "sub $share/g/b", ' '),
        ("d", "#", "a/#", "d", "sub $share/g/+", '-'),
        ("d", "#", "", "d", "sub $share/g", ' '),
        ("d", "#", "", "d", "sub $share//a", ' '),
        ("d", "#", "", "d", "sub $share/+/a", ' '),
        ("d", "#", "", "d", "sub $share/g/", ' '),
    ]);
}

#[test]
fn the_dialects_topics_are_not_for_rules() {
    assert_decided(&[
        ("d", "#", "", "d", "pub $iothub/x", ' '),
        ("d", "#", "", "d", "pub devices/d/messages/events/", ' '),
        ("d", "#", "", "d", "pub devices", ' '),
        ("d", "#", "", "d", "pub devices2/a", '+'),
        ("d", "#", "", "d", "pub Devices/a", '+'),
        ("d", "#", "", "d", "sub $iothub/#", ' '),
        ("d", "#", "", "d", "sub devices/#", ' '),
        ("d", "#", "", "d", "sub $share/g/devices/#", ' '),
        ("d", "#", "", "d", "sub $share/g/$share/g/a", ' '),
        (
            ANONYMOUS,
            "{{mqtt:client_id}}/#",
            "",
            ANONYMOUS,
            "pub a",
            ' ',
        ),
    ]);
    for (client_id, resource) in [
        ("devices", "{{mqtt:client_id}}/#"),
        ("ices", "dev{{mqtt:client_id}}/#"),
        ("$share", "{{mqtt:client_id}}/#"),
    ] {
        let who = Who {
            client_id,
            ..who(ANONYMOUS)
        };
        for (allow, deny) in [(resource, ""), ("", resource)] {
            for wanted in ["sub devices/#", "sub $share/g/a", "sub +/#", "pub devices"] {
                let rules = rules(ANONYMOUS, allow, deny);
                let decision = rules.decide(&who, action(wanted));
                assert_eq!(decision, Decision::NoRule, "{client_id} {resource}");
            }
        }
    }
}

#[test]
fn variables_are_the_clients_own_levels() {
    assert_decided(&[
        ("d/m", "{{iot:identity}}/#", "", "d/m", "pub d/m/x", '+'),
        ("d/m", "{{iot:identity}}/#", "", "d/m", "pub d/n/x", ' '),
        ("d/m", "{{iot:identity}}/#", "", "d/m", "sub d/m/#", '+'),
        ("d/m", "{{iot:identity}}/#", "", "d/m", "sub d/+", ' '),
        ("d", "s/{{iot:identity}}", "", "d", "pub s/d", '+'),
        (
            "user:d",
            "s/{{iot:identity}}",
            "",
            "user:d",
            "pub s/user:d",
            ' ',
        ),
        ("d/m", "s/{{iot:device_id}}", "", "d/m", "pub s/d", '+'),
        (
            ANONYMOUS,
            "{{iot:device_id}}/a",
            "",
            ANONYMOUS,
            "pub /a",
            ' ',
        ),
        ("d/m", "{{iot:module_id}}-x", "", "d/m", "pub m-x", '+'),
        ("d", "s/{{iot:module_id}}", "", "d", "pub s/", ' '),
        ("d", "c/{{mqtt:client_id}}/+", "", "d", "pub c/d/1", '+'),
        ("d", "c/{{mqtt:client_id}}/+", "", "d", "pub c/e/1", ' '),
        ("d", "{{iot:this_device_id}}/#", "", "d", "pub edge-1", '+'),
        ("d", "#", "c/{{mqtt:client_id}}", "d", "sub c/+", '-'),
        ("d", "#", "c/{{mqtt:client_id}}", "d", "sub c/e", '+'),
        (
            "d/m",
            "{{iot:module_id}}/{{iot:device_id}}",
            "",
            "d/m",
            "pub m/d",
            '+',
        ),
        // Ids may hold wildcards, which never count as such.
        ("+/#", "s/{{iot:identity}}", "", "+/#", "pub s/a/b", ' '),
        ("+/m", "s/{{iot:device_id}}", "", "+/m", "sub s/+", ' '),
        ("+/m", "s/{{iot:module_id}}", "", "+/m", "pub s/m", '+'),
    ]);
}

#[test]
fn a_chosen_client_id_chooses_no_levels() {
    for client_id in ["", "a/b", "+", "#", "a+", "x#", "\0", "/", "a\0b"] {
        let who = Who {
            client_id,
            ..who(ANONYMOUS)
        };
        for wanted in ["pub c/a/b", "pub c/", "sub c/a/b", "sub c/#", "sub c/+"] {
            let resource = "c/{{mqtt:client_id}}";
            let allowing = rules(ANONYMOUS, resource, "").decide(&who, action(wanted));
            assert_eq!(allowing, Decision::NoRule, "{client_id:?} {wanted}");
            let denying = rules(ANONYMOUS, "c/#", resource).decide(&who, action(wanted));
            assert_eq!(denying, Decision::Allowed, "{client_id:?} {wanted}");
        }
    }
    // What a value looks like is not read again.
    let who = Who {
        client_id: "{{iot:this_device_id}}",
        ..who(ANONYMOUS)
    };
    let rules = rules(ANONYMOUS, "c/{{mqtt:client_id}}", "");
    let decide = |name| rules.decide(&who, Action::Publish(name));
    assert_eq!(decide("c/{{iot:this_device_id}}"), Decision::Allowed);
    assert_eq!(decide("c/edge-1"), Decision::NoRule);
}

#[test]
fn the_first_statement_that_speaks_of_it_decides() {
    let publish = |resource| vec![grant(&[Operation::Publish], &[resource])];
    let rules = Rules::new(vec![
        statement(&["d/other"], publish("#"), publish("#")),
        statement(&[ANY_IDENTITY], publish("open/#"), Vec::new()),
        statement(&["d/m", "user:bob"], publish("a/#"), publish("a/b")),
        statement(&["d/m"], publish("a/b"), publish("open/#")),
        statement(&["d/m"], publish("#"), Vec::new()),
    ]);
    let decide = |name| rules.decide(&who("d/m"), Action::Publish(name));
    assert_eq!(decide("open/x"), Decision::Allowed, "the first is final");
    assert_eq!(decide("a/b"), Decision::Denied, "deny wins in a statement");
    assert_eq!(decide("a/c"), Decision::Allowed);
    assert_eq!(decide("z"), Decision::Allowed, "earlier ones do not match");
    let subscribe = rules.decide(&who("d/m"), Action::Subscribe("a/c"));
    assert_eq!(subscribe, Decision::NoRule, "another operation");
    let bob = |name| rules.decide(&who("user:bob"), Action::Publish(name));
    assert_eq!(bob("a/c"), Decision::Allowed);
    assert_eq!(bob("open/x"), Decision::NoRule);
}

#[test]
fn connecting_needs_no_rule_and_no_resource() {
    let nobody = Rules::default();
    assert!(nobody.is_empty());
    assert_eq!(nobody.decide(&who("d"), Action::Connect), Decision::NoRule);
    let publish = nobody.decide(&who("d"), Action::Publish("a"));
    assert_eq!(publish, Decision::NoRule);
    let connect = |resources: &[&str]| vec![grant(&[Operation::Connect], resources)];
    let rules = Rules::new(vec![
        statement(&["user:bob"], connect(&[]), Vec::new()),
        statement(&[ANONYMOUS], Vec::new(), connect(&["a"])),
    ]);
    let decide = |name| rules.decide(&who(name), Action::Connect);
    assert_eq!(decide("user:bob"), Decision::Allowed);
    assert_eq!(decide(ANONYMOUS), Decision::Denied);
    assert_eq!(decide("d"), Decision::NoRule);
}

#[test]
fn what_is_wrong_is_said_all_at_once() {
    let wrong = statement(
        &["", "a/b/c", "user:", "{{iot:device_id}}"],
        vec![grant(&[], &["a"]), grant(&BOTH, &[])],
        vec![grant(&[Operation::Connect, Operation::Publish], &["a/#/b"])],
    );
    let no_name = "is no identity, such as DEVICE, DEVICE/MODULE, user:NAME or cert:NAME";
    let expected = [
        format!("\"\" {no_name}"),
        format!("\"a/b/c\" {no_name}"),
        format!("\"user:\" {no_name}"),
        "\"{{iot:device_id}}\" has an unknown variable: there are {{iot:identity}} and {{anonymous}}"
            .to_owned(),
        "`operations` of `allow` is empty".to_owned(),
        "`resources` of `allow` is empty".to_owned(),
        "\"a/#/b\" is no topic filter: # is not the last level".to_owned(),
    ];
    let said = wrong.check();
    assert_eq!(said, expected);
    assert!(Rules::new(vec![wrong]).is_empty());
    let empty = Statement::default().check();
    assert_eq!(empty, ["`identities` is empty"]);
}

#[test]
fn resources_are_checked() {
    for good in [
        "#",
        "+",
        "/",
        "a/{{iot:identity}}/#",
        "{{mqtt:client_id}}{{iot:device_id}}",
        "a{b}/c",
        "device",
        "devicesX/a",
        "a/$x",
    ] {
        assert_eq!(check_resource(good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("", "is no topic filter: it is empty"),
        ("a\0", "is no topic filter: it contains the character"),
        ("a/b#", "is no topic filter: # does not stand alone"),
        ("+{{mqtt:client_id}}", "is no topic filter: + does not"),
        ("#/{{mqtt:client_id}}", "is no topic filter: # is not"),
        ("$SYS/#", "is under $ or devices/"),
        ("$share/g/a", "is under $ or devices/"),
        ("${{mqtt:client_id}}", "is under $ or devices/"),
        ("devices/d/#", "is under $ or devices/"),
        ("devices", "is under $ or devices/"),
        ("a/{{x}}", "unknown variable {{x}}: there are {{iot:id"),
        ("a/{{ iot:identity }}", "unknown variable {{ iot:ident"),
        ("a/{{anonymous}}", "unknown variable {{anonymous}}"),
        ("a/{{iot:identity}", "has {{ without }}"),
        ("a/iot:identity}}", "has {{ without }}"),
        ("}}a/{{iot:identity}}", "has {{ without }}"),
    ] {
        let said = check_resource(bad).unwrap_err();
        assert!(said.contains(why), "{bad}: {said}");
        let grant = grant(&BOTH, &[bad]);
        let check = statement(&["d"], vec![grant], Vec::new()).check();
        assert_eq!(check, [format!("{bad:?} {said}")]);
    }
}
