//! The checks check themselves: every fault that the ledger knows is made once, and seen.

use std::collections::BTreeMap;
use std::time::Duration;

use edgehub::mqtt::QoS;

use super::ledger::{Ledger, ONCE_AT_LEAST, ONCE_EXACTLY, SHARED, STREAMS, To, topic};
use crate::support::link::Body;

const ME: To = To::Session(0);
const RETAINED: usize = SHARED + 1;

/// One publisher, one session, and the group; all have subscribed.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(1, 1);
    ledger.faults.silent = true;
    ledger.clock.start();
    ledger.subscribed(ME, |stream| {
        stream == ONCE_AT_LEAST || stream == ONCE_EXACTLY
    });
    ledger.subscribed(To::Group, |stream| stream == SHARED);
    ledger
}

fn bytes(body: &Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.write(&mut bytes);
    bytes
}

fn published(ledger: &mut Ledger, stream: usize, count: usize) -> Vec<Body> {
    let bodies: Vec<_> = (0..count)
        .map(|_| ledger.publish(0, stream, 64, false))
        .collect();
    for body in &bodies {
        ledger.acknowledge(body);
    }
    bodies
}

fn receive(ledger: &mut Ledger, to: To, body: &Body) {
    let granted = match body.output {
        ONCE_EXACTLY => QoS::ExactlyOnce,
        _ => QoS::AtLeastOnce,
    };
    ledger.receive(to, (&topic(0, body.output), granted), &bytes(body));
}

fn next_run(ledger: &mut Ledger) {
    ledger.hub_broke();
    ledger.round += 1;
}

/// Panics where a fault would go unseen, or something harmless be taken for one.
pub fn can_fail() {
    nothing_wrong();
    lost_and_out_of_order();
    twice_with_qos_1();
    twice_with_qos_2();
    shared();
    retained();
    damaged();
}

fn nothing_wrong() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, ONCE_AT_LEAST, 3);
    // Not acknowledged: it need not come.
    ledger.publish(0, ONCE_EXACTLY, 64, false);
    for body in &bodies {
        receive(&mut ledger, ME, body);
    }
    next_run(&mut ledger);
    // One that comes again, and one that its publisher sent again.
    ledger.send_again(&bodies[2]);
    for at in [1, 2, 2] {
        receive(&mut ledger, ME, &bodies[at]);
    }
    ledger.settle();
    assert!(!ledger.faults.any());
    assert_eq!((ledger.received, ledger.backlog()), (3, 0));
    assert_eq!(ledger.came_again + ledger.copies[0], 3);
}

fn lost_and_out_of_order() {
    let mut ledger = ledger();
    for stream in [ONCE_AT_LEAST, ONCE_EXACTLY] {
        let bodies = published(&mut ledger, stream, 3);
        receive(&mut ledger, ME, &bodies[2]);
        receive(&mut ledger, ME, &bodies[0]);
    }
    ledger.settle();
    assert_eq!((ledger.faults.lost, ledger.faults.out_of_order), (2, 2));
    // What was sent before SUBACK is not due.
    let mut ledger = Ledger::new(1, 1);
    ledger.faults.silent = true;
    published(&mut ledger, ONCE_AT_LEAST, 1);
    ledger.subscribed(ME, |stream| stream == ONCE_AT_LEAST);
    published(&mut ledger, ONCE_AT_LEAST, 1);
    ledger.settle();
    assert_eq!(ledger.faults.lost, 1);
}

fn twice_with_qos_1() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, ONCE_AT_LEAST, 2);
    receive(&mut ledger, ME, &bodies[0]);
    // Nothing has happened in between.
    receive(&mut ledger, ME, &bodies[0]);
    assert_eq!(ledger.faults.unexplained, 1);
    ledger.session_broke(0);
    receive(&mut ledger, ME, &bodies[0]);
    assert_eq!((ledger.faults.unexplained, ledger.came_again), (1, 1));
    // Received long before it broke.
    receive(&mut ledger, ME, &bodies[1]);
    ledger.clock.pass(Duration::from_secs(2));
    next_run(&mut ledger);
    receive(&mut ledger, ME, &bodies[1]);
    assert_eq!(ledger.faults.unexplained, 2);
}

