"""Every module that a reference pass enters counts in the reference's identity, so no edit leaves stale values in use.

Real passes run under a profiler that notes the file of every Python function that is called. A file of this package
must lie in `SCORING_CODE`, be the source of one of the model's own layers (`_kind` hashes that), or stand in
`DECIDES_NO_VALUE` with the reason.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import loaded_in_fp8, tiny_model, tiny_pairs
from torch import nn
from trainer.preference_runs import arguments
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import wishbone
from wishbone import DPOConfig
from wishbone.data.batch import TokenizedPair
from wishbone.model.adapter import copy_adapter
from wishbone.model.host_embedding import keep_embedding_on_host
from wishbone.reference.identity import SCORING_CODE, scoring_code
from wishbone.reference.weights import reference_modules
from wishbone.trainer.assembly import assemble_step

PACKAGE = Path(wishbone.__file__).parent
DECIDES_NO_VALUE = {
    "engine/": "an Execution says how rows are computed; the values are the same for all of them (tests/engine)",
    "model/host_embedding.py": "compute_device looks up the device, which counts itself; the layer counts by its class",
}
PAIRS = [
    TokenizedPair(prompt + chosen, prompt + rejected, len(prompt), len(prompt))
    for prompt, chosen, rejected in tiny_pairs(4)
]
Change = Callable[[PreTrainedModel], nn.Module]


def adapted(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """A model with an adapter that adds something."""
    torch.manual_seed(0)
    peft_model = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": "all-linear", **settings}))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return peft_model


def with_frozen_copy(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """As TRL leaves a model that came with an adapter: `ref` is a frozen copy of it."""
    peft_model = adapted(model, **settings)
    peft_model.add_adapter("ref", peft_model.peft_config["default"])
    copy_adapter(peft_model, "default", "ref")
    return peft_model


def in_fp8(model: PreTrainedModel) -> PeftModel:
    return adapted(loaded_in_fp8(model))


def in_nf4(model: PreTrainedModel, folder: Path) -> PeftModel:
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=model.dtype)
    return adapted(AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, quantization_config=config))


def embedding_on_host(model: PreTrainedModel) -> PeftModel:
    keep_embedding_on_host(model)
    return adapted(model)


def head_adapted(model: PreTrainedModel) -> PeftModel:
    return with_frozen_copy(model, target_modules=["q_proj", "lm_head"])


@contextmanager
def functions_called() -> Iterator[set[str]]:
    """Context that collects the files of all Python functions that are called in it, in new threads too."""
    files: set[str] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]


def pass_of(
    model: nn.Module, ref_model: nn.Module | None = None, *, autocast: Any = nullcontext, **options: Any
) -> tuple[set[str], list[nn.Module]]:
    """Files of this package whose functions a reference pass calls, and the modules that it runs."""
    config = DPOConfig(**arguments(Path("unused"), reference_store="off", **options))
    step = assemble_step(model, ref_model, config, autocast).step
    if config.sync_ref_model:
        step.reference.synchronize(0.5)  # type: ignore[attr-defined]
    with functions_called() as files:
        values = step.reference.logps(step.policy.collate(PAIRS))
    assert values.isfinite().all() and values.abs().min() > 0
    runs = model if ref_model is None else ref_model
    causal_lm = runs.get_base_model() if isinstance(runs, PeftModel) else runs
    own = {Path(name).resolve() for name in files}
    return (
        {path.relative_to(PACKAGE).as_posix() for path in own if path.is_relative_to(PACKAGE)},
        [module for _, module in reference_modules(causal_lm)],
    )


def missing(files: set[str], modules: list[nn.Module], listed: tuple[str, ...] = SCORING_CODE) -> set[str]:
    """Files that decide values and count nowhere."""
    layers = {Path(str(sys.modules[type(module).__module__].__file__)).resolve() for module in modules}
    return {
        file
        for file in files
        if not any(file == entry or file.startswith(f"{entry}/") for entry in listed)
        and not any(file.startswith(entry) for entry in DECIDES_NO_VALUE)
        and PACKAGE / file not in layers
    }


CASES: dict[str, tuple[str, torch.dtype, Change, dict[str, Any]]] = {
    "adapter off": ("llama", torch.float32, adapted, {}),
    "adapter off, LD-DPO": ("llama", torch.float32, adapted, {"ld_alpha": 0.5}),
    "adapter off, fused": ("llama", torch.bfloat16, adapted, {}),
    "adapter off, windows, soft caps": ("gemma2", torch.bfloat16, adapted, {}),
    "adapter off, experts": ("mixtral", torch.float32, lambda m: adapted(m, target_modules=["q_proj"]), {}),
    "adapter off, layers recomputed": ("qwen3", torch.bfloat16, adapted, {"activations": "recompute"}),
    "adapter off, inputs offloaded": ("qwen3", torch.bfloat16, adapted, {"activations": "offload"}),
    "adapter off, plain sequences": ("minimax", torch.float32, lambda m: adapted(m, target_modules=["q_proj"]), {}),
    "adapter off, recurrent layers": ("lfm2", torch.float32, lambda m: adapted(m, target_modules=["q_proj"]), {}),
    "adapter off, FP8": ("llama", torch.float32, in_fp8, {}),
    "adapter off, FP8, fused": ("qwen3", torch.bfloat16, in_fp8, {}),
    "adapter off, embedding on the host": ("llama", torch.float32, embedding_on_host, {}),
    "frozen copy": ("llama", torch.float32, with_frozen_copy, {}),
    "frozen copy, fused": ("llama", torch.bfloat16, with_frozen_copy, {}),
    "frozen copy, on the head": ("llama", torch.float32, head_adapted, {}),
    "synchronized": ("llama", torch.float32, adapted, {"sync_ref_model": True}),
    "synchronized, fused": ("llama", torch.bfloat16, adapted, {"sync_ref_model": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_module_that_a_reference_pass_enters_is_missing(name: str) -> None:
    family, dtype, change, options = CASES[name]
    files, modules = pass_of(change(tiny_model(family, dtype)), **options)
    assert {"policy/policy.py", "preference/sequence_scores.py", "reference/reference.py"} <= files
    assert missing(files, modules) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_of_a_pass_on_4_bit_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    assert missing(*pass_of(in_nf4(tiny_model("llama", dtype), tmp_path))) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_of_a_pass_of_a_second_model(dtype: torch.dtype) -> None:
    assert missing(*pass_of(tiny_model("llama", dtype), tiny_model("qwen3", dtype))) == set()


def test_nor_of_a_pass_in_mixed_precision() -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    assert missing(*pass_of(adapted(tiny_model("llama")), autocast=autocast, bf16=True)) == set()


def test_a_module_taken_out_is_found_missing() -> None:
    """Each entry is there for a module that some pass enters, and without it that module is reported."""
    fused, modules = pass_of(with_frozen_copy(tiny_model("llama", torch.bfloat16)), ld_alpha=0.5)
    for entry in SCORING_CODE:
        found = missing(fused, modules, tuple(other for other in SCORING_CODE if other != entry))
        assert found and all(file == entry or file.startswith(f"{entry}/") for file in found), entry
    in_8_bits, modules = pass_of(in_fp8(tiny_model("llama")))
    assert missing(in_8_bits, modules) == set()
    assert missing(in_8_bits, []) == {"model/eight_bit_linear.py"}


def test_an_edit_of_scoring_code_counts_and_one_elsewhere_does_not(tmp_path: Path) -> None:
    package = tmp_path / "wishbone"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = scoring_code(package)
    assert before == scoring_code(PACKAGE)

    def edited(file: str) -> str:
        path = package / file
        source = path.read_text()
        path.write_text(source + "\n# edited\n")
        scoring_code.cache_clear()
        try:
            return scoring_code(package)
        finally:
            path.write_text(source)

    counting = ["preference/scores.py", "fused/quantized_input.py", "reference/adapter_switch.py", "data/batch.py"]
    others = ["model/gguf.py", "model/load.py", "data/formats/paired.py", "trainer/trainer.py", "report/html.py"]
    assert len({before, *map(edited, counting)}) == 1 + len(counting)
    assert {before} == set(map(edited, others))
