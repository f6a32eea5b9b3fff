//! The words and exit codes are those of iptables 1.8.9, both variants, called the same way.

use super::*;

fn run(kernel: &FakeKernel, program: &str, args: &str, stdin: &str) -> Result<(Output, Vec<String>), CommandError> {
    let args: Vec<&str> = args.split_whitespace().collect();
    let command = Command::new(program, &args).with_stdin(stdin.as_bytes().to_vec());
    let mut lines = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let output = runtime.block_on(kernel.run(command, &mut |line| lines.push(line.to_owned())))?;
    Ok((output, lines))
}

/// Runs `iptables` on both variants of a kernel, each of which says and exits as it does.
struct Both([FakeKernel; 2]);

impl Both {
    fn new() -> Both {
        Both([FakeKernel::new(Variant::Legacy), FakeKernel::new(Variant::Nft)])
    }

    #[track_caller]
    fn check(&self, program: &str, args: &str, stdin: &str, expected: [(i32, &str); 2]) {
        for (kernel, (code, text)) in self.0.iter().zip(expected) {
            let (output, _) = run(kernel, program, args, stdin).unwrap();
            assert_eq!(output.code, code, "{program} {args}\n{stdin}{}", output.stderr);
            assert!(output.stderr.contains(text), "{program} {args}\n{stdin}{:?}", output.stderr);
        }
    }

    #[track_caller]
    fn call(&self, args: &str, code: i32, text: &str) {
        self.check("iptables", &format!("-w 5 {args} -t nat"), "", [(code, text); 2]);
    }

    /// A restore of the nat table; `expected` are the exit code and words of each variant.
    #[track_caller]
    fn restore(&self, lines: &str, expected: [(i32, &str); 2]) {
        let input = format!("*nat\n{lines}\nCOMMIT\n");
        self.check("iptables-restore", "-w 5 --noflush --counters", &input, expected);
    }

