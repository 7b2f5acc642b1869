"""Every place in the source that reaches into another library is on one page, with how it ends and a test.

The source is searched for what a reader would call reaching in: an attribute written on an object of somebody else, a
private name read, overridden or imported, a registration, an environment variable set. What is computed at run time (a
name put together, an object passed on) is not found.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model, tiny_pairs, tiny_tokenizer
from trainer.preference_runs import arguments, chat_pairs

from wishbone import DPOConfig, DPOTrainer
from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.policy.activations import allow_recompute
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.scores import LossParameters
from wishbone.reference.reference import AdapterDisabled
from wishbone.trainer.head_adapter import head_hidden

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "src" / "wishbone"
PAGE = (REPOSITORY / "docs" / "interceptions.md").read_text(encoding="utf-8")

OURS = {
    "cli/chat.py:_obey": "its own conversation",
    "cli/answers.py:print_answer": "a table that was made there",
    "cli/init.py": "its own command, as typer reads it",
    "cli/train.py:train": "its own attempt",
    "config/document.py:read_document": "its own document",
    "data/chat_template.py:_interruption": "a timer that was made there",
    "data/formats/paired.py:openai": "its own columns of a row",
    "data/row_reader.py:RowReader._finish": "a refusal that was made there",
    "run/trackers.py:_tensorboard": "a callback that was made there",
    "fused/linear.py:FusedLinears.running": "its own layers",
    "trainer/later_changes.py:LaterChanges.follow": "its own step and its own metrics",
    "model/fp8.py:fp8_options": "a configuration that was made there",
    "model/eight_bit_linear.py:EightBitLinear.dequantized": "a layer that was made there",
    "model/eight_bit_linear.py:FP8Linear.settle": "its own layer",
    "model/eight_bit_linear.py:inputs_not_rounded": "its own layers",
    "guard/guard.py:Guard.on_train_begin": "the control that callbacks are given to set",
    "guard/guard.py:Guard._follow": "its own record of the run, and the control that callbacks are given to set",
    "guard/guard.py:Guard._measure": "its own record of the run",
    "guard/guard.py:Guard._save": "its own record of the run",
    "guard/guard.py:Guard._restore": "its own sample",
    "guard/guard.py:Guard.on_train_end": "its own record of the run",
    "model/gguf.py:convert_gguf": "a tokenizer that was made there",
    "model/gguf.py:_unmarked": "a model that was loaded there",
    "model/gguf_tokenizer.py:_byte_level": "a tokenizer that was made there",
    "model/load.py:load_model": "a model that was loaded there",
    "model/load.py:_processor": "a processor that was loaded there",
    "model/load.py:_tokenizer": "a tokenizer that was loaded there",
    "model/merge.py:_in_sixteen_bits": "a copy of a configuration",
    "model/merge.py:_write": "a copy of a configuration",
    "model/quantization.py:dequantized": "a model that was made there",
    "model/saved_adapter.py:load_adapter": "a configuration that was loaded there",
    "ops/compiled_ahead.py:_Kernel.load": "its own notes of a thread",
    "ops/compiled_ahead.py:handed_over": "its own notes of a thread",
    "ops/compiled_ahead.py:launched": "its own notes of a thread",
    "trainer/assembly.py:_compile_ahead": "its own reference",
    "trainer/ignored_options.py:_never": "public options, by the ends of their names",
    "trainer/option_values.py:numbers_refused": "the configuration that it was given to settle",
    "ops/expert_mlp/quantized.py:QuantizedStack.__init__": "its own parts",
    "ops/prefix_attention/triton.py:_PrefixAttention.forward": "its own outputs",
    "ops/prefix_attention/tables.py:block_tables": "its own layout",
    "ops/prefix_attention/tables.py:overwrite_tables": "its own layout",
    "ops/prefix_attention/tables.py:tables_hold": "its own layout",
    "ops/prefix_attention/tables.py:_blocks": "its own layout",
    "ops/prefix_batches.py:prefix_batches": "its own layout",
    "ops/chunked_scan/segments.py:segments_of": "its own layout",
    "ops/chunked_scan/segments.py:_cut": "its own layout",
    "ops/prefix_chunks.py:prefix_chunks": "its own layout",
    "ops/prefix_convolution/neighbours.py:neighbours_of": "its own layout",
    "ops/prefix_convolution/whole_row.py:_heads": "its own layout",
    "planning/facts.py:memory_facts": "its own names of facts",
    "policy/cuda_graphs.py:_Replay.forward": "its own count",
    "policy/cuda_graphs.py:_Replay.backward": "its own count",
    "policy/offload.py:OffloadedPass.unpack": "its own tensor in host memory",
    "policy/offload.py:OffloadedPass._fetch": "its own tensor in host memory",
    "policy/recording.py:RowRecorder._recorded": "its own recording",
    "reference/store.py:ReferenceStore._connect": "a connection that was opened there",
    "report/answers.py:decode_greedily": "a model that was loaded there",
    "run/run.py:_train": "a trainer that was made there",
    "trainer/arguments.py:DPOConfig.from_arguments": "its own object",
    "trainer/assembly.py:_run_in_lockstep": "its own reference",
    "trainer/arguments.py:DPOConfig.changed": "its own copy",
    "unsloth/call_arguments.py:foreign_signature.decorate": "a function that was made there",
}
"""Places that write attributes of objects of this package, or of objects that were made or loaded there."""
NO_NAMES = {
    "_ids": "end of a column's name",
    "_loss": "end of a metric's name",
    "_scale_inv": "end of a parameter's name",
    "_token_id": "end of an attribute's name",
    "_name_or_path": "field of a configuration",
    "_commit_hash": "field of a configuration",
    "_unsloth_temporary_saved_buffers": "default of an argument",
}
"""Texts that look like private names."""
PUBLIC = {"grad"}
"""Attributes that PyTorch has for everybody to set."""

PRIVATE = re.compile(r"_[A-Za-z]\w*")
REGISTERS = re.compile(
    r"(\.|^)register(_\w+)?$|saved_tensors_hooks$|^FunctionType$|^InstanceAttributes$|\bmallopt$|^signal\.signal$|\.addFilter$"
)
SETS = re.compile(r"^(setattr|delattr|object\.__setattr__)$|(__dict__|vars\(.*\))\.(pop|update|setdefault)$")
ENVIRONMENT = re.compile(r"os\.environ\.(setdefault|update|pop)$|os\.putenv$")


def found_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The places of a module that reach into others, as the name of the class or function and what it does."""
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
    }

    def walk(node: ast.AST, place: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inside = (*place, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else place
            for what in _reaches(child, defined):
                yield ".".join(inside), what
            yield from walk(child, inside)

    return walk(tree, ())


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "ctx")


def _reaches(node: ast.AST, defined: set[str]) -> Iterator[str]:
    match node:
        case ast.Attribute(value=owner, attr=name, ctx=ast.Store() | ast.Del()):
            if not _is_self(owner) and name not in PUBLIC:
                yield f"writes .{name}"
        case ast.Attribute(value=owner, attr=name):
            if PRIVATE.fullmatch(name) and name not in defined and not _is_self(owner):
                yield f"reads .{name}"
        case ast.Subscript(value=owner, ctx=ast.Store() | ast.Del()):
            text = ast.unparse(owner)
            if text.startswith("vars(") or text.endswith("__dict__") or text == "os.environ":
                yield f"writes {ast.unparse(node)}"
        case ast.Call(func=function):
            text = ast.unparse(function)
            registers = REGISTERS.search(text) and not text.startswith("self.register_")
            if registers or SETS.search(text) or ENVIRONMENT.search(text):
                yield f"calls {text}"
        case ast.Constant(value=str(text)):
            if re.fullmatch(r"_[a-z][a-z_]*[a-z]", text) and text not in defined and text not in NO_NAMES:
                yield f"names {text}"
        case ast.ImportFrom(module=str(module), names=aliases) if not module.startswith("wishbone"):
            for name in [*module.split("."), *(alias.name for alias in aliases)]:
                if PRIVATE.fullmatch(name) and name != "__future__":
                    yield f"imports {name}"


def overridden_in(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Private methods of a module's classes that a class of another library has too."""
    for node in tree.body:
        names = [inner.name for inner in getattr(node, "body", []) if isinstance(inner, ast.FunctionDef)]
        private = [name for name in names if PRIVATE.fullmatch(name) and not name.startswith("__")]
        if isinstance(node, ast.ClassDef) and node.bases and private:
            kind = getattr(importlib.import_module(module), node.name)
            foreign = [base for base in kind.__mro__ if not base.__module__.startswith("wishbone.")]
            for name in private:
                if any(name in vars(base) for base in foreign):
                    yield f"{node.name}.{name}", "overrides"


def places() -> dict[str, list[str]]:
    """All places, as `path:name`, and what they do."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(("wishbone", *path.relative_to(SOURCE).with_suffix("").parts))
        for name, what in (*found_in(tree), *overridden_in(tree, module)):
            place = f"{path.relative_to(SOURCE).as_posix()}:{name}".rstrip(":")
            found.setdefault(place, []).append(what)
    return found


def named_on_the_page() -> list[str]:
    """Places that the page names, as `path` or `path:name`."""
    return re.findall(r"`((?!tests/)[\w/]+\.py(?::[\w.]+)?)`", PAGE)


@pytest.mark.slow
def test_every_place_is_on_the_page_and_everything_there_is_a_place() -> None:
    named, found = named_on_the_page(), places()

    def is_in(place: str, name: str) -> bool:
        return place == name or re.match(rf"{re.escape(name)}[:.]", place) is not None

    absent = {
        place: what for place, what in found.items() if place not in OURS and not any(is_in(place, n) for n in named)
    }
    assert absent == {}, "docs/interceptions.md does not say how these end and what tests them"
    assert [name for name in named if not any(is_in(place, name) for place in found)] == [], "these are gone"
    assert [place for place in OURS if place not in found] == [], "these are gone"


def test_every_entry_of_the_page_names_a_test_that_exists() -> None:
    entries = re.split(r"\n(?=- )", PAGE)[1:]
    entries = [entry for entry in entries if "\n  - " in entry]
    assert len(entries) > 80
    for entry in entries:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", entry.partition("\n  - Test: ")[2])
        assert tests, entry
        for path, name in tests:
            tree = ast.parse((REPOSITORY / "tests" / path).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("module.forward = other", "writes .forward"),
        ("del module.forward", "writes .forward"),
        ("self.model.config.use_cache = False", "writes .use_cache"),
        ("vars(module)['forward'] = other", "writes vars(module)['forward']"),
        ("module.__dict__.update(forward=other)", "calls module.__dict__.update"),
        ("setattr(module, name, other)", "calls setattr"),
        ("torch._C.something()", "reads ._C"),
        ("getattr(layer, '_disable_adapters')", "names _disable_adapters"),
        ("os.environ['A'] = '1'", "writes os.environ['A']"),
        ("os.environ.setdefault('A', '1')", "calls os.environ.setdefault"),
        ("AttentionInterface.register('a', f)", "calls AttentionInterface.register"),
        ("FunctionType(code, {})", "calls FunctionType"),
        ("logger.addFilter(f)", "calls logger.addFilter"),
        ("from torch._inductor import config", "imports _inductor"),
    ],
)
def test_the_search_finds_what_it_looks_for(line: str, what: str) -> None:
    assert list(found_in(ast.parse(f"def f(self, module, other):\n    {line}\n"))) == [("f", what)]


@pytest.mark.parametrize("line", ["self.model = other", "x = self._own", "tensor.grad = None", "x = module.weight"])
def test_and_not_what_is_ordinary(line: str) -> None:
    assert list(found_in(ast.parse(f"def f(self, module, other):\n    {line}\n"))) == []


def test_private_names_shared_with_the_trainers_beneath_are_on_the_page() -> None:
    """Those that Wishbone's trainer uses on purpose; a name of its own that they have too would be a collision."""
    beneath = "".join(inspect.getsource(kind) for kind in trl.DPOTrainer.__mro__[:-1])
    source = "".join(inspect.getsource(kind) for kind in DPOTrainer.__mro__ if kind not in trl.DPOTrainer.__mro__)
    private = r"(?:self\.|def )(_[A-Za-z]\w*)\b"
    shared = set(re.findall(private, source)) & set(re.findall(private, beneath))
    assert {"_metrics", "_tokenizer"} <= shared
    assert {name for name in shared if f"`{name}`" not in PAGE} == set()


def state_of(model: PeftModel) -> dict[Any, Any]:
    """Every attribute of the model's modules, of their classes and of the Python modules that these lie in."""

    def value(of: Any) -> Any:
        if isinstance(of, dict):
            return {key: value(inner) for key, inner in of.items()}
        return of if isinstance(of, str | int | float | bool | None) else id(of)

    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if kind is not object}
    homes = {kind.__module__ for kind in kinds if kind.__module__.startswith(("transformers.", "peft."))}
    configs = [module.config for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]
    return (
        {("module", name): value(vars(module)) for name, module in model.named_modules()}
        | {("class", kind): value(dict(vars(kind))) for kind in kinds}
        | {("home", home): {key: id(of) for key, of in vars(sys.modules[home]).items()} for home in homes}
        | {("config", i): value(vars(config)) for i, config in enumerate(configs)}
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_step_leaves_everything_as_it_was(family: str, fails: bool) -> None:
    """A step with everything fused, layers recomputed, inputs on the host, reference by a frozen copy of an adapter."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(family), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.add_adapter("ref", model.peft_config["default"])
    model.train()
    allow_recompute(model.get_base_model())
    policy = Policy(model, fused=FusedLayers(model, norms_everywhere=True))
    step = PreferenceStep(policy, AdapterDisabled(policy, "ref"), Objective(("sigmoid",), (1.0,), LossParameters()))
    execution = Execution.treating(64, "offload")
    pairs = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(4)]
    during: list[Any] = []

    def look(_: Any) -> None:
        during.append(state_of(model))
        if fails:
            raise ZeroDivisionError

    before = state_of(model)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        step.backward([pairs], PairMetrics(0.1), execution, lambda loss: (loss.backward(), look(loss)))
    after = state_of(model)
    assert after == before
    changed = {key for key in before if during[0][key] != before[key]}
    assert {kind for kind, _ in changed} == {"module", "config"}  # and neither classes nor Python modules
    attention = next(name for name, module in model.named_modules() if type(module).__name__.endswith("Attention"))
    assert {("module", attention), ("config", 0)} <= changed


def test_a_head_is_hidden_only_while_trl_constructs_its_trainer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    head = model.get_output_embeddings()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ZeroDivisionError), head_hidden(adapted):
        assert model.get_output_embeddings() is None
        raise ZeroDivisionError
    trainer = DPOTrainer(
        adapted,
        args=DPOConfig(**arguments(tmp_path)),
        train_dataset=chat_pairs(8),
        processing_class=tokenizer,
    )
    assert model.get_output_embeddings() is model.lm_head is not head
    assert "get_output_embeddings" not in vars(model) and trainer.form_reason is None
