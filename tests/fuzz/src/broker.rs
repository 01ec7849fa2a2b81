//! x
/// Runs one input.
pub fn run(_input: &[u8]) {}
