"""The examples of docs/scale.md have the form that their readers ask for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PAGE = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")


def block(heading: str) -> str:
    found = re.search(rf"^## {heading}$.*?^```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.documents
def test_the_slurm_script_is_one() -> None:
    script = block("Slurm")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    options = re.findall(r"^#SBATCH --([a-z-]+)=\S+$", script, re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time", "signal"} <= set(options)
    assert script.startswith("#!/bin/bash\n") and "set -euo pipefail" in script


@pytest.mark.documents
def test_the_kubernetes_job_is_one() -> None:
    job: dict[str, Any] = yaml.safe_load(block("Kubernetes"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    container = worker["template"]["spec"]["containers"][0]
    assert container["name"] == "pytorch"  # the operator looks for it
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}


@pytest.mark.documents
def test_the_skypilot_task_is_one() -> None:
    task: dict[str, Any] = yaml.safe_load(block("SkyPilot"))
    assert {"resources", "num_nodes", "setup", "run"} <= set(task)
    assert re.fullmatch(r"\w+:\d+", task["resources"]["accelerators"])
