"""The description of the control plane, and answers held against it."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator
from support import create, http_call

DOCUMENT = json.loads((Path(__file__).parents[3] / "openapi.json").read_text())


def check(answer, schema):
    """`answer` is as the named schema says."""
    wanted = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    Draft202012Validator(wanted).validate(answer)


def test_the_document_is_valid():
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_answers_are_as_documented():
    box = create()
    try:
        check(http_call("GET", f"/sandboxes/{box.sandbox_id}").json(), "SandboxDetail")
        for listed in http_call("GET", "/v2/sandboxes").json():
            check(listed, "ListedSandbox")
        for sample in http_call("GET", f"/sandboxes/{box.sandbox_id}/metrics").json():
            check(sample, "Metric")
        for template in http_call("GET", "/templates").json():
            check(template, "Template")
        for path in ["/teams", "/volumes", "/secrets"]:
            answer = http_call("GET", path)
            assert answer.status == 501
            check(answer.json(), "Error")
        path = f"/sandboxes/{box.sandbox_id}/checkpoints"
        check(http_call("POST", path, {"name": "a"}).json(), "Checkpoint")
        check(http_call("POST", path, {}).json(), "Checkpoint")
        check(http_call("GET", path).json(), "CheckpointTree")
        check(http_call("DELETE", path + "/none").json(), "Error")
    finally:
        box.kill()
    for mode in ["all", "any"]:
        body = {"templateID": "base", "count": 2, "mode": mode, "timeout": 5}
        check(body, "BatchRequest")
        answer = http_call("POST", "/sandboxes:batch", body, timeout=60)
        for line in answer.body.splitlines():
            check(json.loads(line), "BatchLine")
    with pytest.raises(ValidationError):
        check({"templateID": "base"}, "BatchRequest")