    #[track_caller]
    fn rules(&self, chain: &str, expected: &[&str]) {
        for kernel in &self.0 {
            let tables = kernel.tables(IpFamily::V4);
            let chain = tables.chain(Table::Nat, chain).unwrap_or_else(|| panic!("{chain} is not there"));
            assert_eq!(chain.rules.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn single_operations() {
    let both = Both::new();
    both.call("-S POSTROUTING", 0, "");
    both.check(
        "iptables",
        "-w 5 -S NOPE -t nat",
        "",
        [
            (1, "iptables: No chain/target/match by that name."),
            (1, "chain `NOPE' in table `nat' is incompatible, use 'nft' tool."),
        ],
    );
    both.call("-N A", 0, "");
    both.call("-N A", 1, "iptables: Chain already exists.");
    both.call("-C A -j ACCEPT", 1, "iptables: Bad rule (does a matching rule exist in that chain?).");
    both.call("-C NOPE -j ACCEPT", 1, "iptables: Bad rule (does a matching rule exist in that chain?).");
    both.check(
        "iptables",
        "-w 5 -C A -t nat -j NOPE",
        "",
        [
            (2, "iptables v1.8.9 (legacy): Couldn't load target `NOPE':No such file or directory"),
            (2, "iptables v1.8.9 (nf_tables): Chain 'NOPE' does not exist"),
        ],
    );
    both.call("-I NOPE -j ACCEPT", 1, "iptables: No chain/target/match by that name.");
    both.call("-I A -j ACCEPT", 0, "");
    both.call("-C A -j ACCEPT", 0, "");
    both.check(
        "iptables",
        "-X A -t nat",
        "",
        [
            (1, "iptables: Directory not empty."),
            (4, "iptables v1.8.9 (nf_tables):  CHAIN_DEL failed (Device or resource busy): chain A"),
        ],
    );
    both.call("-F A", 0, "");
    both.call("-N B", 0, "");
    both.call("-I B -j A", 0, "");
    both.check(
        "iptables",
        "-X A -t nat",
        "",
        [
            (1, "iptables: Too many links."),
            (4, "iptables v1.8.9 (nf_tables):  CHAIN_DEL failed (Device or resource busy): chain A"),
        ],
    );
    both.call("-X NOPE", 1, "iptables: No chain/target/match by that name.");
    both.check(
        "iptables",
        "-X PREROUTING -t nat",
        "",
        [
            (1, "iptables: Invalid argument. Run `dmesg' for more information."),
            (1, "iptables: No chain/target/match by that name."),
        ],
    );
    both.call("-D B 9", 1, "iptables: Index of deletion too big.");
    both.call("-D B 1", 0, "");
    both.call("-X A", 0, "");
    both.check("iptables", "-t nope -N A", "", [(3, "Table does not exist"), (3, "does not exist")]);
}

#[test]
fn restores() {
    let both = Both::new();
    both.restore(":A - [0:0]", [(0, ""); 2]);
    both.restore(
        ":C - [0:0]\n-A C -j NOPE",
        [
            (2, "Couldn't load target `NOPE':No such file or directory\n\nError occurred at line: 3"),
            (2, "Chain 'NOPE' does not exist\nError occurred at line: 3"),
        ],
    );
    both.restore(
        ":C - [0:0]\n-A NOPE -j C",
        [
            (1, "iptables-restore: line 3 failed\n"),
            (1, "iptables-restore: line 3 failed: No chain/target/match by that name."),
        ],
    );
    both.restore(
        ":C - [0:0]\n-A C -j A\n-X A",
        [
            (1, "iptables-restore: line 4 failed\n"),
            (4, "\nline 4: CHAIN_DEL failed (Device or resource busy): chain A"),
        ],
    );
    both.restore(
        "-D NOPE -j A",
        [
            (1, "iptables-restore: line 2 failed\n"),
            (1, "iptables-restore: line 2 failed: Bad rule (does a matching rule exist in that chain?)."),
        ],
    );
    both.restore("-X NOPE", [(1, "line 2 failed\n"), (1, "line 2 failed: No chain/target/match by that name.")]);
    both.restore("-N C\n-N C", [(1, "line 3 failed\n"), (1, "line 3 failed: Chain already exists.")]);
    both.restore("-A A -p tcp --bogus x", [(2, "Error occurred at line: 2"); 2]);
    both.restore("garbage", [(2, "Bad argument `garbage'\nError occurred at line: 2"); 2]);
    both.restore("-A A -j DROP", [(2, "the use of DROP is therefore inhibited."); 2]);
    both.restore(
        "-A PREROUTING -j REJECT",
        [
            (1, "iptables-restore: line 3 failed\n"),
            (4, "\nline 2: RULE_APPEND failed (Invalid argument): rule in chain PREROUTING"),
        ],
    );
    both.restore(
        ":THISCHAINNAMEISLONGERTHANTWENTYNINECHARS - [0:0]",
        [
            (2, "Invalid chain name `THISCHAINNAMEISLONGERTHANTWENTYNINECHARS' (28 chars max)"),
            (2, "chain name `THISCHAINNAMEISLONGERTHANTWENTYNINECHARS' too long (must be under 29 chars)"),
        ],
    );
    both.check("iptables-restore", "--noflush", "*nat\n:C - [0:0]\n", [(1, "COMMIT expected at line 3"); 2]);
    both.check(
        "iptables-restore",
        "--noflush",
        "*nosuch\nCOMMIT\n",
        [(2, "unable to initialize table 'nosuch'"), (2, "line 1 table name 'nosuch' invalid")],
    );
    for kernel in &both.0 {
        let tables = kernel.tables(IpFamily::V4);
        assert!(tables.chain(Table::Nat, "C").is_none(), "a table that fails is left as it was");
        assert_eq!(tables.rules(), 0);
    }

    both.restore(":C - [0:0]\n-A C -j ACCEPT\n-A C -s 1.2.3.4 -j ACCEPT\n-I C -j RETURN\n-I C 2 -j A", [(0, ""); 2]);
    both.rules("C", &["-j RETURN", "-j A", "-j ACCEPT", "-s 1.2.3.4/32 -j ACCEPT"]);
    both.restore(
        "-D C -s 1.2.3.4/32 -j ACCEPT\n-D C 1\n-I C 4 -j RETURN",
        [(1, "line 4 failed\n"), (1, "line 4 failed: Index of insertion too big.")],
    );
    both.restore("-D C -s 1.2.3.4/32 -j ACCEPT\n-D C 1\n-I C 3 -j RETURN", [(0, ""); 2]);
    both.rules("C", &["-j A", "-j ACCEPT", "-j RETURN"]);
    both.restore(":C - [0:0]\n-X C\n-X A\n:PREROUTING DROP [0:0]", [(0, ""); 2]);
    for kernel in &both.0 {
        let tables = kernel.tables(IpFamily::V4);
        assert!(tables.chain(Table::Nat, "A").is_none());
        assert_eq!(tables.chain(Table::Nat, "PREROUTING").unwrap().policy.as_deref(), Some("DROP"));
    }
}

#[test]
fn tables_are_committed_one_by_one() {
    let both = Both::new();
    let input = "*filter\n:Q - [0:0]\nCOMMIT\n*nat\n:R - [0:0]\n-X NOPE\nCOMMIT\n";
    both.check("iptables-restore", "--noflush", input, [(1, "line 6 failed"); 2]);
    both.check("iptables-restore", "--noflush -T nat", input, [(1, "line 6 failed"); 2]);
    for kernel in &both.0 {
        assert!(kernel.tables(IpFamily::V4).chain(Table::Filter, "Q").is_some());
        assert!(kernel.tables(IpFamily::V4).chain(Table::Nat, "R").is_none());
        assert!(kernel.tables(IpFamily::V6).chain(Table::Filter, "Q").is_none(), "families are apart");
    }
    both.check("ip6tables-restore", "--noflush --test", "*nat\n:R - [0:0]\nCOMMIT\n", [(0, ""); 2]);
    both.check("iptables-restore", "", "*filter\n:S - [0:0]\nCOMMIT\n", [(0, ""); 2]);
    for kernel in &both.0 {
        assert!(kernel.tables(IpFamily::V6).chain(Table::Nat, "R").is_none(), "a test changes nothing");
        assert!(kernel.tables(IpFamily::V4).chain(Table::Filter, "Q").is_none(), "without --noflush all else goes");
    }
}

#[test]
fn versions_lists_and_saves() {
    let kernel = FakeKernel::new(Variant::Nft);
    assert_eq!(run(&kernel, "iptables", "--version", "").unwrap().1, ["iptables v1.8.9 (nf_tables)"]);
    run(&kernel, "ip6tables-restore", "--noflush", "*nat\n:A - [0:0]\n-A A -j ACCEPT\nCOMMIT\n").unwrap();
    assert_eq!(run(&kernel, "ip6tables", "-w 5 -S A -t nat", "").unwrap().1, ["-N A", "-A A -j ACCEPT"]);
    let (_, lines) = run(&kernel, "ip6tables-save", "-t nat", "").unwrap();
    let read = Tables::parse(IpFamily::V6, &lines.join("\n")).unwrap();
    assert_eq!(read.to_string(), kernel.tables(IpFamily::V6).to_string());
    let tables: Vec<_> = run(&kernel, "iptables-save", "", "").unwrap().1;
    assert_eq!(tables.iter().filter(|line| line.starts_with('*')).count(), 3);
    assert!(matches!(run(&kernel, "nft", "list ruleset", ""), Err(CommandError::Start { .. })));
    let calls = kernel.take_calls();
    let programs: Vec<&str> = calls.iter().map(|call| call.command.program.as_str()).collect();
    assert_eq!(programs, ["iptables", "ip6tables-restore", "ip6tables", "ip6tables-save", "iptables-save", "nft"]);
    assert!(calls.last().is_some_and(|call| call.output.is_none()));
    assert!(kernel.calls().is_empty());
}

#[test]
fn rules_of_others_are_kept() {
    let text = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
        :X - [0:0]\n-A PREROUTING -m foo --bar -j X\n-A X -j LOG\nCOMMIT\n";
    let kernel = FakeKernel::new(Variant::Legacy);
    kernel.load(Tables::parse(IpFamily::V4, text).unwrap());
    assert_eq!(kernel.tables(IpFamily::V4).table_text(Table::Nat), text);
    run(&kernel, "iptables", "-t nat -F X", "").unwrap();
    assert_eq!(run(&kernel, "iptables", "-t nat -X X", "").unwrap().0.stderr, "iptables: Too many links.\n");
}

#[test]
fn faults_come_when_they_are_due() {
    let kernel = FakeKernel::new(Variant::Legacy);
    let input = "*filter\n:F - [0:0]\nCOMMIT\n*nat\n:N - [0:0]\nCOMMIT\n";
    let restore = || run(&kernel, "iptables-restore", "--noflush", input);
    let has = |table, chain| kernel.tables(IpFamily::V4).chain(table, chain).is_some();
    let both = || (has(Table::Filter, "F"), has(Table::Nat, "N"));

    kernel.inject(1, Fault::Locked);
    kernel.inject(2, Fault::KilledBefore);
    kernel.inject(3, Fault::KilledBetween);
    kernel.inject(5, Fault::KilledAfter);
    kernel.inject(9, Fault::Locked);
    assert_eq!(run(&kernel, "iptables", "-N A", "").unwrap().0.code, 0);
    run(&kernel, "iptables-save", "", "").unwrap();
    let (output, _) = restore().unwrap();
    assert_eq!(output.code, 4);
    assert!(output.stderr.contains("Another app is currently holding the xtables lock"), "{}", output.stderr);
    assert!(matches!(restore(), Err(CommandError::Signal { .. })));
    assert_eq!(both(), (false, false));
    assert!(matches!(restore(), Err(CommandError::Signal { .. })));
    assert_eq!(both(), (true, false));
    kernel.keep_history();
    assert_eq!(restore().unwrap().0.code, 0);
    assert_eq!(kernel.take_history().len(), 2);
    kernel.load(Tables::new(IpFamily::V4));
    assert!(matches!(restore(), Err(CommandError::Signal { .. })));
    assert_eq!(both(), (true, true));
    assert_eq!(kernel.clear_faults(), 1);
}

#[test]
fn refusals_are_said_in_every_way() {
    let both = Both::new();
    let rule = ":A - [0:0]\n:KUBE-SEP-X - [0:0]\n-A A -j KUBE-SEP-X\n-A A -j ACCEPT";
    let refuse = |refusal| {
        for kernel in &both.0 {
            kernel.accept_all();
            kernel.refuse("KUBE-SEP-X", refusal);
        }
    };
    refuse(Refusal::AtLine);
    both.restore(rule, [(2, "Error occurred at line: 4"); 2]);
    refuse(Refusal::AtCommit);
    both.restore(
        rule,
        [
            (1, "iptables-restore: line 6 failed\n"),
            (4, "\nline 4: RULE_APPEND failed (Invalid argument): rule in chain A"),
        ],
    );
    refuse(Refusal::Somewhere);
    both.restore(rule, [(1, "iptables-restore: Memory allocation problem."); 2]);
    both.restore(":KUBE-SEP-X - [0:0]\n-X KUBE-SEP-X", [(0, ""); 2]);
    both.0.iter().for_each(FakeKernel::accept_all);
    both.restore(rule, [(0, ""); 2]);
}
