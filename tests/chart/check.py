"""Lints and renders the Helm chart with Helm itself, and reads the dashboard's and alerts' PromQL.

What the chart renders to is kept beside this file, for the tests that cannot have Helm
(tests/suite/deploy/chart.rs). It is compared; UPDATE_GOLDEN=1 writes it anew.
"""

import hashlib
import json
import os
import pathlib
import sys

import helm_python
import promql_parser
import yaml

HERE = pathlib.Path(__file__).parent
CHART = HERE.parent.parent / "deploy" / "chart"

# Values for which the chart is rendered, by the name of the file with the result.
CASES = {
    "default": {"apiServer": "https://203.0.113.7:6443"},
    "everything": {
        "image": {"repository": "images.example/net/ferrule", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
        "configMap": "kube-proxy",
        "privileged": True,
        "serviceAccount": {"create": False, "name": "kube-proxy"},
        "extraArgs": ["--v=4"],
        "env": [{"name": "HTTPS_PROXY", "value": "http://192.0.2.1:3128"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "proxy", "operator": "In", "values": ["ferrule"]}]}]}}},
        "podAnnotations": {"example/note": "x"},
        "podLabels": {"team": "net"},
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        },
    },
}


def digest():
    """Of everything the chart consists of: tests/suite/deploy/chart.rs makes the same."""
    total = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        total.update(path.relative_to(CHART).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def render(values):
    with helm_python.Chart.load(str(CHART)) as chart:
        return chart.render(values, name="ferrule", namespace="kube-system")


def lint():
    for name, values in CASES.items():
        result = helm_python.lint(str(CHART), values, strict=True)
        # 1 is Helm's "info".
        found = [message for message in result["messages"] if message["severity"] > 1]
        if found or result["errors"]:
            sys.exit(f"helm lint, values {name}: {found} {result['errors']}")


def golden():
    stale = []
    for name, values in CASES.items():
        files = render(values)
        text = f"# helm template ferrule deploy/chart, by `make chart`, of a chart with this SHA-256:\n# {digest()}\n"
        for path, content in sorted(files.items()):
            if not path.endswith("NOTES.txt") and content.strip():
                text += "---\n" + "".join(line.rstrip() + "\n" for line in content.strip("\n").splitlines())
        kept = HERE / f"{name}.yaml"
        if os.environ.get("UPDATE_GOLDEN"):
            kept.write_text(text)
        elif not kept.exists() or kept.read_text() != text:
            stale.append(kept.name)
        notes = next(content for path, content in files.items() if path.endswith("NOTES.txt"))
        assert "rollout status daemonset/ferrule" in notes, notes
    if stale:
        sys.exit(f"tests/chart/{stale}: not what the chart renders to; UPDATE_GOLDEN=1 make chart, and look at the diff")


def refusal():
    """Without a way to the API server nothing is rendered, and the message says what to set."""
    try:
        render({})
    except helm_python.HelmError as error:
        assert "set apiServer" in str(error), error
    else:
        sys.exit("the chart renders without apiServer and configMap")


def dashboard():
    text = (CHART / "files" / "dashboard.json").read_text()
    files = render({"configMap": "kube-proxy", "monitoring": {"dashboard": {"enabled": True}}})
    rendered = files["ferrule/templates/monitoring.yaml"]
    indented = "\n".join("    " + line for line in text.splitlines())
    assert indented in rendered, "the dashboard is not in its ConfigMap as it is"
    expressions = [t["expr"] for panel in json.loads(text)["panels"] for t in panel.get("targets", [])]
    for expression in expressions:
        promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    return len(expressions)


def alerts():
    files = render(CASES["everything"])
    documents = yaml.safe_load_all(files["ferrule/templates/monitoring.yaml"])
    [rule] = [document for document in documents if document and document["kind"] == "PrometheusRule"]
    expressions = [rule["expr"] for group in rule["spec"]["groups"] for rule in group["rules"]]
    for expression in expressions:
        promql_parser.parse(expression)
    return len(expressions)


lint()
refusal()
golden()
print(f"{len(CASES)} sets of values linted and rendered; "
      f"{dashboard()} expressions of the dashboard and {alerts()} of alerts are PromQL")
