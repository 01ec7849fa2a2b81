//! The `edgehub` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgehub::cli::main()
}
