"""Files of `serving/deploy`, and what they say about pods and containers."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

__all__ = [
    "COMPOSE",
    "DEPLOY",
    "DOCKERFILE",
    "FOREIGN",
    "PAGE",
    "PODS",
    "ROOT",
    "SERVING",
    "containers",
    "manifests",
    "request_status",
    "snippet",
    "validate",
    "words",
]

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "serving" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
FILES = sorted(DEPLOY.rglob("*.yaml"))
# Kinds of custom resources, which have no schema here.
FOREIGN = {
    "Kustomization", "Component", "PodMonitor", "ScaledObject", "InferenceService", "Gateway", "HTTPRoute",
    "BackendTrafficPolicy", "ClientTrafficPolicy", "BackendTLSPolicy",
}  # fmt: skip


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every document of every manifest, with the file's name."""
    for path in FILES:
        if not path.name.startswith(("compose", "envoy")):
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield str(path.relative_to(DEPLOY)), document


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of every complete pod, by its file; the overlay has only a patch."""
    found = {}
    for name, document in manifests():
        if document["kind"] == "Deployment" and not name.startswith("kubernetes/gpu"):
            found[name] = document["spec"]["template"]["spec"]
        elif document["kind"] == "Pod":
            found[name] = document["spec"]
        elif document["kind"] == "InferenceService":
            own = {"minReplicas", "maxReplicas", "autoScaling"}
            found[name] = {key: value for key, value in document["spec"]["predictor"].items() if key not in own}
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [*pod.get("initContainers", []), *pod["containers"]]
    return found


PODS = pods()
SERVING = [name for name, pod in PODS.items() if "initContainers" in pod]


def words() -> dict[str, list[str]]:
    """Return the arguments of every container that runs one of our commands, by its place."""
    found = {f"compose {name}": one["command"] for name, one in COMPOSE["services"].items() if "plurum" in one["image"]}
    for name, pod in PODS.items():
        found |= {f"{name} {one['name']}": one["args"] for one in containers(pod) if "args" in one}
    return found


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def request_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def snippet(language: str, start: str) -> str:
    """Return the code block of the page that begins with `start`."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(start)]
    return found
