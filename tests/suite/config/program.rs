//! The built program, where no recording shows what it does.

use std::path::Path;

use super::document;
use super::recorded_runs::{Run, run};

/// Runs it as kube-proxy, in a directory with a configuration file if there is one.
fn kube_proxy(file: Option<&str>, line: &str) -> Run {
    let directory = tempfile::tempdir().unwrap();
    if let Some(text) = file {
        std::fs::write(directory.path().join("config.conf"), text).unwrap();
    }
    let here = |word: &str| word.replace("HERE", directory.path().to_str().unwrap());
    let args: Vec<String> = line.split_whitespace().map(here).collect();
    run("kube-proxy", &args, directory.path())
}

/// The messages of log lines in text form, with what follows them.
fn messages(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| Some(line.split_once("] ")?.1)).collect()
}

#[test]
fn writing_the_configuration_wins() {
    for line in ["--cleanup", "--init-only", "--cleanup --init-only", "--proxy-mode=ipvs", "--config=HERE/config.conf"]
    {
        let ran = kube_proxy(Some(&document("mode: ipvs")), &format!("{line} --write-config-to=HERE/out.conf"));
        assert_eq!(ran.exit, Some(0), "{line}: {}", ran.stderr);
        assert!(ran.written["out.conf"].contains("\nkind: KubeProxyConfiguration\n"), "{line}");
        let last = messages(&ran.stderr).pop().unwrap_or_default();
        assert_eq!(last, r#""Wrote configuration" file="/var/lib/kube-proxy/out.conf""#, "{line}");
    }
    // Nothing is written before the checks.
    let ran = kube_proxy(None, "--oom-score-adj=2000 --write-config-to=HERE/out.conf");
    assert_eq!((ran.exit, ran.written.len()), (Some(1), 0));
}

#[test]
fn what_was_there_is_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.conf");
    std::fs::write(&path, "x".repeat(10_000)).unwrap();
    let write = |path: &Path| run("kube-proxy", &[format!("--write-config-to={}", path.display())], directory.path());
    let ran = write(&path);
    assert!(ran.exit == Some(0) && ran.written["out.conf"].ends_with("sourceVip: \"\"\n"), "{}", ran.stderr);
    let ran = write(directory.path());
    assert_eq!(ran.exit, Some(1));
    assert_eq!(
        messages(&ran.stderr)[1..],
        [
            r#""Error running ProxyServer" err="open /var/lib/kube-proxy: is a directory""#,
            r#""command failed" err="open /var/lib/kube-proxy: is a directory""#
        ]
    );
}

#[test]
fn errors_go_one_way_and_the_rest_another() {
    let gate = "--feature-gates=LoggingAlphaOptions=true --write-config-to=HERE/out.conf";
    for format in ["text", "json"] {
        let flags = format!("{gate} --logging-format={format} --log-{format}-split-stream");
        let ran = kube_proxy(None, &flags);
        assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
        assert!(ran.stdout.contains("Wrote configuration") && ran.stdout.lines().count() == 1, "{}", ran.stdout);
        // From before logging was configured.
        assert_eq!(messages(&ran.stderr), [r#""Using iptables proxy""#]);

        let ran = kube_proxy(None, &format!("{flags} --oom-score-adj=2000"));
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(1), ""));
        assert!(ran.stderr.lines().last().unwrap().contains("command failed"), "{}", ran.stderr);
    }
}

/// With a file, flags are listed as they were given; the gates are those of the file.
#[test]
fn the_list_of_flags() {
    let file = document("mode: nftables\nfeatureGates: {WatchListClient: false, NoSuchGate: true}");
    let line = "--config=HERE/config.conf --proxy-mode= -v1 --vmodule=a=1,b=2 --ipvs-exclude-cidrs=10.0.0.0/8,fd00::/8 \
                --feature-gates=B=true,A=0 --write-config-to=HERE/out.conf";
    let ran = kube_proxy(Some(&file), line);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    let said = messages(&ran.stderr);
    assert!(said[0].contains("featureGate=\"NoSuchGate\""), "{}", said[0]);
    let flags: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("FLAG: --")).collect();
    let mut sorted = flags.clone();
    sorted.sort_by_key(|flag| flag.split_once('=').unwrap().0);
    assert_eq!(flags, sorted);
    for expected in [
        r#"config="/var/lib/kube-proxy/config.conf""#,
        r#"proxy-mode="""#,
        r#"v="1""#,
        r#"vmodule="a=1,b=2""#,
        r#"ipvs-exclude-cidrs="[10.0.0.0/8,fd00::/8]""#,
        r#"feature-gates="A=false,B=true""#,
        r#"help="false""#,
        r#"manifests="[]""#,
        r#"ferrule-service-dispatch="linear""#,
        r#"ferrule-endpoint-layout="chains""#,
        r#"ferrule-localhost-nodeports="false""#,
    ] {
        assert!(flags.contains(&expected), "{expected} is not among {flags:#?}");
    }
    assert_eq!(said[said.len() - 2], r#""Updated" featureGates={"WatchListClient": false}"#.replace(": ", ":"));
    // As JSON, they have the level at which they are logged.
    let ran = kube_proxy(None, "--logging-format=json -v=1 --write-config-to=HERE/out.conf");
    let flag = ran.stderr.lines().find(|line| line.contains("FLAG: --v=")).unwrap();
    let flag: serde_json::Value = serde_json::from_str(flag).unwrap();
    assert_eq!((&flag["msg"], &flag["v"]), (&"FLAG: --v=\"1\"".into(), &1.into()));
}

#[test]
fn where_in_the_file() {
    let ran = kube_proxy(Some(&document("nope: 1\nmode: [x]")), "--config=HERE/config.conf");
    assert_eq!(ran.exit, Some(1));
    let error = "failed complete: failed to decode: json: cannot unmarshal array into Go struct field \
                 KubeProxyConfiguration.mode of type string";
    assert_eq!(
        messages(&ran.stderr),
        [format!(r#""command failed" err="{error}" at="/var/lib/kube-proxy/config.conf:4:1""#)]
    );
    let ran = kube_proxy(
        Some(&document("nope: 1\nmode: nftables")),
        "--config=HERE/config.conf --write-config-to=HERE/out.conf",
    );
    let complaint = r#"strict decoding error: unknown field \"nope\""#;
    assert_eq!(
        messages(&ran.stderr)[0],
        format!(
            r#""Using lenient decoding as strict decoding failed" err="{complaint}" at=["/var/lib/kube-proxy/config.conf:3:1"]"#
        )
    );
}

/// A rate limit is no limit without a rate.
#[test]
fn a_burst_of_zero() {
    let burst = "burst is required to be greater than 0";
    for (qps, refused) in [("5", true), ("0.1", true), ("0", false), ("-1", false)] {
        let line = format!("--master=http://127.0.0.1:1 --kube-api-burst=0 --kube-api-qps={qps}");
        let ran = kube_proxy(None, &line);
        assert_eq!(ran.stderr.contains(burst), refused, "{qps}: {}", ran.stderr);
        // Without tools there is an end to everything.
        assert_eq!(ran.exit, Some(1), "{qps}: {}", ran.stderr);
    }
}
