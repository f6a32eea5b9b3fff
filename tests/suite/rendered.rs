//! What a first full sync gives to `iptables-restore`, for small clusters that show one feature
//! each: `tests/golden/<case>/`. `UPDATE_GOLDEN=1` writes the expected files anew.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of all cases.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Output of `ferrule render` for a manifest file.
pub(crate) fn render(manifests: &Path, config: &Path, family: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ferrule"))
        .args(["render", "--ip-family", family, "--manifests"])
        .arg(manifests)
        .arg("--config")
        .arg(config)
        .output()
        .expect("run ferrule");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ferrule render {}: {}\n{stderr}", manifests.display(), output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// Compares a text with a file, or writes the file.
#[track_caller]
pub(crate) fn check_file(file: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(file, actual).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        return;
    }
    let expected = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(
        expected == actual,
        "{} is not what ferrule writes now (UPDATE_GOLDEN=1 takes it over):\n{}",
        file.display(),
        first_difference(&expected, actual)
    );
}

/// The first line that differs, with a few around it.
fn first_difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let same = expected.iter().zip(&actual).take_while(|(a, b)| a == b).count();
    let part = |lines: &[&str], sign: &str| {
        let lines = lines.iter().skip(same).take(8).map(|line| format!("{sign} {line}\n"));
        lines.collect::<String>()
    };
    format!("from line {} on:\n{}{}", same + 1, part(&expected, "-"), part(&actual, "+"))
}

#[test]
fn cases_are_rendered_as_before() {
    let entries = std::fs::read_dir(golden()).expect("tests/golden");
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(cases.len() >= 12, "cases are missing: {cases:?}");
    for case in &cases {
        for family in ["IPv4", "IPv6"] {
            let text = render(&case.join("input.yaml"), &case.join("config.yaml"), family);
            check_file(&case.join(format!("iptables-{family}.txt")), &text);
        }
    }
}
