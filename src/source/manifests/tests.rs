//! Decoding. Tests of reading and following files are in `tests/suite/manifests.rs`.

use super::decode::decode;
use crate::cluster::Event;
use crate::model::Service;
use crate::net::IpFamily;

const NODE: &str = "node-000";

/// What a file is decoded to, or why not.
#[track_caller]
fn check(text: &str, expected: &str) {
    let found = match decode(text.as_bytes(), NODE) {
        Ok(decoded) => {
            let mut words: Vec<String> = Vec::new();
            for entry in &decoded.entries {
                let nothing = if entry.value.is_none() { " (nothing)" } else { "" };
                words.push(format!("{} at {}{nothing}", entry.object, entry.line));
                words.extend(entry.problems.iter().map(|p| format!("{}: {}", p.field, p.reason)));
            }
            if decoded.ignored > 0 {
                words.push(format!("{} ignored", decoded.ignored));
            }
            words.join("; ")
        }
        Err(fault) => format!("{}:{}: {}: {}", fault.line, fault.column, fault.field, fault.reason),
    };
    assert_eq!(found, expected, "{text}");
}

fn service_with(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.0.0.1\n{spec}")
}

#[track_caller]
fn service(text: &str) -> Service {
    let decoded = decode(text.as_bytes(), NODE).unwrap();
    let [entry] = decoded.entries.as_slice() else { panic!("{:?}", decoded.entries) };
    assert_eq!(entry.problems, [], "{text}");
    match entry.value.as_ref().map(super::admit::Value::event) {
        Some(Event::Service(service)) => (*service).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_and_lists() {
    check("", "");
    check("# nothing yet\n---\n---\n# still nothing\n", "");
    check(&service_with("  ports: [{port: 80}]\n"), "Service default/web at 1");
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  namespace: a\n  \
                 labels: {kubernetes.io/service-name: web}\naddressType: IPv4\n";
    check(slice, "EndpointSlice a/web-1 at 1");
    check(&format!("{slice}---\n# two\n{slice}"), "EndpointSlice a/web-1 at 1; EndpointSlice a/web-1 at 10");
    let node = |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    check(&(node("other") + &node(NODE)), "Node node-000 at 6; 1 ignored");
    let service_cidr =
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: ";
    check(&format!("{service_cidr}[10.96.0.0/16]}}"), "ServiceCIDR kubernetes at 1");
    check(&format!("{service_cidr}}}"), "ServiceCIDR kubernetes at 1");
    let list = "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Pod\n  spec: {ports: none}\n- apiVersion: v1\n  \
                kind: Service\n  metadata: {name: web}\n  spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n- apiVersion: \
                v1\n  kind: Node\n  metadata:\n    name: node-000\nkind: List\n";
    check(list, "Service default/web at 6; Node node-000 at 10; 1 ignored");
    check(&format!("# c\n\n---\n{list}"), "Service default/web at 9; Node node-000 at 13; 1 ignored");
    // As the API answers: items of a typed list do not say what they are.
    check(
        "{\"kind\":\"NodeList\",\"apiVersion\":\"v1\",\"items\":[{\"metadata\":{\"name\":\"node-000\"}}]}",
        "Node node-000 at 1",
    );
    check(
        "kind: EndpointSliceList\napiVersion: discovery.k8s.io/v1\nitems:\n- metadata: {name: s, labels: \
         {kubernetes.io/service-name: web}}\n  addressType: IPv6\n",
        "EndpointSlice default/s at 4",
    );
    check("kind: ServiceList\napiVersion: v1\nitems: []\n", "");
    check("kind: List\napiVersion: v1\n", "");
    check("kind: List\napiVersion: v1\nitems: null\n", "");
    check(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: NodeList\n  items:\n  - metadata: {name: node-000}\n",
        "Node node-000 at 7",
    );
}

#[test]
fn other_kinds_are_ignored() {
    check("apiVersion: v1\nkind: Endpoints\nsubsets: {}\n---\napiVersion: apps/v1\nkind: Deployment\n", "2 ignored");
    check("apiVersion: serving.knative.dev/v1\nkind: Service\nspec: {ports: 3}\n", "1 ignored");
    check("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nendpoints: {}\n", "1 ignored");
    check("apiVersion: apps/v1\nkind: DeploymentList\nitems: [{metadata: {name: x}}]\n", "1 ignored");
    check("{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"data\": {\"items\": \"x\"}}", "1 ignored");
    // A document marker inside a value is not one.
    check("apiVersion: v1\nkind: ConfigMap\ndata:\n  x: |\n    ---\n    kind: Service\n", "1 ignored");
}

#[test]
fn selectors_of_the_api() {
    let labelled = |label: &str| {
        service_with("  ports: [{port: 80}]\n")
            .replace("  name: web\n", &format!("  name: web\n  labels: {{{label}}}\n"))
    };
    check(&labelled("service.kubernetes.io/service-proxy-name: other"), "Service default/web at 1 (nothing)");
    check(&labelled("service.kubernetes.io/service-proxy-name: ''"), "Service default/web at 1 (nothing)");
    check(&labelled("service.kubernetes.io/headless: ''"), "Service default/web at 1");
    check(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s\n  labels:\n    \
         kubernetes.io/service-name: web\n    service.kubernetes.io/headless: ''\naddressType: IPv4\n",
        "EndpointSlice default/s at 1 (nothing)",
    );
    check(&service_with("  ports: [{port: 80}]\n").replace("10.0.0.1", "None"), "Service default/web at 1 (nothing)");
    check(
        &service_with("  type: ExternalName\n").replace("  clusterIP: 10.0.0.1\n", ""),
        "Service default/web at 1 (nothing)",
    );
}

#[test]
fn defaults_of_the_api() {
    let bare = service(&service_with("  ports: [{port: 80}]\n"));
    assert_eq!(*bare.cluster_ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((bare.ports[0].protocol.to_string().as_str(), &*bare.ports[0].name), ("TCP", ""));
    let both = service(&service_with("  clusterIPs: [10.0.0.1, 'fd00::1']\n  ports: [{port: 80}]\n"));
    assert_eq!(both.cluster_ip(IpFamily::V6), Some("fd00::1".parse().unwrap()));
    assert_eq!(both.cluster_ip(IpFamily::V4), Some("10.0.0.1".parse().unwrap()));
    let only_list = service(
        &service_with("  clusterIPs: ['fd00::1']\n  ports: [{port: 80}]\n").replace("  clusterIP: 10.0.0.1\n", ""),
    );
    assert_eq!(*only_list.cluster_ips, ["fd00::1".parse::<std::net::IpAddr>().unwrap()]);
    let family = service(&service_with("  ipFamilies: [IPv4]\n  ports: [{port: 80}]\n"));
    assert_eq!(family.cluster_ips, bare.cluster_ips);
    // A slice's port without a name is the unnamed port, not no port.
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s\n  labels: \
                {kubernetes.io/service-name: web}\naddressType: IPv4\nports:\n- port: 8080\n";
    let decoded = decode(text.as_bytes(), NODE).unwrap();
    assert_eq!(decoded.entries[0].problems, []);
    let Some(Event::EndpointSlice(slice)) = decoded.entries[0].value.as_ref().map(super::admit::Value::event) else {
        panic!()
    };
    assert_eq!((&*slice.ports[0].name, slice.ports[0].port), ("", 8080));
}

#[test]
fn what_nobody_assigns_is_named() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports: [{port: 80}]\n",
        "Service default/web at 1 (nothing); spec.clusterIP: is missing, and no API server assigns one; the Service has no rules",
    );
    check(
        &service_with("  type: NodePort\n  ports: [{port: 80}, {port: 81, name: b, nodePort: 30081}]\n"),
        "Service default/web at 1; spec.ports[0].nodePort: is missing, and no API server assigns one; the port has no node port",
    );
    check(
        "apiVersion: v1\nkind: Service\n",
        "Service default/ at 1 (nothing); metadata.name: is missing; the object is ignored; spec.clusterIP: is missing, and no API server assigns one; the Service has no rules",
    );
}

#[test]
fn names_that_no_api_server_lets_pass_get_no_rules() {
    let named = |namespace: &str, name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n"
        )
    };
    check(&named("shop", "web.v2_B"), "Service shop/web.v2_B at 1");
    check(
        &named("shop", "'web:http'"),
        "Service shop/web:http at 1 (nothing); metadata.name: \"web:http\" is not a name in Kubernetes; the object is ignored",
    );
    check(
        &named("\"shop\\nCOMMIT\"", "web"),
        "Service shop\nCOMMIT/web at 1 (nothing); metadata.namespace: \"shop\\nCOMMIT\" is not a name in Kubernetes; the object is ignored",
    );
    check(
        &service_with("  ports: [{port: 80, name: a b}, {port: 81, name: c}]\n"),
        "Service default/web at 1; spec.ports[0].name: \"a b\" is not a name in Kubernetes; the port is left out",
    );
}

