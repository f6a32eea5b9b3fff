use super::*;

const BASE: &str = "*nat\n:OUTPUT ACCEPT [1:56]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
    -A OUTPUT -j KUBE-SERVICES\n\
    -A KUBE-SERVICES -d 10.0.0.1/32 -j KUBE-SVC-A\n\
    -A KUBE-SERVICES -d 10.0.0.2/32 -j KUBE-SVC-A\n\
    -A KUBE-SERVICES -m comment --comment \"x; NOTE: this must be the last rule in this chain\" -j X\n\
    -A KUBE-SVC-A -j ONE\n-A KUBE-SVC-A -j TWO\n-A KUBE-SVC-A -j TWO\nCOMMIT\n";

#[track_caller]
fn check(change: impl Fn(&mut Tables), expected: &str) {
    let mut actual = Tables::parse(BASE);
    change(&mut actual);
    assert_eq!(Tables::parse(BASE).differences(&actual), expected);
}

#[test]
fn equal_states_do_not_differ() {
    check(|_| {}, "");
    assert_eq!(Tables::parse(&Tables::parse(BASE).to_restore()), Tables::parse(BASE));
}

#[test]
fn order_is_free_only_in_shared_chains() {
    check(|state| state.chain("nat", "KUBE-SERVICES").rules.swap(0, 1), "");
    check(
        |state| state.chain("nat", "KUBE-SVC-A").rules.swap(0, 1),
        "nat KUBE-SVC-A:\n  \
         misplaced: -j ONE\n      (found as rule 2, expected elsewhere)\n",
    );
}

#[test]
fn the_last_rule_must_be_last() {
    check(
        |state| state.chain("nat", "KUBE-SERVICES").rules.swap(1, 2),
        "nat KUBE-SERVICES:\n  \
         misplaced: -d 10.0.0.2/32 -j KUBE-SVC-A\n      (after a rule that must be the last)\n",
    );
}

#[test]
fn a_counting_rule_comes_before_the_general_one() {
    let counting = "-d 127.0.0.0/8 -p tcp -m tcp --dport 1 -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j X";
    let general = "-p tcp -m tcp --dport 1 -j X";
    let rules = |rules: &[&str]| {
        let mut tables = Tables::default();
        tables.add_chain("nat", "KUBE-NODEPORTS", rules);
        tables
    };
    let recorded = rules(&[counting, "-j Y", general]);
    assert_eq!(recorded.differences(&rules(&["-j Y", counting, general])), "");
    assert_eq!(
        recorded.differences(&rules(&[general, counting, "-j Y"])),
        format!(
            "nat KUBE-NODEPORTS:\n  misplaced: {counting}\n      \
             (after the rule for all addresses: counts nothing)\n"
        )
    );
}

#[test]
fn rules_are_counted() {
    check(|state| _ = state.chain("nat", "KUBE-SVC-A").rules.pop(), "nat KUBE-SVC-A:\n  missing: -j TWO\n");
    check(|state| state.append("nat", "KUBE-SVC-A", "-j ONE"), "nat KUBE-SVC-A:\n  unexpected: -j ONE\n");
    check(
        |state| state.insert("nat", "KUBE-SERVICES", "-d 10.0.0.1/32 -j KUBE-SVC-A"),
        "nat KUBE-SERVICES:\n  unexpected: -d 10.0.0.1/32 -j KUBE-SVC-A\n",
    );
}

#[test]
fn chains_policies_and_tables_count() {
    check(
        |state| _ = state.0.get_mut("nat").unwrap().remove("KUBE-SVC-A"),
        "nat KUBE-SVC-A: chain missing\n  missing: -j ONE\n  missing: -j TWO\n  missing: -j TWO\n",
    );
    check(|state| state.add_chain("nat", "OLD", &["-j X"]), "nat OLD: chain unexpected\n  unexpected: -j X\n");
    check(
        |state| state.chain("nat", "OUTPUT").policy = "DROP".to_owned(),
        "nat OUTPUT: policy DROP instead of ACCEPT\n",
    );
    check(|state| _ = state.0.remove("nat"), "table nat: missing\n");
    check(|state| state.add_chain("raw", "C", &[]), "table raw: unexpected\n");
}