fn twice_with_qos_2() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, ONCE_EXACTLY, 2);
    receive(&mut ledger, ME, &bodies[0]);
    // Neither the end of the hub nor that of a connection is a reason.
    next_run(&mut ledger);
    receive(&mut ledger, ME, &bodies[0]);
    assert_eq!(ledger.faults.unexplained, 1);
    // Nor is a connection of the publisher that broke while the hub lived.
    receive(&mut ledger, ME, &bodies[1]);
    let open = ledger.publish(0, ONCE_EXACTLY, 64, false);
    ledger.send_again(&open);
    receive(&mut ledger, ME, &open);
    receive(&mut ledger, ME, &open);
    assert_eq!(ledger.faults.unexplained, 2);
    // It was open when the hub ended, and sent again to the next.
    next_run(&mut ledger);
    ledger.send_again(&open);
    assert_eq!(ledger.unanswered, 1);
    receive(&mut ledger, ME, &open);
    assert_eq!((ledger.faults.unexplained, ledger.copies[1]), (2, 1));
    receive(&mut ledger, ME, &open);
    assert_eq!(ledger.faults.unexplained, 3);
}

fn shared() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, SHARED, 3);
    for at in [2, 0, 0] {
        receive(&mut ledger, To::Group, &bodies[at]);
    }
    assert!(!ledger.faults.any());
    ledger.settle();
    assert_eq!(ledger.faults.lost, 1);
}

fn found(body: &Body) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(topic(0, RETAINED), bytes(body))])
}

fn retained() {
    let nothing = BTreeMap::new();
    let mut ledger = ledger();
    ledger.retained(&nothing);
    let bodies = published(&mut ledger, RETAINED, 2);
    ledger.retained(&found(&bodies[1]));
    assert!(!ledger.faults.any());
    // An older one, and none.
    ledger.retained(&found(&bodies[0]));
    ledger.retained(&nothing);
    assert_eq!(ledger.faults.lost, 2);
    // A removal that was sent, and then acknowledged.
    let removal = ledger.publish(0, RETAINED, 64, true);
    ledger.retained(&nothing);
    ledger.retained(&found(&bodies[1]));
    assert_eq!(ledger.faults.lost, 2);
    ledger.acknowledge(&removal);
    ledger.retained(&nothing);
    assert_eq!(ledger.faults.lost, 2);
    ledger.retained(&found(&bodies[1]));
    assert_eq!(ledger.faults.lost, 3);
    // A later one that is not acknowledged.
    let open = ledger.publish(0, RETAINED, 64, false);
    ledger.retained(&found(&open));
    assert_eq!(ledger.faults.lost, 3);
    const { assert!(RETAINED < STREAMS) };
}

fn damaged() {
    let mut ledger = ledger();
    let bodies = published(&mut ledger, ONCE_AT_LEAST, 1);
    let (name, granted) = (topic(0, ONCE_AT_LEAST), QoS::AtLeastOnce);
    let mut wrong = bytes(&bodies[0]);
    wrong[40] ^= 1;
    ledger.receive(ME, (&name, granted), &wrong);
    wrong[40] ^= 1;
    ledger.receive(ME, (&topic(0, ONCE_EXACTLY), granted), &wrong);
    ledger.receive(ME, (&name, granted), &wrong[..60]);
    let never_sent = Body {
        ordinal: 7,
        ..bodies[0]
    };
    receive(&mut ledger, ME, &never_sent);
    ledger.retained(&BTreeMap::from([("r/x".to_owned(), wrong)]));
    assert_eq!((ledger.faults.damaged, ledger.received), (5, 0));
}
