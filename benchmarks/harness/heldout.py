"""What an adapter learned, measured in one way for every system: in float32, on plain sequences, without a trainer.

A trainer evaluates in the precision that it trains in, so its held-out margins contain the rounding noise of policy and
reference. Here the saved adapter is put on the model in float32, with its weights as published or as they were rounded
for training, and

    margin = beta ((log p(y_w|x) - log p_ref(y_w|x)) - (log p(y_l|x) - log p_ref(y_l|x))),

where the reference is the model with the adapter off, comes from the model's own logits, one sequence at a time.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from benchmarks.harness.results import Row

BETA = 0.1


def evaluate(
    directory: str, adapter: str, pairs: list[Row], max_length: int, device: Any, rounded: str | None = None
) -> dict[str, float]:
    """Return mean loss, accuracy and margin of held-out pairs.

    Args:
        directory: the model that was trained, 16-bit or 32-bit.
        adapter: directory of the adapter, in PEFT's format.
        pairs: rows of prompt, chosen and rejected.
        max_length: tokens of a prompt and completion, in all. As in trainers, completions are cut and pairs whose
            prompt fills `max_length` are dropped.
        device: device to compute on.
        rounded: "fp8", "int8" or "nf4" for weights rounded so, None for the published ones; arithmetic is float32.
    """
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wishbone.data.tokenize import tokenize_pairs

    if rounded is None:
        base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map={"": device})
    else:
        base = rounded_model(directory, rounded, device).float()
    model = PeftModel.from_pretrained(base, adapter).eval()
    margins = []
    for row in tokenize_pairs(Dataset.from_list(pairs), AutoTokenizer.from_pretrained(directory)):
        prompt = row["prompt_ids"]
        if len(prompt) >= max_length:
            continue
        completions = [row[f"{side}_ids"][: max_length - len(prompt)] for side in ("chosen", "rejected")]
        policy = [_log_probability(model, prompt, completion) for completion in completions]
        with model.disable_adapter():
            reference = [_log_probability(model, prompt, completion) for completion in completions]
        margins.append(BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1])))
    return {
        "heldout_loss": fmean(-logsigmoid(torch.tensor(margin)).item() for margin in margins),
        "heldout_accuracy": fmean(float(margin > 0) for margin in margins),
        "heldout_margin": fmean(margins),
    }


def rounded_model(directory: str, codes: str, device: Any) -> Any:
    """Return the model of a directory in bfloat16 with linear weights that were rounded to "fp8", "int8" or "nf4".

    It is a model of its own: one that was dequantized in place still counts as quantized for TRL, which then gives it
    adapters in bfloat16.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from wishbone.model.load import load_model

    coded, _ = load_model(
        directory,
        dtype=torch.bfloat16,
        device=device,
        load_in_fp8=codes == "fp8",
        load_in_rotated_int8=codes == "int8",
        load_in_4bit=codes == "nf4",
    )
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, device_map={"": device})
    model.load_state_dict(coded.dequantize().state_dict())
    return model


def _log_probability(model: Any, prompt: list[int], completion: list[int]) -> float:
    import torch

    ids = torch.tensor([prompt + completion], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    own = logits.double().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
    return float(own.sum())
