"""Each system's way to a model and a trainer, as its documentation shows it, with the same LoRA and arguments for all.

Unsloth changes other libraries when it is imported, and Wishbone sets up host memory before PyTorch is imported. Both
must come first, so nothing here imports a library before `import_libraries` has run.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.results import Row
from benchmarks.harness.systems import System
from benchmarks.harness.workloads import MAX_LENGTH

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
LIBRARIES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
LIBRARIES_OF = {"trl": ("liger-kernel",), "unsloth": ("unsloth", "unsloth_zoo"), "wishbone": ("liger-kernel",)}


@dataclass
class Loaded:
    """A model, its tokenizer, and further arguments for the trainer."""

    model: Any
    tokenizer: Any
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where the weights come from: a directory, or random weights in the shape of `size`.

    With `one_layer` all layers lie in the memory of one, until FSDP divides them.
    """

    size: str | None
    directory: str | None
    one_layer: bool = False


def import_libraries(system: System | None) -> None:
    """Import what a system needs before anything is timed; PyTorch alone without a system."""
    if system is None:
        importlib.import_module("torch")
        return
    if system.family != "trl":
        importlib.import_module(system.family)
    _ = trainer_classes(system)
    for name in ("torch", "transformers", "peft", "datasets", "benchmarks.harness.random_model"):
        importlib.import_module(name)


def trainer_classes(system: System) -> tuple[Any, Any]:
    """Return the classes of the trainer and of its arguments."""
    if system.family == "unsloth":
        importlib.import_module("unsloth").PatchDPOTrainer()
    home = importlib.import_module("wishbone" if system.family == "wishbone" else "trl")
    return home.DPOTrainer, home.DPOConfig


def versions(system: System | None) -> dict[str, str]:
    """Return the versions of the libraries that a system uses, where they are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (*LIBRARIES, *LIBRARIES_OF[system.family]) if system else ("torch",):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def device_of(system: System) -> Any:
    """Return the GPU, with the system's memory limit set, or the CPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    limit_memory(system.memory_gib)
    return torch.device("cuda", 0)


def limit_memory(gib: float | None) -> None:
    """Limit this process to `gib` GiB of the GPU, or on a CPU to that much more than it holds now."""
    import torch

    if gib is None:
        return
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), 0)
        return
    import resource

    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    held = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(gib * 2**30), hard))


def load(system: System, origin: Origin, device: Any, max_length: int = MAX_LENGTH, seed: int = 3407) -> Loaded:
    """Load the frozen model in the system's precision, with an adapter drawn from `seed` or the adapter's settings."""
    if system.style == "unsloth" and not system.in_place:
        return _load_for_unsloth(system, origin, max_length, seed)
    return _load_for_trl(system, origin, device)


