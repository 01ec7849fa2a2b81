//! What a command promises: each figure beside its bound.

use std::process::ExitCode;

use super::Options;

/// Figures with bounds, printed as they come.
pub struct Targets {
    check: bool,
    missed: Vec<String>,
}

impl Targets {
    pub fn new(options: &Options) -> Self {
        Self {
            check: options.flag("--check"),
            missed: Vec::new(),
        }
    }

    /// A target that was missed counts in any case.
    pub fn strict() -> Self {
        Self {
            check: true,
            missed: Vec::new(),
        }
    }

    pub fn at_most(&mut self, what: &str, value: f64, bound: f64, unit: &str) {
        self.tell(what, value, ("at most", bound), unit, value <= bound);
    }

    pub fn at_least(&mut self, what: &str, value: f64, bound: f64, unit: &str) {
        self.tell(what, value, ("at least", bound), unit, value >= bound);
    }

    /// Something that has to be so.
    pub fn holds(&mut self, what: &str, holds: bool) {
        let verdict = if holds { "ok" } else { "MISSED" };
        println!("{verdict:<7} {what}");
        if !holds {
            self.missed.push(what.to_owned());
        }
    }

    fn tell(&mut self, what: &str, value: f64, bound: (&str, f64), unit: &str, holds: bool) {
        let verdict = if holds { "ok" } else { "MISSED" };
        let (word, limit) = bound;
        let digits = if limit >= 1000.0 { 0 } else { 3 };
        println!("{verdict:<7} {what:<52} {value:>12.digits$} {unit:<6} {word} {limit:.digits$}");
        if !holds {
            self.missed.push(what.to_owned());
        }
    }

    /// 1 where a target was missed and that is to count.
    pub fn exit_code(self) -> ExitCode {
        if self.missed.is_empty() {
            println!("all targets are met");
            return ExitCode::SUCCESS;
        }
        println!("missed: {}", self.missed.join("; "));
        ExitCode::from(u8::from(self.check))
    }
}
