//! What ferrule keeps of API objects: compact, validated, and free of API types.
//!
//! [`wire`] is the shape in which the API server and manifest files write objects, trimmed to the
//! fields ferrule reads. Each `from_wire` turns one of those into a model object at the door, with
//! a list of [`Problem`]s for what could not be honoured. Nothing after this module sees `wire`.

pub mod endpoint;
pub mod node;
pub mod service;
pub mod service_cidr;
pub mod wire;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

pub use endpoint::{Conditions, Endpoint, EndpointSlice, Endpoints, Hints, SlicePort};
pub use node::Node;
pub use service::{Service, ServicePort};
pub use service_cidr::ServiceCidr;

use crate::net::Protocol;

/// Namespace and name of a Service. A pointer, because it is kept in many places.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<NameParts>);

/// The parts of a [`ServiceName`], which are read as its fields.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameParts {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Box<str>,
}

impl ServiceName {
    /// A name from its two parts.
    pub fn new(namespace: &str, name: &str) -> ServiceName {
        ServiceName::within(namespace.into(), name)
    }

    /// The same, with a namespace that others share.
    pub fn within(namespace: Arc<str>, name: &str) -> ServiceName {
        ServiceName(Arc::new(NameParts { namespace, name: name.into() }))
    }
}

impl Deref for ServiceName {
    type Target = NameParts;

    fn deref(&self) -> &NameParts {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a text can be a name of a Service, a namespace or a port: ASCII letters, digits, `-`, `.`
/// and `_`. An API server lets no others pass, and not all of these; a manifest file may hold
/// anything, and names become part of rules.
fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty() && text.chars().all(is_part)
}

/// One port of one Service: the unit of planning, compiling and applying. The order of the fields
/// is the order in which rules are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceName,
    /// Port name; empty for the unnamed port.
    pub port: Arc<str>,
    /// Protocol. Two ports of one name may differ in it alone.
    pub protocol: Protocol,
}

/// `namespace/name` or `namespace/name:port`, without the protocol, as kube-proxy writes it in rule
/// comments and hashes it into chain names.
impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.port {
            "" => write!(f, "{}", self.service),
            port => write!(f, "{}:{port}", self.service),
        }
    }
}

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1/Service`
    Service,
    /// `discovery.k8s.io/v1/EndpointSlice`
    EndpointSlice,
    /// `v1/Node`, this node alone.
    Node,
    /// `networking.k8s.io/v1/ServiceCIDR`
    ServiceCidr,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// Which object something is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Node and a ServiceCIDR.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// A reference from its parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> ObjectRef {
        ObjectRef { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Part of an object that cannot be honoured and was left out; the rest of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field, as `kubectl explain` writes it: `spec.ports[1].protocol`.
    pub field: String,
    /// What is wrong with it and what to do, in one sentence.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}
