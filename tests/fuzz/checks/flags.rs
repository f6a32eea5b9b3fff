//! The command line: any arguments come to something to do, or to a message.

use ferrule::config::flags::{self, Invocation, Parsed, Refused};
use ferrule::config::load_text;

use super::config;

/// A file, should the flags name one.
const FILE: &[u8] = b"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Arguments, one a line, without the program's name.
pub(super) fn arguments(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let args: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let parsed = match parse(&args) {
        Ok(parsed) => parsed,
        Err(refused) => {
            let said = refused.to_string();
            assert!(said.contains("Error: ") && !refused.error.trim().is_empty(), "{said:?}");
            return;
        }
    };
    match &parsed.invocation {
        Invocation::Proxy(flags) | Invocation::Render { flags, .. } => {
            config::assert_in_order(&load_text(flags, FILE));
        }
        Invocation::Print(text) => assert!(text.ends_with('\n'), "{text:?}"),
        Invocation::Demo { .. } => {}
    }
    if !args.iter().any(|arg| arg == "--") {
        // Where flags end, a mark that says so changes nothing.
        assert_same(&parsed, &[&args[..], &["--".to_owned()]].concat());
    }
    if let Some(args) = args.iter().map(|arg| with_underscores(arg)).collect::<Option<Vec<_>>>() {
        assert_same(&parsed, &args);
    }
}

fn parse(args: &[String]) -> Result<Parsed, Refused> {
    flags::parse(&[&["kube-proxy".to_owned()], args].concat())
}

/// Flags are not made to be compared, but as text they can be.
#[track_caller]
fn assert_same(parsed: &Parsed, args: &[String]) {
    let again = parse(args).map(|again| format!("{again:?}"));
    assert_eq!(again, Ok(format!("{parsed:?}")), "{args:?}");
}

/// `--a_b=value` for `--a-b=value`; nothing for other forms, which may be values of a flag before.
fn with_underscores(arg: &str) -> Option<String> {
    let (name, value) = arg.strip_prefix("--")?.split_once('=')?;
    (!name.starts_with('-')).then(|| format!("--{}={value}", name.replace('-', "_")))
}
