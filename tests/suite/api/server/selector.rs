//! Label and field selectors, as far as kube-proxy's watches use them.

use serde_json::Value;

use super::store::Resource;

/// One requirement on a label or a field.
#[derive(Clone, Debug)]
enum Requirement {
    Exists(String),
    Absent(String),
    Equals(String, String),
    Differs(String, String),
}

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Selector {
    /// Parses both selectors of a request; an error is the message of the 400 answer.
    pub fn parse(resource: Resource, labels: &str, fields: &str) -> Result<Selector, String> {
        let fields = requirements(fields);
        for requirement in &fields {
            let name = match requirement {
                Requirement::Equals(name, _) | Requirement::Differs(name, _) => name,
                Requirement::Exists(text) | Requirement::Absent(text) => {
                    return Err(format!("invalid selector: '{text}'; can't understand '{text}'"));
                }
            };
            if !resource.selectable_fields().contains(&name.as_str()) {
                return Err(format!("field label not supported: {name}"));
            }
        }
        Ok(Selector { labels: requirements(labels), fields })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let field = |path: &str| Some(path.split('.').fold(object, |at, step| &at[step]).as_str().unwrap_or_default());
        self.labels.iter().all(|requirement| requirement.holds(label))
            && self.fields.iter().all(|requirement| requirement.holds(field))
    }
}

impl Requirement {
    fn holds<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Requirement::Exists(key) => value_of(key).is_some(),
            Requirement::Absent(key) => value_of(key).is_none(),
            Requirement::Equals(key, value) => value_of(key) == Some(value),
            Requirement::Differs(key, value) => value_of(key) != Some(value),
        }
    }
}

fn requirements(text: &str) -> Vec<Requirement> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            if let Some((key, value)) = part.split_once("!=") {
                Requirement::Differs(key.into(), value.into())
            } else if let Some((key, value)) = part.split_once('=') {
                Requirement::Equals(key.into(), value.trim_start_matches('=').into())
            } else if let Some(key) = part.strip_prefix('!') {
                Requirement::Absent(key.into())
            } else {
                Requirement::Exists(part.into())
            }
        })
        .collect()
}
