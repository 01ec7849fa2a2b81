//! Makes the SDK packages ready in the target folder, once for all tests and all runs.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(300);

/// The sources of the programs and their requirements.
pub fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/sdk")
        .join(file)
}

/// The interpreter of a virtual environment that has the Python SDK.
pub fn python() -> PathBuf {
    python_with("python", "requirements.txt")
}

/// The interpreter of a virtual environment of this name, with these requirements.
pub fn python_with(name: &str, requirements: &str) -> PathBuf {
    once(name, "bin/python", &[requirements], |folder, log| {
        let python = folder.join("bin/python");
        let venv = ["-m", "venv", "--clear"];
        run(Command::new("python3").args(venv).arg(folder), log);
        let pip = [
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            "-r",
        ];
        run(
            Command::new(python).args(pip).arg(source(requirements)),
            log,
        );
    })
}

/// A `node_modules` folder that has the Node SDK.
pub fn node_modules() -> PathBuf {
    let requirements = ["package.json", "package-lock.json"];
    once("node", "node_modules", &requirements, |folder, log| {
        for file in requirements {
            fs::copy(source(file), folder.join(file)).unwrap();
        }
        let npm = [
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ];
        run(Command::new("npm").args(npm).current_dir(folder), log);
    })
}

/// Fills `sdk/{name}` in the target folder unless that was done for the same requirements, and
/// returns the path of the `product` in it. Tests run in processes of their own: the lock lets one
/// install while the others wait.
fn once(
    name: &str,
    product: &str,
    requirements: &[&str],
    install: impl Fn(&Path, &Path),
) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let root = target.join("sdk");
    let folder = root.join(name);
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(root.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();

    let wanted: String = requirements
        .iter()
        .map(|file| fs::read_to_string(source(file)).unwrap())
        .collect();
    let stamp = root.join(format!("{name}.stamp"));
    let product = folder.join(product);
    let installed = fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == wanted);
    if !installed || !product.exists() {
        install(&folder, &root.join(format!("{name}.log")));
        fs::write(&stamp, wanted).unwrap();
    }
    product
}

fn run(command: &mut Command, log: &Path) {
    let name = command.get_program().to_string_lossy().into_owned();
    Process::run(&name, command, log, PATIENCE);
}
