//! Any conversation, beside a model of what has to be in flight.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::mqtt::UnsubscribeFilters;

#[derive(Debug, Clone)]
enum Step {
    Packet(usize),
    Ack(u16),
    Wait(u64),
    Deliver(QoS),
    GoOn,
    Durable(u64),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..12).prop_map(Step::Packet),
        6 => (1_u16..9).prop_map(Step::Ack),
        3 => (0_u64..20_000).prop_map(Step::Wait),
        9 => prop::bool::weighted(0.8).prop_map(|one| {
            Step::Deliver(if one { QoS::AtLeastOnce } else { QoS::AtMostOnce })
        }),
        2 => Just(Step::GoOn),
        1 => (0_u64..9).prop_map(Step::Durable),
        1 => Just(Step::Reconnect),
    ]
}

/// The hub's part, as simple as can be, and what has to be in flight.
struct Model {
    session: Session<u32>,
    now_ms: u64,
    next_token: u32,
    version: u64,
    in_flight: HashMap<u16, u32>,
}

impl Model {
    fn packet(&mut self, number: usize) -> Result<(), Close> {
        let unsubscribe = Unsubscribe {
            packet_id: id(4),
            filters: UnsubscribeFilters::parse(b"\0\x01a").unwrap(),
        };
        let packet = match number {
            0..=3 => publish(QoS::AtLeastOnce),
            4 | 5 => publish(QoS::AtMostOnce),
            6 => FromClient::Subscribe(subscribe(3)),
            7 => FromClient::Unsubscribe(unsubscribe),
            8 => FromClient::Connect(CONNECT),
            9 => FromClient::PubRel(id(2)),
            10 => publish(QoS::ExactlyOnce),
            _ => FromClient::PingReq,
        };
        self.handle(packet)
    }

    fn handle(&mut self, packet: FromClient<'_>) -> Result<(), Close> {
        if !self.session.wants_packets() {
            return Ok(());
        }
        let acknowledged = match packet {
            FromClient::PubAck(id) if self.session.is_active() => self.in_flight.remove(&id.get()),
            _ => None,
        };
        match self.session.handle_packet(self.now_ms, packet)? {
            Event::Connect(..) => self.session.accept(self.now_ms, &welcome(10)),
            Event::Publish(publish, _) => match publish.packet_id {
                Some(_) if self.now_ms.is_multiple_of(3) => self.session.hold_back(self.now_ms),
                Some(packet_id) => {
                    let it = (publish.qos, packet_id);
                    self.session.acknowledge(it, (0, 0), ReasonCode::Success);
                }
                None => {}
            },
            Event::Subscribe { packet_id, .. } => {
                self.version += 1;
                let codes = vec![Err(ReasonCode::NotAuthorized.into())];
                self.session.subscribed(packet_id, codes, self.version);
            }
            Event::Unsubscribe(unsubscribe) => {
                self.version += 1;
                let id = unsubscribe.packet_id;
                self.session.unsubscribed(id, vec![true], self.version);
            }
            Event::Delivered(token) => assert_eq!(acknowledged, Some(token)),
            Event::None | Event::Received(..) | Event::Completed(_) | Event::Released(_) => {
                assert_eq!(acknowledged, None);
            }
            Event::Disconnect { .. } => return Err(Close::Disconnect),
        }
        Ok(())
    }

    fn deliver(&mut self, qos: QoS) {
        if !self.session.is_active() || (qos != QoS::AtMostOnce && self.session.room() == 0) {
            return;
        }
        self.next_token += 1;
        let before = written(&mut self.session);
        assert!(before.iter().all(|packet| !packet.starts_with("publish")));
        let back = deliver(&mut self.session, self.now_ms, qos, self.next_token);
        let packet = written(&mut self.session).remove(0);
        let id: u16 = packet.split(' ').nth(1).unwrap().parse().unwrap();
        if qos == QoS::AtMostOnce {
            assert_eq!((back, id), (Some(self.next_token), 0));
        } else {
            assert_eq!(
                self.in_flight.insert(id, self.next_token),
                None,
                "id in use"
            );
        }
    }

    fn reconnect(&mut self) {
        let fresh = Session::new(TIMING, self.now_ms);
        let was_in = self.session.is_active();
        let left = std::mem::replace(&mut self.session, fresh).park();
        let Outbound {
            in_flight: parked,
            released,
            next_id,
        } = left.outbound;
        assert_eq!(parked.len(), self.in_flight.len());
        assert!(was_in || parked.is_empty());
        self.handle(FromClient::Connect(CONNECT)).unwrap();
        self.session.resume(next_id, released, left.unreleased);
        for flight in parked {
            assert_eq!(
                self.in_flight.get(&flight.packet_id.get()),
                Some(&flight.token)
            );
            redeliver(&mut self.session, flight);
        }
        bytes(&mut self.session);
    }

    /// False once the session is over.
    fn step(&mut self, step: &Step) -> bool {
        let result = match *step {
            Step::Packet(number) => self.packet(number),
            Step::Ack(packet_id) => self.handle(FromClient::PubAck(id(packet_id))),
            Step::Wait(ms) => {
                self.now_ms += ms;
                let due = self.session.next_timeout();
                let result = self.session.handle_timeout(self.now_ms);
                let woken = due.is_some_and(|due| due <= self.now_ms);
                assert!(woken || result.is_ok(), "closes without being due");
                result
            }
            Step::Deliver(qos) => {
                self.deliver(qos);
                Ok(())
            }
            Step::GoOn => {
                self.session.go_on(self.now_ms);
                Ok(())
            }
            Step::Durable(version) => {
                self.session.handle_durable(version);
                Ok(())
            }
            Step::Reconnect => {
                self.reconnect();
                Ok(())
            }
        };
        let room = self.session.room();
        assert_eq!(room + self.in_flight.len(), usize::from(TIMING.window));
        written(&mut self.session);
        result.is_ok()
    }
}

proptest! {
    #[test]
    fn no_conversation_panics_or_exceeds_the_window(steps in vec(step(), 0..200)) {
        let mut model = Model {
            session: Session::new(TIMING, 0),
            now_ms: 0,
            next_token: 0,
            version: 0,
            in_flight: HashMap::new(),
        };
        for step in &steps {
            if !model.step(step) {
                model.reconnect();
            }
        }
    }
}
