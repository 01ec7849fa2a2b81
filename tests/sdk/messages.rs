//! What the modules send each other, and how it is compared.
//!
//! A message is a JSON object, the same that the programs read and write: `body` in base64, the
//! system properties that are set, and `properties`; a received one also has its `input`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::hub::DEVICE;

/// The number of the last message.
const END: &str = "end";
/// How many of the differences are shown.
const SHOWN: usize = 10;

/// Message `number` of a series with everything that has to survive the way through topics.
pub fn awkward(number: usize) -> Value {
    let filling = "žluť ".repeat(number % 50);
    let text = format!(r#"{{"number":{number},"text":"25 °C, {filling}"}}"#);
    let mut message = json!({
        "message_id": format!("m{number}:+%#=&?(a)*'/,@;$!"),
        "correlation_id": format!("c/{number} &x=y"),
        "user_id": "ünser user",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "body": STANDARD.encode(&text),
        "properties": {
            "number": number.to_string(),
            "Mixed Case": "with  spaces ",
            "a/slash": "/a/b//c/",
            "an&ampersand": "a&b&",
            "an=equals": "=a==b",
            "a+plus": "1+1 = 2",
            "a%percent": "100% %20 %2F",
            "a#hash": "#+/",
            "a$dollar": "$.mid",
            "quotes": "\"it's\" <a> {b} [c] \\ | ^ ` ~ ? ; : , !*'()",
            "ключ": "žluťoučký 温度 🌡",
            "control": "tab\tline\nend",
            "empty": "",
        },
    });
    match number % 10 {
        // Any bytes, and no encoding.
        3 => {
            let bytes: Vec<u8> = (0..number).map(|at| (at ^ number) as u8).collect();
            message["body"] = json!(STANDARD.encode(bytes));
            message["content_type"] = json!("application/octet-stream");
            message.as_object_mut().unwrap().remove("content_encoding");
        }
        // Nothing but a number.
        6 => message = json!({ "body": "", "properties": { "number": number.to_string() } }),
        // A body of many packets.
        9 => message["body"] = json!(STANDARD.encode(text.repeat(100))),
        _ => {}
    }
    message
}

/// One message for the conditional routes.
pub struct Machine {
    pub number: String,
    pub temperature: i32,
    pub high: bool,
    pub inspected: bool,
    /// Whether the body is declared as JSON; conditions on undeclared bodies never hold.
    pub json: bool,
}

impl Machine {
    /// Every combination, a few times.
    pub fn all() -> Vec<Self> {
        let machine = |number: i32| Self {
            number: number.to_string(),
            temperature: 60 + number % 21,
            high: number & 1 == 0,
            inspected: number & 2 == 0,
            json: number & 4 == 0,
        };
        (0..8 * 21).map(machine).collect()
    }

    pub fn message(&self) -> Value {
        let body = json!({ "machine": { "temperature": self.temperature } }).to_string();
        let level = if self.high { "high" } else { "low" };
        let mut message = json!({
            "body": STANDARD.encode(body),
            "user_id": if self.inspected { "inspector" } else { "operator" },
            "properties": { "number": self.number, "level": level },
        });
        if self.json {
            message["content_type"] = json!("application/json");
            message["content_encoding"] = json!("utf-8");
        }
        message
    }
}

/// The last message of a test: it matches every condition, so that each input gets it.
pub fn end() -> Value {
    let number = END.to_owned();
    Machine {
        number,
        temperature: 100,
        high: true,
        inspected: true,
        json: true,
    }
    .message()
}

pub fn is_end(message: &Value) -> bool {
    message["properties"]["number"] == END
}

/// The messages as they must arrive at `input`: the hub adds who sent them, and nothing else.
pub fn received_as(messages: &[Value], input: &str, sender: &str) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        message["input"] = json!(input);
        message["properties"]["$.cdid"] = json!(DEVICE);
        message["properties"]["$.cmid"] = json!(sender);
    }
    messages
}

/// Fails with the numbers that are missing, too many or out of order, else with the fields that
/// differ.
pub fn assert_same(expected: &[Value], received: &[Value]) {
    let (wanted, got) = (numbers(expected), numbers(received));
    let first = wanted
        .iter()
        .zip(&got)
        .position(|(wanted, got)| wanted != got);
    assert!(
        wanted == got,
        "{} expected, {} received\nmissing: {:?}\ntoo many: {:?}\nfirst out of order: {:?}",
        wanted.len(),
        got.len(),
        without(&wanted, &got),
        without(&got, &wanted),
        first.map(|at| (&wanted[at], &got[at])),
    );
    let differences: Vec<String> = expected
        .iter()
        .zip(received)
        .flat_map(|(expected, received)| differing(expected, received, &number(expected)))
        .collect();
    let shown = &differences[..differences.len().min(SHOWN)];
    assert!(
        differences.is_empty(),
        "{} fields differ:\n{}",
        differences.len(),
        shown.join("\n")
    );
}

fn number(message: &Value) -> String {
    message["properties"]["number"]
        .as_str()
        .unwrap_or("none")
        .to_owned()
}

fn numbers(messages: &[Value]) -> Vec<String> {
    messages.iter().map(number).collect()
}

/// The elements of `all` that are left when each of `these` has taken one; only some of them.
fn without(all: &[String], these: &[String]) -> Vec<String> {
    let mut left = all.to_vec();
    for this in these {
        if let Some(at) = left.iter().position(|other| other == this) {
            left.remove(at);
        }
    }
    left.truncate(SHOWN);
    left
}

/// One line for each field that differs, at any depth.
fn differing(expected: &Value, received: &Value, path: &str) -> Vec<String> {
    if expected == received {
        return Vec::new();
    }
    let (Some(wanted), Some(got)) = (expected.as_object(), received.as_object()) else {
        return vec![format!("{path} expected {expected}, received {received}")];
    };
    let extra = got.keys().filter(|key| !wanted.contains_key(*key));
    let keys = wanted.keys().chain(extra);
    keys.flat_map(|key| differing(&expected[key], &received[key], &format!("{path} > {key}")))
        .collect()
}
