"""The recipes for clusters are valid, by Ray's own parser, Kubernetes' schemas, and the fields of KubeRay's types.

KubeRay's own schema is in no package, so the fields that the recipe may use are listed here, with those it must have:
ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go at 0057210 and 026f143.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from numllama.api.cli.commands import app

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "examples/cluster"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
GROUP = {"rayStartParams": TEXTS, "template": {"type": "object"}}


def fields(properties, *required):
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


WORKERS = fields(
    GROUP | {"groupName": {"type": "string"}} | dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), COUNT),
    "groupName",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
)
CLUSTER = fields(
    {
        "rayVersion": {"type": "string"},
        "headGroupSpec": fields(GROUP, "rayStartParams", "template"),
        "workerGroupSpecs": {"type": "array", "items": WORKERS},
    },
    "headGroupSpec",
)
JOB = fields(
    {"entrypoint": {"type": "string"}, "shutdownAfterJobFinishes": {"type": "boolean"}, "rayClusterSpec": CLUSTER},
    "entrypoint",
    "rayClusterSpec",
)


@pytest.fixture
def objects():
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())}


def commands(text):
    """Yield the arguments of each `numllama ...` in a text."""
    for line in text.splitlines():
        if "numllama serve" in line or "numllama batch" in line:
            words = shlex.split(line.strip().lstrip("#").replace("'", ""))
            start = next(
                i for i, word in enumerate(words) if word.endswith("numllama") and words[i + 1] in ("serve", "batch")
            )
            yield [word for word in words[start + 1 :] if word != "--tmux"]


@pytest.mark.parametrize("name", ["kuberay.yaml", "vms.yaml"])
def test_the_commands_have_the_flags_that_they_use(name):
    found = list(commands((FOLDER / name).read_text()))
    assert {command[0] for command in found} == {"serve", "batch"}
    for verb, *arguments in found:
        known = CliRunner().invoke(app, [verb, "--help"]).output
        assert all(word in known for word in arguments if word.startswith("--"))


def test_ray_s_launcher_accepts_the_recipe_for_machines():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "vms.yaml").read_text())
    validate_config(prepare_config(config))
    config["provider"]["head_ips"] = config["provider"].pop("head_ip")
    with pytest.raises(Exception, match="head_ip"):
        validate_config(prepare_config(config))


def test_kuberay_s_types_have_the_fields_of_the_recipe(objects):
    import jsonschema

    job = objects["RayJob"]
    assert job["apiVersion"] == "ray.io/v1" and job["spec"]["rayClusterSpec"]["rayVersion"].split(".")[:2] == [
        "2",
        "60",
    ]
    jsonschema.validate(job["spec"], JOB)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert objects["Service"]["spec"]["selector"].items() <= head["metadata"]["labels"].items()


def test_kubernetes_accepts_the_pods_the_folder_and_the_service(objects):
    validate = pytest.importorskip("kubernetes_validate").validate
    cluster = objects["RayJob"]["spec"]["rayClusterSpec"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | one.get("metadata", {}), "spec": one["spec"]}
        for one in templates
    ]
    for one in (*pods, objects["PersistentVolumeClaim"], objects["Service"]):
        validate(one, "1.37", strict=True)
    claims = {volume["persistentVolumeClaim"]["claimName"] for pod in pods for volume in pod["spec"]["volumes"]}
    assert claims == {objects["PersistentVolumeClaim"]["metadata"]["name"]}
    del pods[0]["spec"]["containers"][0]["name"]
    with pytest.raises(Exception, match="name"):
        validate(pods[0], "1.37", strict=True)
