"""An untested TRL is refused, with every reason."""

from __future__ import annotations

import pytest
import trl

from wishbone.errors import RequestError
from wishbone.trainer.compatibility import check_trl


def test_the_installed_version_is_tested() -> None:
    check_trl()


@pytest.mark.parametrize("version", ["1.9.2", "1.17.0", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(RequestError, match=r"install trl>=1\.15,<1\.17"):
        check_trl(version)


def test_changed_methods_are_refused_all_at_once() -> None:
    class Changed(trl.DPOTrainer):  # type: ignore[misc]
        def log(self, metrics: object) -> None: ...

        def compute_loss(self, batch: object) -> None: ...

    with pytest.raises(RequestError) as refusal:
        check_trl("1.16.0", Changed)
    assert len(refusal.value.problems) == 2
