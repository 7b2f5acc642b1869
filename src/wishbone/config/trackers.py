"""Experiment trackers whose package is not installed: found out before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

PACKAGES = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Packages of which one is needed, by the tracker's name in `report_to`."""


def missing_trackers(names: Iterable[str], option: str) -> list[str]:
    """Return one sentence for each tracker that cannot be used; `option` is what names it."""
    return [
        f"{option} names {name!r}, and its package is not installed: pip install {PACKAGES[name][0]}, or leave it out"
        for name in names
        if name in PACKAGES and not any(find_spec(package) for package in PACKAGES[name])
    ]
