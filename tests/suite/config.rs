//! The configuration through its door: command line and file in, `Config` or message out.

mod command_line;
mod files;
mod program;
mod recorded;
mod recorded_runs;
mod watched;

use std::path::Path;

use ferrule::config::flags::{self, Invocation, Parsed};
use ferrule::config::{Config, Loaded, load};

/// A command line as a list, without the program's name.
pub(crate) fn parse(args: &[&str]) -> Result<Parsed, flags::Refused> {
    let args: Vec<String> = std::iter::once("kube-proxy").chain(args.iter().copied()).map(str::to_owned).collect();
    flags::parse(&args)
}

/// What a command line of the proxy comes to.
#[track_caller]
pub(crate) fn load_flags(args: &[&str]) -> Loaded {
    match parse(args).map(|parsed| parsed.invocation) {
        Ok(Invocation::Proxy(flags)) => load(&flags),
        other => panic!("{args:?} is not a command line of the proxy: {other:?}"),
    }
}

/// The configuration of a command line that is in order.
#[track_caller]
pub(crate) fn config(args: &[&str]) -> Config {
    load_flags(args).config.unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

/// What a file's text comes to, with further flags.
#[track_caller]
pub(crate) fn load_text(text: &str, args: &[&str]) -> Loaded {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    std::fs::write(&path, text).unwrap();
    let flag = config_flag(&path);
    load_flags(&[&[flag.as_str()], args].concat())
}

/// A document with the given lines below its kind.
pub(crate) fn document(lines: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{lines}\n")
}

/// The configuration of a document that is in order.
#[track_caller]
pub(crate) fn config_of(lines: &str) -> Config {
    load_text(&document(lines), &[]).config.unwrap_or_else(|error| panic!("{lines}: {error}"))
}

/// `--config=…`
pub(crate) fn config_flag(path: &Path) -> String {
    format!("--config={}", path.display())
}
