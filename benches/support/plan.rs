//! Who sends what to whom: publishers `p0…`, consumers `c0…` with inputs `i0…`, and outputs `o0…`
//! that every publisher has.

use crate::common::scene;

/// An endpoint with a priority: where a message goes, and in which lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub consumer: usize,
    pub input: usize,
    /// `None`: the route names none.
    pub priority: Option<u8>,
}

/// A target in one line.
pub const fn to(consumer: usize, input: usize, priority: Option<u8>) -> Target {
    Target {
        consumer,
        input,
        priority,
    }
}

pub struct Plan {
    pub publishers: usize,
    pub consumers: usize,
    /// Per output the endpoints that its messages reach.
    pub outputs: Vec<Vec<Target>>,
    /// More routes that change nothing: the endpoint has the message already, in a better lane.
    pub idle: Vec<(usize, Target)>,
}

impl Plan {
    /// The manifest's routes as JSON.
    pub fn routes(&self) -> String {
        let mut routes = Vec::new();
        for publisher in 0..self.publishers {
            let of_output = |(output, targets): (usize, &Vec<Target>)| {
                let pairs = targets.iter().map(move |target| (output, *target));
                pairs.collect::<Vec<_>>()
            };
            let named = self.outputs.iter().enumerate().flat_map(of_output);
            for (output, target) in named.chain(self.idle.iter().copied()) {
                let name = format!("r{}", routes.len());
                let from = format!("p{publisher}/o{output}");
                let into = format!("c{}/i{}", target.consumer, target.input);
                let text = scene::route(&from, &into);
                let priority = target
                    .priority
                    .map_or_else(String::new, |priority| format!(",\"priority\":{priority}"));
                routes.push(format!("\"{name}\":{{\"route\":\"{text}\"{priority}}}"));
            }
        }
        format!("{{{}}}", routes.join(","))
    }

    pub fn modules(&self) -> Vec<String> {
        let publishers = (0..self.publishers).map(|number| format!("p{number}"));
        let consumers = (0..self.consumers).map(|number| format!("c{number}"));
        publishers.chain(consumers).collect()
    }

    /// All lanes that messages go through, each once.
    pub fn lanes(&self) -> Vec<Target> {
        let mut lanes = Vec::new();
        for target in self.outputs.iter().flatten() {
            if !lanes.contains(target) {
                lanes.push(*target);
            }
        }
        lanes
    }
}