#[test]
fn mistakes_have_a_line_a_column_and_a_field() {
    check(
        &service_with("  ports:\n  - port: \"http\"\n"),
        "8:11: spec.ports[0].port: invalid value \"http\", expected a whole number",
    );
    check(
        &service_with("  ports:\n  - port: 80\n  - port: 8o\n"),
        "9:11: spec.ports[1].port: invalid value 8o, expected a whole number",
    );
    let after = format!("# first\n---\n{}", service_with("  ports:\n  - {port: [80]}\n"));
    check(&after, "10:12: spec.ports[0].port: expected a single value");
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- apiVersion: v1\n  kind: \
         Service\n  spec:\n    ports: 3\n",
        "8:12: items[1].spec.ports: expected a list",
    );
    check("kind: Service\n", "1:0: apiVersion: is missing");
    check("a: 1\n", "1:0: kind: is missing");
    check("---\n\n# c\nspec: {}\n", "4:0: kind: is missing");
    check("apiVersion: v1\nkind: List\nitems:\n- {}\n", "4:0: items[0].kind: is missing");
    check("just some text\n", "1:1: : expected a mapping");
    check("- 1\n", "1:1: : expected a mapping");
    check("- 1\n", "1:1: : expected a mapping");
    check(&service_with("\tports: []\n"), "6:14: spec: while scanning a plain scalar, found a tab");
    check(&service_with("  ports: [{port: 80\n"), "7:11: spec.ports: unclosed bracket '{'");
    check(&service_with("  ports: []\n  ports: []\n"), "8:3: spec: duplicate mapping key: ports not allowed here");
    check(&service_with("  ports: *ports\n"), "7:10: spec: reference to unknown value");
    check(
        "{\"kind\": \"Service\",\n \"apiVersion\": \"v1\",\n \"spec\": {\"ports\": [{\"port\": {}}]}}",
        "3:30: spec.ports[0].port: expected a single value",
    );
    let bytes = [b"a: 1\n\xc3\xa4: " as &[u8], b"\xff\n"].concat();
    let fault = decode(&bytes, NODE).unwrap_err();
    assert_eq!((fault.line, fault.column, fault.reason.as_str()), (2, 4, "is not UTF-8 text"));
}