def _load_for_trl(system: System, origin: Origin, device: Any) -> Loaded:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, FineGrainedFP8Config

    from benchmarks.harness.random_model import model_of_one_layer, random_model, random_tokenizer

    dtype = torch.float32 if system.weights == "f32" else torch.bfloat16
    adapter = LoraConfig(
        r=RANK, lora_alpha=RANK, lora_dropout=0.0, bias="none", target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    if origin.directory is None:
        assert origin.size is not None
        if system.weights in ("nf4", "fp8"):
            from benchmarks.harness.quantized_model import quantized_random_model

            model = quantized_random_model(origin.size, system.weights, device, dtype)
            if system.offload_embedding:
                from wishbone.model.host_embedding import keep_embedding_on_host

                keep_embedding_on_host(model)
            return Loaded(model, random_tokenizer(origin.size), {"peft_config": adapter})
        model = (model_of_one_layer if origin.one_layer else random_model)(origin.size, dtype, device)
        return Loaded(model, random_tokenizer(origin.size), {"peft_config": adapter})
    if system.rounded is not None:
        from benchmarks.harness.heldout import rounded_model

        model = rounded_model(origin.directory, system.rounded, device).to(dtype)
        return Loaded(model, AutoTokenizer.from_pretrained(origin.directory), {"peft_config": adapter})
    quantization = {
        "nf4": lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "fp8": FineGrainedFP8Config,
    }.get(system.weights)
    model = AutoModelForCausalLM.from_pretrained(
        origin.directory,
        dtype=dtype,
        device_map={"": device},
        quantization_config=quantization() if quantization else None,
    )
    return Loaded(model, AutoTokenizer.from_pretrained(origin.directory), {"peft_config": adapter})


def _load_for_unsloth(system: System, origin: Origin, max_length: int, seed: int) -> Loaded:
    import torch

    FastLanguageModel = importlib.import_module(system.family).FastLanguageModel
    own: dict[str, Any] = {"offload_embedding": True} if system.offload_embedding else {}
    arguments = {"fp8": "load_in_fp8", "int8": "load_in_rotated_int8", "llm-int8": "load_in_8bit"}
    if system.weights in arguments:
        own[arguments[system.weights]] = True
    checkpointing = True if system.checkpointing is None else system.checkpointing
    model, tokenizer = FastLanguageModel.from_pretrained(
        origin.directory,
        max_seq_length=max_length,
        dtype=torch.float32 if system.weights == "f32" else torch.bfloat16,
        load_in_4bit=system.weights == "nf4",
        **own,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0,
        bias="none",
        target_modules=LINEARS,
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
    )
    return Loaded(model, tokenizer)


def arguments(system: System, device: Any, directory: str, **settings: Any) -> dict[str, Any]:
    """Return the trainer's arguments: the same for every system, except for what defines the system.

    All that matter are explicit, because libraries have their own defaults (Unsloth has several).
    """
    same: dict[str, Any] = {
        "output_dir": directory,
        "learning_rate": 5e-6,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "beta": 0.1,
        "max_length": MAX_LENGTH,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 0,
        "bf16": system.weights != "f32",
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "disable_tqdm": True,
    }
    own: dict[str, Any] = {}
    if system.liger:
        own["use_liger_kernel"] = True
    if system.style == "trl" and system.checkpointing is not None:
        own["gradient_checkpointing"] = system.checkpointing
    if system.token_budget is not None:
        own["token_budget"] = system.token_budget
    if system.cuda_graphs is not None:
        own["cuda_graphs"] = system.cuda_graphs
    if system.activations is not None:
        own["activations"] = system.activations
    return same | own | settings


def trainer_for(system: System, loaded: Loaded, device: Any, directory: str, rows: list[Row], **settings: Any) -> Any:
    """Return the system's trainer over `rows`, which writes below `directory`.

    Args:
        settings: `callbacks` and `eval_dataset` (rows) go to the trainer, all others are its arguments.
    """
    from datasets import Dataset

    trainer_class, config_class = trainer_classes(system)
    beside: dict[str, Any] = {"callbacks": settings.pop("callbacks", None)}
    if "eval_dataset" in settings:
        beside["eval_dataset"] = Dataset.from_list(settings.pop("eval_dataset"))
    trainer = trainer_class(
        model=loaded.model,
        args=config_class(**arguments(system, device, directory, **settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        **beside,
        **loaded.options,
    )
    if system.apart:
        from wishbone.reference.reference import AdapterDisabled
        from wishbone.trainer.start_check import uncached

        reference = uncached(trainer.preference_step)
        assert isinstance(reference, AdapterDisabled)
        reference.in_lockstep = False
    if system.most_lengths is not None:
        from wishbone.engine import graph_selection

        graph_selection.RECORDED = system.most_lengths
    if system.plain:
        from wishbone.trainer import profiling

        policy = trainer.preference_step.policy
        share = policy.collate
        policy.collate = lambda pairs, *more: share([_apart(pair) for pair in pairs], *more)
        # The lengths of rows that are tried out and recorded.
        profiling.pair_tokens = _tokens_apart  # type: ignore[attr-defined]
    if system.torch_scans:
        from wishbone.ops import kernel_trial

        kernel_trial._found.clear()
        kernel_trial._difference = lambda *_: "this system asks for PyTorch"  # type: ignore[assignment]
    return trainer


def _tokens_apart(dataset: Any, max_length: int | None) -> Any:
    """Return the tokens of each pair in a row that holds its prompt twice."""
    from wishbone.data.columns import token_lengths

    prompt, chosen, rejected = token_lengths(dataset, ("prompt_ids", "chosen_ids", "rejected_ids"))
    cut = max_length or 2**62
    return (prompt + chosen).clip(max=cut) + (prompt + rejected).clip(max=cut)


def _apart(pair: Any) -> Any:
    """Return a pair whose sequences share nothing, so that its row holds the prompt twice."""
    from wishbone.data.batch import TokenizedPair

    class Apart(TokenizedPair):
        shared = 0

    return Apart(**vars(pair))
