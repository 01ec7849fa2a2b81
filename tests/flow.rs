//! Messages from outputs to inputs: order, priorities, sessions, restarts, bounds.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::{Setup, inputs, message, output, publish};

const ROUTE: &str = r#"{"r":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#;

#[tokio::test]
async fn messages_pass_over_tls_in_order() {
    let setup = Setup::new(ROUTE, &["a", "b"]);
    let hub = setup.start();
    let mut b = hub.connect_tls("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    let mut a = hub.connect_tls("edge-1/a").await;
    for number in 0..100_u32 {
        publish(
            &mut a,
            &output("a", "out", ""),
            number.to_string().as_bytes(),
        )
        .await;
    }
    for number in 0..100_u32 {
        let expected = ("in".to_owned(), number.to_string().into_bytes());
        assert_eq!(message(&mut b).await, expected);
    }
    assert_eq!(hub.terminate(), Some(0));
}
