"""Experiment trackers whose package is not installed: found out before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Literal

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


WITHOUT_CODE = ("azureml",)
"""Packages that consist of others: Python finds folders, as it does of any folder beside a script."""
LOCAL = ("tensorboard", "trackio")
"""Trackers that need no account and no network; the first that is installed is on by default."""


def chosen_trackers(asked: Literal["auto"] | Sequence[str]) -> list[str]:
    """Return the trackers that a run logs to."""
    if asked != "auto":
        return list(asked)
    return [name for name in LOCAL if any(map(is_installed, PACKAGES[name]))][:1]


def missing_trackers(names: Iterable[str], option: str) -> list[str]:
    """Return one sentence for each tracker that cannot be used; `option` is what names it."""
    return [
        f"{option} names {name!r}, and its package is not installed: pip install {PACKAGES[name][0]}, or leave it out"
        for name in names
        if name in PACKAGES and not any(map(is_installed, PACKAGES[name]))
    ]


def is_installed(package: str) -> bool:
    """Return whether a package is there; a folder of its name without code, such as one of logs, is none."""
    found = find_spec(package)
    return found is not None and (found.origin is not None or package in WITHOUT_CODE)
