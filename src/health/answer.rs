//! The answers, as kube-proxy writes them.

use std::time::SystemTime;

use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{Moment, Question, Verdict};
use crate::http::Response;
use crate::model::ServiceName;
use crate::net::IpFamily;

const JSON: &str = "application/json";
/// How much traffic a node should get compared with others. (kube-proxy, and cloud load balancers.)
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The body of `/healthz` and `/livez`; the order of keys is the one of the fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProbeBody {
    last_updated: Time,
    current_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

/// By family, those that are served.
#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyStatus>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyStatus>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: Time,
    healthy: bool,
}

/// RFC 3339 in UTC with as many fractional digits as needed. (Go: `time.RFC3339Nano`.)
#[derive(Clone, Copy)]
struct Time(Option<SystemTime>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.and_then(|time| Timestamp::try_from(time).ok()) {
            Some(time) => serializer.collect_str(&time),
            // Go's zero time.
            None => serializer.serialize_str("0001-01-01T00:00:00Z"),
        }
    }
}

/// The answer to a probe: 200 or 503, with the reasons. Who is served well reads the present as
/// `lastUpdated`. (kube-proxy: so, since some clients take an old `lastUpdated` for a failure.)
pub(super) fn probe_answer(question: Question, verdict: &Verdict, now: Moment) -> Response {
    let node_eligible = (question == Question::Healthz).then_some(verdict.node_eligible);
    let good = verdict.healthy && node_eligible != Some(false);
    let newest = if good { Some(now.time) } else { verdict.families.iter().map(|(_, updated, _)| *updated).max() };
    let family = |family: IpFamily| {
        let found = verdict.families.iter().find(|(known, ..)| *known == family);
        found.map(|(_, updated, healthy)| FamilyStatus { last_updated: Time(Some(*updated)), healthy: *healthy })
    };
    let status = Status { v4: family(IpFamily::V4), v6: family(IpFamily::V6) };
    let body = ProbeBody {
        last_updated: Time(newest),
        current_time: Time(Some(now.time)),
        node_eligible,
        healthy: verdict.healthy,
        status: (!verdict.families.is_empty()).then_some(status),
    };
    // Strings, booleans and keys cannot fail to be written.
    json(good, serde_json::to_vec(&body).unwrap_or_default())
}

/// The body of a health check node port.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodePortBody<'a> {
    service: ServiceBody<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceBody<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// The answer to a load balancer: 200 if this node has ready endpoints of the Service and programs
/// rules; their number also as a weight.
pub fn node_port_answer(service: &ServiceName, local_endpoints: usize, healthy: bool) -> Response {
    let body = NodePortBody {
        service: ServiceBody { namespace: &service.namespace, name: &service.name },
        local_endpoints,
        service_proxy_healthy: healthy,
    };
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    // As above; and a `Vec` takes everything.
    let _ = body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, indent));
    json(healthy && local_endpoints > 0, text).with(WEIGHT, HeaderValue::from(local_endpoints))
}

fn json(good: bool, body: Vec<u8>) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Response::new(status, JSON, body).nosniff()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    fn now() -> Moment {
        Moment { at: Instant::now(), time: EPOCH + Duration::new(1_777_629_600, 500_000_000) }
    }

    #[track_caller]
    fn check(question: Question, verdict: &Verdict, status: u16, body: &str) {
        let answer = probe_answer(question, verdict, now());
        assert_eq!((answer.status.as_u16(), std::str::from_utf8(&answer.body).unwrap()), (status, body));
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }

    #[test]
    fn probes() {
        let at = |millis: u64| EPOCH + Duration::from_millis(1_777_629_000_000 + millis);
        let mut verdict = Verdict {
            healthy: true,
            node_eligible: true,
            families: vec![(IpFamily::V4, at(70), true), (IpFamily::V6, at(0), true)],
        };
        let status = r#""status":{"IPv4":{"lastUpdated":"2026-05-01T09:50:00.07Z","healthy":true},"IPv6":{"lastUpdated":"2026-05-01T09:50:00Z","healthy":true}}}"#;
        let present = "2026-05-01T10:00:00.5Z";
        let good = format!(r#"{{"lastUpdated":"{present}","currentTime":"{present}","#);
        let body = format!(r#"{good}"nodeEligible":true,"healthy":true,{status}"#);
        check(Question::Healthz, &verdict, 200, &body);
        check(Question::Livez, &verdict, 200, &format!(r#"{good}"healthy":true,{status}"#));

        verdict.node_eligible = false;
        let bad = format!(r#"{{"lastUpdated":"2026-05-01T09:50:00.07Z","currentTime":"{present}","#);
        check(Question::Healthz, &verdict, 503, &format!(r#"{bad}"nodeEligible":false,"healthy":true,{status}"#));
        check(Question::Livez, &verdict, 200, &format!(r#"{good}"healthy":true,{status}"#));

        verdict.healthy = false;
        verdict.families[1].2 = false;
        let status = status.replace(r#"Z","healthy":true}}}"#, r#"Z","healthy":false}}}"#);
        check(Question::Livez, &verdict, 503, &format!(r#"{bad}"healthy":false,{status}"#));
        verdict.node_eligible = true;
        check(Question::Healthz, &verdict, 503, &format!(r#"{bad}"nodeEligible":true,"healthy":false,{status}"#));
    }

    #[test]
    fn before_anything_is_served() {
        let verdict = Verdict { healthy: true, node_eligible: false, families: Vec::new() };
        let now = "2026-05-01T10:00:00.5Z";
        let body = format!(
            r#"{{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"{now}","nodeEligible":false,"healthy":true}}"#
        );
        check(Question::Healthz, &verdict, 503, &body);
        check(
            Question::Livez,
            &verdict,
            200,
            &format!(r#"{{"lastUpdated":"{now}","currentTime":"{now}","healthy":true}}"#),
        );
    }

    #[test]
    fn one_family() {
        let verdict = Verdict { healthy: true, node_eligible: true, families: vec![(IpFamily::V6, EPOCH, true)] };
        let answer = probe_answer(Question::Livez, &verdict, now());
        let body = std::str::from_utf8(&answer.body).unwrap();
        assert!(
            body.ends_with(r#""status":{"IPv6":{"lastUpdated":"1970-01-01T00:00:00Z","healthy":true}}}"#),
            "{body}"
        );
    }

    #[test]
    fn node_ports() {
        let service = ServiceName::new("ns", "svc");
        for (count, healthy, status) in [(2, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)] {
            let answer = node_port_answer(&service, count, healthy);
            let body = format!(
                "{{\n\t\"service\": {{\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
            );
            assert_eq!((answer.status.as_u16(), std::str::from_utf8(&answer.body).unwrap()), (status, body.as_str()));
            assert_eq!(answer.headers["x-load-balancing-endpoint-weight"], count.to_string().as_str());
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        }
    }
}
