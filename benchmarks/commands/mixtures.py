"""Steps of mixtures of experts, with random weights of a known model's shape, beside TRL.

    python -m benchmarks mixtures --stages attention:bf16:wishbone attention:bf16:trl experts:nf4:wishbone [--out FILE]

A stage is ADAPTERS:WEIGHTS:SYSTEM: LoRA of rank 16 on the attention's layers ("attention"), or on the experts' stacked
weights as well ("experts"); weights in bf16, fp8 or nf4 (TRL: bf16); Wishbone or TRL. Each stage builds the model anew
on the GPU and trains it with the library's DPOTrainer on 8 pairs a step of UltraFeedback's lengths, with the model's
default auxiliary loss. The first three steps are not counted. `--tiny` takes small sizes, which a CPU trains, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.random_model import word_tokenizer
from benchmarks.harness.results import Row, this_call, write_json
from benchmarks.harness.workloads import draw_lengths, texts

PAIRS, UNCOUNTED = 8, 3
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
STACKS = ["experts.gate_up_proj", "experts.down_proj"]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-30b-a3b": (
        "Qwen3MoeConfig",
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
         "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 16},
    ),
    "gpt-oss-20b": (
        "GptOssConfig",
        {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
         "num_experts_per_tok": 4, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
         "sliding_window": 128, "num_hidden_layers": 8},
    ),
}  # fmt: skip
"""Layer shapes of published models, with fewer layers."""
TINY = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def model_of(shape: str, weights: str, layers: int | None, tiny: bool) -> Any:
    """Return a model with random weights, on the GPU if there is one."""
    import torch
    import transformers

    kind, sizes = SHAPES[shape]
    own = sizes | (TINY if tiny else {}) | ({"num_hidden_layers": layers} if layers else {})
    config = getattr(transformers, kind)(
        **own, pad_token_id=2, eos_token_id=1, bos_token_id=None, max_position_embeddings=4096
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model if weights == "bf16" else in_codes_of(model, weights)


def in_codes_of(model: Any, weights: str) -> Any:
    """Return the model with its linear layers and experts in codes, as `load_model` makes them from files."""
    import torch
    from torch import nn

    from wishbone.model.eight_bit_layers import layers_for_8_bits
    from wishbone.model.eight_bit_linear import ROWS, EightBitLinear, FP8Linear, Int8Linear
    from wishbone.model.quantization import settle_quantized_layers
    from wishbone.model.quantized_experts import in_codes, is_stack
    from wishbone.ops.expert_mlp import FP8Stack, Int8Stack, NF4Stack

    eight: dict[str, type[EightBitLinear]] = {"fp8": FP8Linear, "int8": Int8Linear}
    stacks = {"fp8": FP8Stack, "int8": Int8Stack, "nf4": NF4Stack}
    for name in layers_for_8_bits(model, weights):
        old = model.get_submodule(name)
        sizes = old.in_features, old.out_features, old.bias is not None
        new: Any
        if weights in eight:
            new = eight[weights](*sizes, dtype=old.weight.dtype, device="meta")
            rows = new.quantized(old.weight.detach())
            new.weight = nn.Parameter(rows.values, requires_grad=False)
            new.register_parameter(ROWS, nn.Parameter(rows.scale, requires_grad=False))
        else:
            import bitsandbytes

            form = {"quant_type": "nf4", "compress_statistics": True}
            new = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=old.weight.dtype, device="meta", **form)
            codes = bitsandbytes.nn.Params4bit(old.weight.detach().cpu(), requires_grad=False, **form)
            new.weight = codes.to(old.weight.device)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        model.set_submodule(name, new)
    for name in [name for name, _ in model.named_parameters() if is_stack(model, name)]:
        module, _, own = name.rpartition(".")
        stack = in_codes(model.get_parameter(name), stacks[weights])
        model.get_submodule(module).register_parameter(own, stack)
    if weights == "nf4":
        model.is_loaded_in_4bit = True  # by which PEFT knows 4-bit layers
        settle_quantized_layers(model, torch.bfloat16)
    return model


def measure(stage: str, options: argparse.Namespace) -> Row:
    """Return rate, peak memory and losses of one stage."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from wishbone import DPOConfig, DPOTrainer

    adapters, weights, system = stage.split(":")
    ours, on_gpu = system == "wishbone", torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model = model_of(options.shape, weights, options.layers, options.tiny)
    steps, vocabulary = options.steps + UNCOUNTED + 1, model.config.vocab_size
    rows = texts(draw_lengths("tiny" if options.tiny else "ultrafeedback", PAIRS * steps), vocabulary)
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = (DPOConfig if ours else trl.DPOConfig)(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=steps, bf16=on_gpu, use_cpu=not on_gpu,
            logging_steps=1, report_to="none", save_strategy="no", learning_rate=1e-5, max_length=2048, seed=0,
            **({"guard": "off", "cuda_graphs": options.cuda_graphs} if ours else {}),
        )  # fmt: skip
        lora = LoraConfig(r=16, lora_alpha=16, target_modules=ATTENTION, task_type="CAUSAL_LM")
        lora.target_parameters = STACKS if adapters == "experts" else None
        trainer = (DPOTrainer if ours else trl.DPOTrainer)(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=word_tokenizer(vocabulary),
            peft_config=lora,
            callbacks=[Clock()],
        )
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    result: Row = {
        "stage": stage,
        "shape": options.shape,
        "pairs_per_second": PAIRS * options.steps / (marks[-1] - marks[UNCOUNTED]),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "losses": [entry["loss"] for entry in logs[:UNCOUNTED]],
        "auxiliary_losses": [entry.get("aux_loss") for entry in logs[:UNCOUNTED]],
        "graph_lengths": trainer.execution.graphs.lengths if ours and trainer.execution.graphs else None,
    }
    del trainer, model
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks mixtures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", default=["attention:bf16:wishbone", "attention:bf16:trl"])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--steps", type=int, default=20, help="that are counted")
    parser.add_argument("--cuda-graphs", choices=["auto", "on", "off"], default="on")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for stage in options.stages:
        results.append(measure(stage, options))
        print(json.dumps(results[-1]), flush=True)
    if options.out:
        write_json(options.out, {"benchmark": "mixtures", **this_call(options.commit), "results": results})
