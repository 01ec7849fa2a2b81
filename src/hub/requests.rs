//! Requests on `$iothub` topics.

use bytes::Bytes;

use super::Hub;
use super::client::{Client, RESPONSES_MAX, Response};
use crate::iothub::topics::{self, Incoming};
use crate::observe;

/// The answer's body to a reported-properties patch.
const TWIN_PATCH_REFUSED: &[u8] =
    br#"{"errorCode":501000,"message":"reported properties are not served by this version"}"#;

impl Hub {
    /// Requests of the dialect: twin GET is answered, the rest acknowledged and counted
    /// (`DESIGN` §4).
    pub(super) fn request(&self, client: &mut Client, incoming: &Incoming<'_>) {
        let id = &*client.label;
        let (status, rid, payload) = match incoming {
            Incoming::TwinGet { rid } => {
                let labels = [("source", "edge_hub"), ("id", id)];
                self.metrics
                    .counter(observe::GET_TWIN, &labels)
                    .increment(1);
                (200, rid, self.twin(client))
            }
            Incoming::TwinPatchReported { rid } => {
                self.count_not_served(id, "twin_patch");
                // Node looks for the code in the body and ignores the topic's.
                (501, rid, Bytes::from_static(TWIN_PATCH_REFUSED))
            }
            _ => {
                self.count_not_served(id, "other");
                tracing::debug!(id, "request acknowledged, not served by this version");
                return;
            }
        };
        if client.response_qos.is_none() || client.responses.len() >= RESPONSES_MAX {
            self.count_dropped("no_response_subscription", id, "");
            return;
        }
        let topic = topics::twin_response(status, rid, None);
        client.responses.push_back(Response { topic, payload });
    }

    fn twin(&self, client: &Client) -> Bytes {
        let mut desired = client
            .identity()
            .module_id()
            .and_then(|module| client.routing.desired.get(module))
            .cloned()
            .unwrap_or_default();
        desired.insert("$version".to_owned(), client.routing.generation.into());
        let twin = serde_json::json!({ "desired": desired, "reported": { "$version": 1 } });
        Bytes::from(twin.to_string())
    }

    fn count_not_served(&self, id: &str, request: &str) {
        let labels = [("id", id), ("request", request)];
        self.metrics
            .counter(observe::NOT_SERVED, &labels)
            .increment(1);
    }
}
