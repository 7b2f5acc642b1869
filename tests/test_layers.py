"""Imports go only downward, and what answers before a run begins does not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
LAYERS: list[list[str]] = [  # from the bottom up; the longest prefix of a module's name tells its layer
    [
        "wishbone.errors",
        "wishbone.phases",
        "wishbone.version",
        "wishbone.process_memory",
        "wishbone.process_logs",
        "wishbone.process_threads",
        "wishbone.strict_json",
    ],
    ["wishbone.atomic_file", "wishbone.paths"],
    ["wishbone.cache"],
    ["wishbone.config"],
    ["wishbone.report"],  # reads run directories, knows nothing of what wrote them
    ["wishbone.board"],  # the same views on a local page
    ["wishbone.data.json_text"],
    ["wishbone.data.messages"],
    ["wishbone.data.written_values"],
    ["wishbone.data.formats", "wishbone.data.packing"],
    ["wishbone.engine.execution"],  # how rows are computed: policy, reference, planning and engine take it
    ["wishbone.ops"],
    ["wishbone.data"],
    ["wishbone.check"],
    ["wishbone.preference"],
    ["wishbone.model"],
    ["wishbone.fused"],
    ["wishbone.policy"],
    ["wishbone.reference"],
    ["wishbone.engine.fitting"],  # shared by planning and the engine's profiling
    ["wishbone.planning"],
    ["wishbone.report.answers"],  # the one part of the report that runs a model
    ["wishbone.engine"],
    ["wishbone.guard"],  # watches what the engine computes; trainer and run use it
    ["wishbone.unsloth", "wishbone.trainer"],
    ["wishbone.run", "wishbone.training"],
    ["wishbone.result"],  # what is done with a finished run
    ["wishbone.cli"],
    ["wishbone"],
]
RANK = {prefix: rank for rank, layer in enumerate(LAYERS) for prefix in layer}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "triton"}
LIGHT = (
    "wishbone.errors",
    "wishbone.config",
    "wishbone.data.formats",
    "wishbone.data.packing",
    "wishbone.engine.execution",
    "wishbone.engine.fitting",
    "wishbone.planning",
)


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((SOURCE / "wishbone").rglob("*.py"))}


def unit(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    return max((prefix for prefix in RANK if f"{module}.".startswith(f"{prefix}.")), key=len)


def imports(module: str, nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """Names that import statements among `nodes` load, with their lines; of this package down to the module."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES or inner in RANK else base), node.lineno


def at_import_time(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: no function bodies, nothing for type checkers alone."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import_time(node.orelse)
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from at_import_time(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import_time(handler.body)


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_imports_go_only_downward(module: str):
    own = unit(module)
    upward = [
        f"line {line}: {module} imports {name}"
        for name, line in imports(module, ast.walk(parsed(module)))
        if name.split(".")[0] == "wishbone" and unit(name) != own and RANK[unit(name)] >= RANK[own]
    ]
    assert not upward


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty where there is none."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for name in sorted(edges[module]):
            if found := follow(name, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := follow(module, []))), [])


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    edges = {
        module: {name for name, _ in imports(module, ast.walk(parsed(module))) if name in MODULES and name != module}
        for module in MODULES
    }
    assert circle(edges) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def loaded_by(module: str) -> set[str]:
    """Everything that importing a module imports, through the modules of this package."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
            waiting += [inner for inner, _ in imports(name, at_import_time(parsed(name).body))]
    return seen


@pytest.mark.parametrize(
    "module", [module for module in MODULES if f"{module}.".startswith(tuple(f"{x}." for x in LIGHT))]
)
def test_what_is_decided_before_a_run_loads_no_torch(module: str):
    assert not {name.split(".")[0] for name in loaded_by(module)} & HEAVY


def test_the_light_modules_load_no_torch_when_they_are_imported():
    light = [module for module in MODULES if f"{module}.".startswith(tuple(f"{x}." for x in LIGHT))]
    program = f"import sys, {', '.join(light)}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["-c", "import wishbone"], ["-c", "import wishbone.config.load"], ["-m", "wishbone", "--help"]]
)
def test_the_package_and_its_help_load_no_torch(arguments: list[str]):
    command = [sys.executable, "-X", "importtime", *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in outcome.stderr.splitlines()}
    assert "wishbone" in loaded
    assert not loaded & HEAVY


def test_public_names_are_there():
    import wishbone

    assert wishbone.__version__
    for name in wishbone.__all__:
        assert getattr(wishbone, name) is not None
    assert set(dir(wishbone)) == set(wishbone.__all__)
    with pytest.raises(AttributeError, match="no attribute 'DPOTrainr'"):
        _ = wishbone.DPOTrainr


def test_the_rules_see_what_they_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from wishbone.engine import step\nif True:\n    import torch\n")
    monkeypatch.setitem(MODULES, "wishbone.config.wrong", wrong)
    with pytest.raises(AssertionError, match=r"line 2: wishbone\.config\.wrong imports wishbone\.engine\.step"):
        test_imports_go_only_downward("wishbone.config.wrong")
    monkeypatch.setitem(MODULES, "wishbone.unsloth.wrong", wrong)
    wrong.write_text("from wishbone.trainer.trainer import DPOTrainer\n")
    with pytest.raises(AssertionError, match=r"unsloth\.wrong imports wishbone\.trainer"):  # nor into its own layer
        test_imports_go_only_downward("wishbone.unsloth.wrong")
    wrong.write_text("def f():\n    from wishbone.engine import step\nif True:\n    import torch\n")
    with pytest.raises(AssertionError, match="torch"):
        test_what_is_decided_before_a_run_loads_no_torch("wishbone.config.wrong")
