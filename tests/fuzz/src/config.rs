//! Any text as `edgehub.toml`, with variables of the environment: comments `#env NAME=VALUE`.

use std::collections::BTreeMap;
use std::path::Path;

use edgehub::config::Config;
use edgehub::diagnostic::Severity;
use edgehub::identity::rules::Rules;

use super::manifest::inside;

const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Runs one input.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(&input[..input.len().min(TEXT_BYTES_MAX)]) else {
        return;
    };
    let variables = text.lines().filter_map(|line| line.strip_prefix("#env "));
    let environment: BTreeMap<String, String> = variables
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (format!("EDGEHUB_{name}"), value.to_owned()))
        .collect();
    let file = Path::new("/etc/edgehub/edgehub.toml");
    let diagnostics = match Config::parse(text, file, &environment) {
        Ok((config, warnings)) => {
            assert!(warnings.iter().all(|one| one.severity == Severity::Warning));
            for statement in &config.authorization {
                assert_eq!(statement.check(), Vec::<String>::new());
            }
            let _ = Rules::new(config.authorization.clone());
            let again = Config::parse(text, file, &environment).expect("as before");
            assert_eq!(format!("{again:?}"), format!("{:?}", (config, &warnings)));
            warnings
        }
        Err(diagnostics) => {
            let errors = diagnostics
                .iter()
                .filter(|one| one.severity == Severity::Error);
            assert!(errors.count() > 0, "refused without a word");
            diagnostics
        }
    };
    let own = text.strip_prefix('\u{feff}').unwrap_or(text);
    for one in diagnostics {
        if one.file == file {
            inside(own, one.position());
        }
        let _ = one.to_string();
    }
}
