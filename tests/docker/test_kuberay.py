"""Validates the manifests against KubeRay's own definitions, if they are available: ``KUBERAY_CRDS`` is the folder
``ray-operator/config/crd/bases`` of a KubeRay checkout."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import compose_file
import pytest
import yaml
from jsonschema import Draft7Validator

CRDS = os.environ.get("KUBERAY_CRDS", "")

pytestmark = pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's definitions")


def strict(schema: Any) -> Any:
    """Returns the schema as the API server applies it: a field that it does not list is an error."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_ended:
        schema["additionalProperties"] = False
    return schema


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_a_manifest_is_valid(kind: str) -> None:
    definition = yaml.safe_load((Path(CRDS) / f"ray.io_{kind}s.yaml").read_text())
    _, manifest = yaml.safe_load_all((compose_file.FOLDER / f"kuberay-{kind}.yaml").read_text())
    version = manifest["apiVersion"].partition("/")[2]
    (found,) = (one for one in definition["spec"]["versions"] if one["name"] == version)
    schema = strict(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # defined by the API server, not by KubeRay
    validator = Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    misspelt = deepcopy(manifest)
    misspelt["spec"]["rayVersions"] = "2.60.0"
    assert not validator.is_valid(misspelt), "the schema accepts unknown fields"
