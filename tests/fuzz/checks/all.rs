//! What must hold of any input whatever, by the name of the fuzz target that looks for inputs of
//! which it does not. The suite runs the same checks over `tests/regress/`: past findings and a few
//! inputs to begin with.

mod config;
mod flags;
mod objects;
mod rules;
mod saved;
mod slices;

/// A check ends with a panic if something is not as it must be.
pub(crate) type Check = fn(&[u8]);

/// Each has a file in `fuzz_targets/`, and a folder of inputs in `tests/regress/`.
pub(crate) const CHECKS: [(&str, Check); 9] = [
    ("config_file", config::file),
    ("durations", config::duration),
    ("flags", flags::arguments),
    ("manifests", objects::manifest),
    ("rules_made", rules::made),
    ("rules_text", rules::text),
    ("saved_rules", saved::text),
    ("slices", slices::events),
    ("watch_lines", objects::watch),
];
