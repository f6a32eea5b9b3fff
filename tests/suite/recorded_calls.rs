//! A real kube-proxy's calls of the tools, made again on the kernel in memory, leave what they left
//! in the real one. So rules are read as the real tools read them, and the kernel in memory is one.

use ferrule::backend::iptables::parse::Saved;
use ferrule::backend::iptables::ruleset::{Rule, Table};
use ferrule::command::fake::{FakeKernel, Tables, Variant};
use ferrule::command::{Command, Run};
use ferrule::net::IpFamily;

use crate::recordings;

#[test]
fn rules_come_back_as_they_were_saved() {
    let mut rules = 0;
    for case in recordings::iptables_cases() {
        for family in IpFamily::BOTH {
            let text = recordings::saved_text(&case, family);
            recordings::for_each_saved(&text, |saved| {
                if let Saved::Rule { text, .. } = saved {
                    assert_eq!(Rule::parse(text, family).map(|rule| rule.to_string()).as_deref(), Ok(text), "{case}");
                    rules += 1;
                }
            });
        }
    }
    assert!(rules > 10_000, "only {rules} rules");
}

#[tokio::test]
async fn a_recorded_kube_proxy_leaves_the_recorded_rules() {
    for (case, variant) in [("legacy-base", Variant::Legacy), ("nft-base", Variant::Nft)] {
        let kernel = FakeKernel::new(variant);
        replay(&kernel, &format!("{case}/calls-initial.txt")).await;
        compare(&kernel, case);
        for step in recordings::steps() {
            let directory = format!("{case}/steps/{step}");
            replay(&kernel, &format!("{directory}/calls.txt")).await;
            compare(&kernel, &directory);
        }
        replay(&kernel, &format!("{case}/cleanup/calls.txt")).await;
        compare(&kernel, &format!("{case}/cleanup"));
    }
}

/// Makes the calls of a recording; each must end as it did.
async fn replay(kernel: &FakeKernel, file: &str) {
    let calls = recorded_calls(&recordings::read(file));
    assert!(!calls.is_empty(), "{file}");
    for (command, code) in calls {
        let shown = format!("{file}: {} {}", command.program, command.args.join(" "));
        let output = kernel.run(command, &mut |_| {}).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(output.code, code, "{shown}: {}", output.stderr);
    }
}

#[track_caller]
fn compare(kernel: &FakeKernel, directory: &str) {
    for family in IpFamily::BOTH {
        let recorded = Tables::parse(family, &recordings::saved_text(directory, family)).unwrap();
        let ours = kernel.tables(family);
        for table in [Table::Mangle, Table::Filter, Table::Nat] {
            assert_eq!(ours.table_text(table), recorded.table_text(table), "{directory} {family} {table}");
        }
    }
}

/// The calls of iptables tools in a recording, with their exit codes.
fn recorded_calls(text: &str) -> Vec<(Command, i32)> {
    let mut calls: Vec<(Command, i32)> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("### ") {
            Some(call) => {
                let (call, code) = call.split_once("   -> ").unwrap();
                let mut words = call.split(' ');
                let mut command = Command::new(words.next().unwrap(), &[]);
                // Arguments are recorded without quotes; only those of comments have blanks.
                while let Some(word) = words.next() {
                    command.args.push(word.to_owned());
                    if word == "--comment" {
                        let comment: Vec<&str> = words.by_ref().take_while(|word| *word != "-j").collect();
                        command.args.extend([comment.join(" "), "-j".to_owned()]);
                    }
                }
                calls.push((command, code.parse().unwrap()));
            }
            None => {
                let (command, _) = calls.last_mut().expect("input follows a call");
                command.stdin.extend_from_slice(line.as_bytes());
                command.stdin.push(b'\n');
            }
        }
    }
    calls.retain(|(command, _)| command.program != "nft");
    calls
}
