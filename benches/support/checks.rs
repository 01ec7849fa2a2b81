//! The checks check themselves: every fault that the ledger knows is made once, and seen.

use std::time::Duration;

use super::ledger::Ledger;
use super::link::Body;
use super::plan::{Plan, to};

const TOPIC: &str = "devices/edge-1/modules/c0/inputs/i0/x=y";

fn ledger() -> Ledger {
    let plan = Plan {
        publishers: 1,
        consumers: 1,
        outputs: vec![vec![to(0, 0, None)]],
        idle: Vec::new(),
    };
    let mut ledger = Ledger::new(&plan);
    ledger.faults.silent = true;
    ledger.begin_round();
    ledger.clock.start();
    ledger
}

fn bytes(body: &Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.write(&mut bytes);
    bytes
}

fn published(ledger: &mut Ledger, count: usize) -> Vec<Body> {
    let bodies: Vec<_> = (0..count).map(|_| ledger.publish(0, 0, 64)).collect();
    for body in &bodies {
        ledger.acknowledge(body);
    }
    bodies
}

/// Panics where a fault would go unseen, or something harmless be taken for one.
pub fn can_fail() {
    nothing_wrong();
    lost_and_out_of_order();
    duplicates();
    damaged();
}

fn nothing_wrong() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, 3);
    ledger.receive(0, TOPIC, &bytes(&bodies[0]));
    ledger.receive(0, TOPIC, &bytes(&bodies[1]));
    ledger.hub_broke();
    ledger.send_again(&bodies[2]);
    // Two that come again, and a copy that the publisher made.
    for at in [0, 1, 2, 2] {
        ledger.receive(0, TOPIC, &bytes(&bodies[at]));
    }
    ledger.settle();
    let counts = (ledger.received, ledger.came_again(), ledger.copies_received);
    assert_eq!(counts, (3, 2, 1));
    assert!(!ledger.faults.any());
}

fn lost_and_out_of_order() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, 3);
    ledger.receive(0, TOPIC, &bytes(&bodies[2]));
    ledger.receive(0, TOPIC, &bytes(&bodies[0]));
    ledger.settle();
    assert_eq!((ledger.faults.lost, ledger.faults.out_of_order), (1, 1));
}

fn duplicates() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, 2);
    ledger.receive(0, TOPIC, &bytes(&bodies[0]));
    // Nothing has happened in between.
    ledger.receive(0, TOPIC, &bytes(&bodies[0]));
    assert_eq!(ledger.faults.unexplained, 1);
    // What has broken meanwhile is no reason for two.
    ledger.hub_broke();
    ledger.receive(0, TOPIC, &bytes(&bodies[0]));
    assert_eq!(ledger.faults.unexplained, 1);
    ledger.receive(0, TOPIC, &bytes(&bodies[0]));
    assert_eq!(ledger.faults.unexplained, 2);
    // Received long before it broke.
    ledger.receive(0, TOPIC, &bytes(&bodies[1]));
    ledger.clock.pass(Duration::from_secs(2));
    ledger.hub_broke();
    ledger.receive(0, TOPIC, &bytes(&bodies[1]));
    assert_eq!(ledger.faults.unexplained, 3);
}

fn damaged() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, 1);
    let mut wrong = bytes(&bodies[0]);
    wrong[40] ^= 1;
    ledger.receive(0, TOPIC, &wrong);
    wrong[40] ^= 1;
    ledger.receive(0, "devices/edge-1/modules/c0/inputs/i1/", &wrong);
    ledger.receive(0, TOPIC, &wrong[..60]);
    let never_sent = Body {
        ordinal: 7,
        ..bodies[0]
    };
    ledger.receive(0, TOPIC, &bytes(&never_sent));
    assert_eq!((ledger.faults.damaged, ledger.received), (4, 0));
}
