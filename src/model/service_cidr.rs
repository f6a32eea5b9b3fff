//! From which networks the cluster's Services get their addresses.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Kind, ObjectRef, Problem, wire};
use crate::net::parse_cidr;

/// A ServiceCIDR object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// `spec.cidrs`, in order.
    pub cidrs: Vec<IpNet>,
}

impl ServiceCidr {
    /// Keeps the networks; what is none is left out and named.
    pub fn from_wire(object: &wire::ServiceCidr<'_>) -> (ServiceCidr, Vec<Problem>) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let (mut cidrs, mut problems) = (Vec::new(), Vec::new());
        for (i, text) in object.spec.cidrs.iter().enumerate() {
            let reason = match parse_cidr(text) {
                Some(net) if net.prefix_len() > 0 => {
                    cidrs.push(net);
                    continue;
                }
                Some(_) => "holds every address, not only those of Services; it is left out".to_owned(),
                None => format!("{:?} is no network like 10.96.0.0/16; it is left out", &**text),
            };
            let object = ObjectRef::new(Kind::ServiceCidr, "", name);
            problems.push(Problem { object, field: format!("spec.cidrs[{i}]"), reason });
        }
        (ServiceCidr { name: name.into(), cidrs }, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cidrs: &str, expected: &str) {
        let object = format!(r#"{{"metadata": {{"name": "a"}}, "spec": {{"cidrs": {cidrs}}}}}"#);
        let object: wire::ServiceCidr = serde_json::from_str(&object).unwrap();
        let (service_cidr, problems) = ServiceCidr::from_wire(&object);
        let told = problems.iter().map(ToString::to_string);
        let all = service_cidr.cidrs.iter().map(ToString::to_string).chain(told).collect::<Vec<_>>();
        assert_eq!(all.join("; "), expected);
    }

    #[test]
    fn networks_of_services() {
        check("null", "");
        check(r#"["10.96.0.0/12", "fd00:10:96::/112"]"#, "10.96.0.0/12; fd00:10:96::/112");
        check(r#"["10.96.0.1/16"]"#, "10.96.0.0/16");
        check(
            r#"["10.96.0.0", "10.97.0.0/16"]"#,
            "10.97.0.0/16; ServiceCIDR a: spec.cidrs[0]: \"10.96.0.0\" is no network like 10.96.0.0/16; it is left out",
        );
        // Everything that passes through the node would be dropped.
        check(
            r#"["::/0"]"#,
            "ServiceCIDR a: spec.cidrs[0]: holds every address, not only those of Services; it is left out",
        );
    }
}
