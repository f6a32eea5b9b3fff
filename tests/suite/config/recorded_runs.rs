//! The built program against a real kube-proxy's command line: every recorded case is run, under
//! kube-proxy's name, and must end, print and write as recorded.
//!
//! Incidental are times, process ids and source files in log records, the words of the usage text,
//! and what only a Go program has in `--version=raw`. ferrule adds to records about a file where in
//! it the trouble is (`at=`), and to the list of flags its own.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use ferrule::config::KUBERNETES_VERSION;

use crate::recordings;

/// The directory all recorded command lines name.
const DIRECTORY: &str = "/var/lib/kube-proxy";

pub(super) struct Case {
    pub(super) name: String,
    args: Vec<String>,
    exit: i32,
    /// Files by name: given to it, and written by it.
    given: BTreeMap<String, String>,
    pub(super) written: BTreeMap<String, String>,
    stdout: String,
    pub(super) stderr: String,
}

pub(super) fn cases() -> Vec<Case> {
    let directory = recordings::path("cli");
    let names = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 59, "only {} cases in {}", names.len(), directory.display());
    names.iter().map(|name| read(name.strip_suffix(".txt").unwrap())).collect()
}

pub(super) fn read(name: &str) -> Case {
    let text = recordings::read(&format!("cli/{name}.txt"));
    let mut lines = text.split_inclusive('\n');
    let command = lines.next().and_then(|line| line.trim_end().strip_prefix("$ kube-proxy")).unwrap();
    let exit = lines.next().and_then(|line| line.trim_end().strip_prefix("exit code: ")).unwrap().parse().unwrap();
    let mut sections: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    for line in lines {
        match line.strip_prefix("--- ") {
            Some(title) => {
                current = title.trim_end().to_owned();
                sections.insert(current.clone(), String::new());
            }
            None => sections.get_mut(&current).unwrap().push_str(line),
        }
    }
    let files = |mark: &str| {
        let names = sections.iter().filter_map(|(title, text)| Some((title.strip_suffix(mark)?, text)));
        names.map(|(name, text)| (name.to_owned(), text.clone())).collect()
    };
    Case {
        name: name.to_owned(),
        args: split_shell(command),
        exit,
        given: files(" (given)"),
        written: files(" (written)"),
        stdout: sections["stdout"].clone(),
        stderr: sections["stderr"].clone(),
    }
}

/// Words of a command line; single quotes group.
fn split_shell(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

/// What came of a run: paths are those of the recordings.
pub(super) struct Run {
    pub(super) exit: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) written: BTreeMap<String, String>,
}

/// Runs the program by another name, with nothing in its environment and no tools to find.
pub(super) fn run(program: &str, args: &[String], directory: &Path) -> Run {
    let tools = tempfile::tempdir().unwrap();
    let mut command = match rustix::process::geteuid().is_root() {
        // A network namespace of its own, should it come as far as changing something.
        true => {
            let mut command = Command::new("unshare");
            command.args(["--net", "--", "/bin/bash", "-c", "PATH=$1; exec -a \"$2\" \"${@:3}\"", "bash"]);
            command.arg(tools.path()).arg(program).arg(env!("CARGO_BIN_EXE_ferrule"));
            command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            command
        }
        false => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ferrule"));
            command.arg0(program).env_clear().env("PATH", tools.path());
            command
        }
    };
    let output = command.args(args).output().unwrap();
    let here = directory.to_str().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(here, DIRECTORY);
    let written = std::fs::read_to_string(directory.join("out.conf")).ok();
    Run {
        exit: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        written: written.map(|written| ("out.conf".to_owned(), written)).into_iter().collect(),
    }
}

// === impl Case ===

