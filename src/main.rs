//! The ferrule binary; `kube-proxy` by another name.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferrule::cli::main(std::env::args_os().collect())
}
