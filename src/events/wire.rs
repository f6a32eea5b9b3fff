//! Events as the API has them, with kube-proxy's fields. Pure.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::Happening;

/// Who reports, so that people find all Events of a program.
const CONTROLLER: &str = "kube-proxy";
/// Where Events about objects without a namespace are.
const DEFAULT_NAMESPACE: &str = "default";

/// Who reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// Name of the Node.
    pub node: String,
    /// The system's host name.
    pub host: String,
}

/// The Event of something that happened at `at`.
pub(super) fn event(reporter: &Reporter, happening: &Happening, at: Timestamp) -> Event {
    let (reason, kind, action) = match happening {
        Happening::Starting => ("Starting", "Normal", "StartKubeProxy"),
        Happening::HealthServerFailed(_) => ("FailedToStartProxierHealthcheck", "Warning", "StartKubeProxy"),
        Happening::MetricsServerFailed(_) => ("FailedToStartMetricServer", "Warning", "StartKubeProxy"),
        Happening::HealthCheckNodePortFailed { .. } => ("FailedToStartServiceHealthcheck", "Warning", "Listen"),
    };
    let note = match happening {
        Happening::Starting => None,
        Happening::HealthServerFailed(error) | Happening::MetricsServerFailed(error) => Some(error.clone()),
        Happening::HealthCheckNodePortFailed { service, port, error } => {
            let Reporter { node, .. } = reporter;
            Some(format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}"))
        }
    };
    let regarding = match happening {
        Happening::HealthCheckNodePortFailed { service, .. } => {
            reference("Service", Some(service.namespace.to_string()), service.name.to_string())
        }
        _ => reference("Node", None, reporter.node.clone()),
    };
    let object = regarding.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{:x}", at.as_nanosecond())),
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(at)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(format!("{CONTROLLER}-{}", reporter.host)),
        action: Some(action.to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(regarding),
        note,
        type_: Some(kind.to_owned()),
        ..Event::default()
    }
}

fn reference(kind: &str, namespace: Option<String>, name: String) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(name),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::ServiceName;

    #[track_caller]
    fn check(happening: &Happening, expected: serde_json::Value) {
        let reporter = Reporter { node: "node-000".to_owned(), host: "host-a".to_owned() };
        let at = Timestamp::from_nanosecond(1_763_668_800_123_456_789).unwrap();
        assert_eq!(serde_json::to_value(event(&reporter, happening, at)).unwrap(), expected);
    }

    #[test]
    fn about_the_node() {
        check(
            &Happening::Starting,
            json!({
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": "node-000.1879cf6deccc4d15", "namespace": "default"},
                "eventTime": "2025-11-20T20:00:00.123456Z",
                "reportingController": "kube-proxy",
                "reportingInstance": "kube-proxy-host-a",
                "action": "StartKubeProxy",
                "reason": "Starting",
                "regarding": {"apiVersion": "v1", "kind": "Node", "name": "node-000"},
                "type": "Normal",
            }),
        );
    }

    #[test]
    fn about_a_service() {
        let error = "listen tcp :31087: bind: address already in use".to_owned();
        let service = ServiceName::new("g", "etplocal-lb");
        check(
            &Happening::HealthCheckNodePortFailed { service, port: 31_087, error },
            json!({
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": "etplocal-lb.1879cf6deccc4d15", "namespace": "g"},
                "eventTime": "2025-11-20T20:00:00.123456Z",
                "reportingController": "kube-proxy",
                "reportingInstance": "kube-proxy-host-a",
                "action": "Listen",
                "reason": "FailedToStartServiceHealthcheck",
                "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "g", "name": "etplocal-lb"},
                "note": "node node-000 failed to start healthcheck \"g/etplocal-lb\" on port 31087: \
                         listen tcp :31087: bind: address already in use",
                "type": "Warning",
            }),
        );
    }
}
