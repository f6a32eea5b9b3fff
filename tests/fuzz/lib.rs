//! What fuzz targets have in common. The checks are also part of the suite.

#[path = "checks/all.rs"]
mod checks;
#[path = "../suite/pipeline.rs"]
mod pipeline;

/// Runs the check of a fuzz target on an input.
pub fn check(target: &str, input: &[u8]) {
    let found = checks::CHECKS.iter().find(|(name, _)| *name == target);
    found.unwrap_or_else(|| panic!("there is no check {target}")).1(input);
}