#[test]
fn lenient_where_the_meaning_is_beyond_doubt() {
    let port = |text: &str| service(&service_with(&format!("  ports: [{{port: {text}}}]\n"))).ports[0].port;
    assert_eq!(port("\"80\""), 80);
    assert_eq!(port("0x50"), 80);
    let name =
        |text: &str| service(&service_with(&format!("  ports: [{{port: 80, name: {text}}}]\n"))).ports[0].name.clone();
    assert_eq!(&*name("10"), "10");
    assert_eq!(&*name("1.10"), "1.10");
    assert_eq!(&*name("yes"), "yes");
    assert_eq!(&*name("null"), "");
    let wrong = |text: &str, found: &str| {
        check(
            &service_with(&format!("  ports: [{{port: {text}}}]\n")),
            &format!("7:18: spec.ports[0].port: invalid value {found}, expected a whole number"),
        );
    };
    // 12 in YAML 1.1, 14 in YAML 1.2.
    wrong("014", "014");
    wrong("80.0", "80.0");
    wrong("''", "''");
    wrong("99999999999999999999", "99999999999999999999");
    let slice = |ready: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: w}}}}\naddressType: IPv4\nendpoints: [{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}}}]\n"
        );
        match decode(text.as_bytes(), NODE).unwrap().entries[0].value.as_ref().map(super::admit::Value::event) {
            Some(Event::EndpointSlice(slice)) => slice.endpoints.iter().next().unwrap().conditions.ready,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((slice("no"), slice("yes"), slice("null"), slice("'false'")), (false, true, true, false));
}