impl Case {
    /// A directory with the files it is given.
    pub(super) fn directory(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in &self.given {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    /// Its arguments, with that directory in place of the recorded one.
    pub(super) fn args_in(&self, directory: &Path) -> Vec<String> {
        let here = directory.to_str().unwrap();
        self.args.iter().map(|arg| arg.replace(DIRECTORY, here)).collect()
    }

    fn check(&self) {
        let name = &self.name;
        let directory = self.directory();
        let here = run("kube-proxy", &self.args_in(directory.path()), directory.path());
        assert_eq!(here.exit, Some(self.exit), "{name}: {}", here.stderr);
        assert_eq!(here.written, self.written, "{name}");
        assert_eq!(comparable(&here.stderr), comparable(&self.stderr), "{name}");
        match name.as_str() {
            "version-raw" => check_raw_version(&here.stdout, &self.stdout),
            _ => assert_eq!(here.stdout, self.stdout, "{name}"),
        }
    }
}

/// The build's own fields differ; names and order of fields do not.
fn check_raw_version(ours: &str, recorded: &str) {
    let fields = |line: &str| -> Vec<String> {
        line.split(", ").map(|field| field.split(':').next().unwrap().to_owned()).collect()
    };
    assert_eq!(fields(ours), fields(recorded));
    assert!(ours.contains(&format!("GitVersion:\"{KUBERNETES_VERSION}\"")), "{ours}");
    assert_eq!(ours.lines().count(), 1);
}

/// What was printed without what is incidental.
fn comparable(stderr: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut text = stderr;
    // The usage text goes up to an empty line before the error, and says what the flags are.
    if let Some((before, after)) = text.split_once("Usage:") {
        let (usage, error) = after.split_once("\n\nError: ").expect("an empty line between usage and error");
        for flag in ["--bind-address", "--config", "--write-config-to"] {
            assert!(usage.contains(flag), "{flag} is not in {usage}");
        }
        lines.extend(before.lines().map(str::to_owned));
        lines.push("<usage>".to_owned());
        lines.push(format!("Error: {}", error.trim_end()));
        text = "";
    }
    let own = |line: &&str| ["FLAG: --manifests", "FLAG: --ferrule-"].iter().any(|flag| line.contains(flag));
    lines.extend(text.lines().filter(|line| !own(line)).map(|line| match line {
        usage if usage.starts_with("<usage: ") => "<usage>".to_owned(),
        json if json.starts_with('{') => comparable_json(json),
        line => comparable_text(line),
    }));
    // kube-proxy sets gates in no fixed order.
    for chunk in lines.chunk_by_mut(|a, b| is_gate(a) && is_gate(b)) {
        chunk.sort_unstable();
    }
    lines
}

fn is_gate(line: &str) -> bool {
    line.contains("\"Warning: setting GA feature gate.")
}

/// `I1120 22:34:22.178752    6230 server_linux.go:49] "Message"` without time, process and file;
/// other lines as they are.
fn comparable_text(line: &str) -> String {
    let line = line.split_once(" at=").map_or(line, |(line, _)| line);
    let head = || {
        let (head, message) = line.split_once("] ")?;
        let words: Vec<&str> = head.split_whitespace().collect();
        let [day, time, pid, place] = words.as_slice() else { return None };
        let (severity, day) = day.split_at_checked(1)?;
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        let well_formed = head.len() >= 30
            && matches!(severity, "I" | "W" | "E" | "F")
            && day.len() == 4
            && is_number(day)
            && time.split([':', '.']).map(str::len).eq([2, 2, 2, 6])
            && time.split([':', '.']).all(is_number)
            && head.get(22..29) == Some(format!("{pid:>7}").as_str())
            && is_number(pid)
            && place.split_once(':').is_some_and(|(file, line)| file.contains('.') && is_number(line));
        well_formed.then(|| format!("{severity}] {message}"))
    };
    head().unwrap_or_else(|| line.to_owned())
}

/// A JSON record without time and place of origin; the order of its keys counts.
fn comparable_json(line: &str) -> String {
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    let now = record["ts"].as_f64().unwrap();
    assert!((1.7e12..4e12).contains(&now), "{now} are no milliseconds");
    let caller = record["caller"].as_str().unwrap();
    let parts: Vec<&str> = caller.split(['/', ':']).collect();
    assert!(matches!(parts.as_slice(), [_, _, line] if line.parse::<u32>().is_ok()), "{caller}");
    assert!(line.starts_with("{\"ts\":"), "{line}");
    let (_, rest) = line.split_once("\",\"msg\":").unwrap();
    rest.to_owned()
}

#[test]
fn every_recorded_command_line() {
    let failed = |case: &Case| std::panic::catch_unwind(|| case.check()).is_err();
    let failed: Vec<String> = cases().into_iter().filter(failed).map(|case| case.name).collect();
    assert!(failed.is_empty(), "{} cases: {failed:?}", failed.len());
}

/// The name the program is called by changes nothing but the usage line.
#[test]
fn by_either_name() {
    let case = read("positional");
    for (name, expected) in [("ferrule", "ferrule"), ("/usr/local/bin/kube-proxy", "kube-proxy")] {
        let directory = case.directory();
        let here = run(name, &case.args_in(directory.path()), directory.path());
        assert_eq!((here.exit, here.stderr.as_str()), (Some(1), case.stderr.as_str()), "{name}");
        let here = run(name, &["--nosuch".to_owned()], directory.path());
        assert!(here.stderr.starts_with(&format!("Usage: {expected} [flags]\n")), "{name}: {}", here.stderr);
        let here = run(name, &["--help".to_owned()], directory.path());
        assert_eq!((here.exit, here.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(here.stdout.contains("--write-config-to"), "{name}: {}", here.stdout);
    }
}

#[test]
fn comparisons_can_fail() {
    let line = r#"I1120 22:34:22.178752    6230 server_linux.go:49] "Using iptables proxy""#;
    assert_eq!(comparable(line), [r#"I] "Using iptables proxy""#]);
    let as_they_are = [
        &line.replacen("I1", "X1", 1),
        &line.replacen(".178752", "", 1),
        &line.replacen("    6230", " 6230", 1),
        &line.replacen("server_linux.go:49", "main", 1),
    ];
    for bad in as_they_are {
        assert_eq!(comparable(bad), std::slice::from_ref(bad));
    }
    let with_place = r#"E1120 22:34:22.178752    6230 a.rs:1] "command failed" err="x" at="/f:1:2""#;
    assert_eq!(comparable(with_place), [r#"E] "command failed" err="x""#]);
}
