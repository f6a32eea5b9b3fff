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

#[test]
fn virtual_servers_are_rendered_as_before() {
    for case in ["affinity", "dual-stack", "etp-local", "etp-local-elsewhere", "lb-source-ranges", "loadbalancer"] {
        render_in_mode(case, "ipvs", |text| text);
    }
}

/// Without what is the same in all of them: sets, and chains that draw lots.
#[test]
fn maps_are_rendered_as_before() {
    let differs = |line: &&str| {
        let draws = line.contains("-of-") && !line.contains("add element");
        !draws && !["add set ", "add map ", "add chain ", "flush chain "].iter().any(|start| line.starts_with(start))
    };
    let cases = ["affinity", "detect-interface", "dual-stack", "etp-local", "etp-local-elsewhere", "itp-local"];
    for case in cases.into_iter().chain(["lb-source-ranges", "loadbalancer", "noendpoints", "masquerade-all", "sctp"]) {
        render_in_mode(case, "nftables", |text| text.lines().filter(differs).map(|line| format!("{line}\n")).collect());
    }
}

#[track_caller]
fn render_in_mode(case: &str, mode: &str, part: impl Fn(String) -> String) {
    let case = golden().join(case);
    let folder = tempfile::tempdir().expect("a folder");
    let config = std::fs::read_to_string(case.join("config.yaml")).expect("the configuration");
    assert!(config.contains("mode: iptables\n"), "{}", case.display());
    let config = config.replace("mode: iptables\n", &format!("mode: {mode}\n"));
    let config = if mode == "nftables" { config.replace("iptables: {", "nftables: {") } else { config };
    let config = if mode == "nftables" { config.replace(", localhostNodePorts: false", "") } else { config };
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, config).expect("write a file");
    for family in ["IPv4", "IPv6"] {
        let text = part(render(&case.join("input.yaml"), &file, family));
        check_file(&case.join(format!("{mode}-{family}.txt")), &text);
    }
}

/// Flags and environment variables choose the layout, beside a configuration file too.
#[test]
fn other_layouts_are_rendered() {
    let case = golden().join("nodeport");
    let render = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferrule"));
        command.args(["render", "--ip-family", "IPv4", "--manifests"]).arg(case.join("input.yaml"));
        command.arg("--config").arg(case.join("config.yaml")).args(args).envs(variables.iter().copied());
        let output = command.output().expect("run ferrule");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (bucketed, compact) = ("--ferrule-service-dispatch=bucketed", "--ferrule-endpoint-layout=compact");
    let (dispatch, layout) = ("FERRULE_SERVICE_DISPATCH", "FERRULE_ENDPOINT_LAYOUT");
    let (_, usual) = render(&[], &[]);
    assert_eq!(render(&[], &[(dispatch, ""), (layout, "chains")]).1, usual);
    let (_, both) = render(&[bucketed, compact], &[]);
    assert_eq!(render(&[], &[(dispatch, "bucketed"), (layout, "compact")]).1, both);
    // What is typed goes first.
    assert_eq!(render(&["--ferrule-service-dispatch=linear"], &[(dispatch, "bucketed")]).1, usual);
    let (bucketed, compact) = (render(&[bucketed], &[]).1, render(&[compact], &[]).1);
    for (text, has_buckets, has_chains) in
        [(usual, false, true), (bucketed, true, true), (compact, false, false), (both, true, false)]
    {
        assert_eq!(text.contains(":KUBE-SVC-ADDR-"), has_buckets, "{text}");
        assert_eq!(text.contains(":KUBE-SEP-"), has_chains, "{text}");
        assert_eq!(text.contains(" -m bpf "), !has_chains, "{text}");
    }
    let (success, said) = render(&[], &[(layout, "none")]);
    assert!(!success && said.contains("must be chains or compact"), "{said}");
}