#[test]
fn yaml_beyond_plain_mappings() {
    let anchors = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.0.0.1\n  ports:\n  - &http {port: 80, \
                   name: http}\n  - <<: *http\n    name: also\n    port: 81\n";
    assert_eq!(service(anchors).ports.len(), 2);
    let crlf = service_with("  ports: [{port: 80}]\n").replace('\n', "\r\n");
    check(&format!("\u{feff}{crlf}---\r\n{crlf}"), "Service default/web at 1; Service default/web at 9");
    check("%YAML 1.2\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-000}\n...\n", "Node node-000 at 3");
    let json = |name: &str| {
        format!("{{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {{\"name\": \"{name}\"}}}}\n")
    };
    let found = decode((json("a") + &json("b")).as_bytes(), NODE).unwrap();
    assert_eq!(found.entries.iter().map(|e| (&*e.object.name, e.line)).collect::<Vec<_>>(), [("a", 1), ("b", 5)]);
}

#[test]
fn a_dump_of_a_big_cluster_is_within_the_limits() {
    let item =
        "- apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n  spec: {ports: [{port: 80}, {port: 81}]}\n";
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}", item.repeat(14_000));
    assert_eq!(decode(list.as_bytes(), NODE).unwrap().entries.len(), 14_000);
    let document = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-000}\n";
    assert_eq!(decode(document.repeat(1_100).as_bytes(), NODE).unwrap().entries.len(), 1_100);
    // In one line, as the API server and `jq -c` write it.
    let json = "{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\"},\"spec\":{\"ports\":[{\"port\":80}]}}";
    let line = format!("{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{}]}}", vec![json; 300].join(","));
    assert_eq!(decode(line.as_bytes(), NODE).unwrap().entries.len(), 300);
}

#[test]
fn aliases_cannot_blow_a_file_up() {
    let mut text = String::from("apiVersion: v1\nkind: List\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let last = i - 1;
        text += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{last}"); 10].join(", "));
    }
    assert!(decode(text.as_bytes(), NODE).is_err());
}

#[test]
fn any_part_of_a_file_is_decoded_or_refused() {
    let text = "---\napiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: v1\n  kind: \"Service\"\n  metadata: {name: a, \
                labels: {x: 'y'}}\n  spec:\n    clusterIP: 10.0.0.1\n    ports: [{port: 80}]\n- *a\n---\napiVersion: v1\nkind: \
                Node\nmetadata:\n  name: >-\n    node-000\n...\n{\"kind\": \"Node\",\n\"apiVersion\": \"v1\"}\n";
    let whole = decode(text.as_bytes(), NODE).unwrap();
    assert_eq!((whole.entries.len(), whole.ignored), (3, 1));
    let mut accepted = 0;
    let parts = (0..text.len()).flat_map(|at| [&text[..at], &text[at..]]);
    for decoded in parts.filter_map(|part| decode(part.as_bytes(), NODE).ok()) {
        assert!(decoded.entries.len() <= 3);
        accepted += 1;
    }
    assert!(accepted > 0);
}
