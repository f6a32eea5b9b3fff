//! What is asked for: one resource each, selected as kube-proxy does.

use crate::model::Kind;

/// Objects of a page of a list. Small enough that a page is not the peak of our memory.
pub(super) const PAGE: u32 = 250;
/// What makes a watch of a list.
const WATCH: &str = "watch=true&allowWatchBookmarks=true";

/// A resource to watch, and which of its objects.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// Kind of a list of them.
    pub(super) list_kind: &'static str,
    path: &'static str,
    /// The selectors, as part of a query; empty for all objects.
    selectors: String,
}

/// From which version a list is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Whatever the server has at hand, for a node that knows nothing yet.
    Any,
    /// The present state: after a first listing, an older one would take things back.
    MostRecent,
}

impl Resource {
    /// Services of all namespaces, without headless ones and those that name another proxy.
    pub(super) fn services() -> Resource {
        let labels = encode("!service.kubernetes.io/service-proxy-name");
        Resource {
            kind: Kind::Service,
            list_kind: "ServiceList",
            path: "/api/v1/services",
            selectors: format!("fieldSelector={}&labelSelector={labels}", encode("spec.clusterIP!=None")),
        }
    }

    /// EndpointSlices of all namespaces, without those of headless Services.
    pub(super) fn endpoint_slices() -> Resource {
        Resource {
            kind: Kind::EndpointSlice,
            list_kind: "EndpointSliceList",
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            selectors: format!("labelSelector={}", encode("!service.kubernetes.io/headless")),
        }
    }

    /// One Node.
    pub(super) fn node(name: &str) -> Resource {
        Resource {
            kind: Kind::Node,
            list_kind: "NodeList",
            path: "/api/v1/nodes",
            selectors: format!("fieldSelector={}", encode(&format!("metadata.name={name}"))),
        }
    }

    /// All networks that Services get their addresses from.
    pub(super) fn service_cidrs() -> Resource {
        Resource {
            kind: Kind::ServiceCidr,
            list_kind: "ServiceCIDRList",
            path: "/apis/networking.k8s.io/v1/servicecidrs",
            selectors: String::new(),
        }
    }

    /// A watch that begins with all there is. Without a version, that is the present state.
    pub(super) fn streaming_list(&self, seconds: u32) -> String {
        self.url(&[
            WATCH,
            "sendInitialEvents=true",
            "resourceVersionMatch=NotOlderThan",
            &format!("timeoutSeconds={seconds}"),
        ])
    }

    /// A page of a list; all of it without a limit.
    pub(super) fn list(&self, freshness: Freshness, limit: Option<u32>, after: Option<&str>) -> String {
        let limit = limit.map(|limit| format!("limit={limit}")).unwrap_or_default();
        let from = match (after, freshness) {
            (Some(token), _) => format!("continue={}", encode(token)),
            (None, Freshness::Any) => "resourceVersion=0".to_owned(),
            (None, Freshness::MostRecent) => String::new(),
        };
        self.url(&[&limit, &from])
    }

    /// A watch of what changed after a version.
    pub(super) fn watch(&self, version: &str, seconds: u32) -> String {
        self.url(&[WATCH, &format!("resourceVersion={}", encode(version)), &format!("timeoutSeconds={seconds}")])
    }

    /// The selectors and what else is asked.
    fn url(&self, parameters: &[&str]) -> String {
        let mut url = self.path.to_owned();
        let all = [self.selectors.as_str()].into_iter().chain(parameters.iter().copied());
        for (parameter, before) in
            all.filter(|text| !text.is_empty()).zip(['?'].into_iter().chain(std::iter::repeat('&')))
        {
            url.push(before);
            url.push_str(parameter);
        }
        url
    }
}

/// Percent-encodes a value of a query.
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len() + 8);
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
