"""What an adapter has learned, measured in one way for every system: float32, plain sequences, no trainer.

A trainer evaluates in the numerics that it trains in, so a margin of its held-out pairs is what was learned plus the
noise of rounding policy and reference apart. Here the adapter that was saved is put on the model in float32, and

    margin = beta ((log p(y_w|x) - log p_ref(y_w|x)) - (log p(y_l|x) - log p_ref(y_l|x))),

where the reference is the model with the adapter off, is computed one sequence at a time with the model's own logits.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from benchmarks.children import Row

BETA = 0.1


def evaluate(directory: str, adapter: str, pairs: list[Row], max_length: int, device: Any) -> dict[str, float]:
    """Return mean loss, accuracy and margin of held-out pairs.

    Args:
        directory: the model that was trained, 16-bit or 32-bit.
        adapter: directory of the adapter, in PEFT's format.
        pairs: rows of prompt, chosen and rejected.
        max_length: most tokens of a prompt with a completion; the rest is cut off, and a pair whose prompt alone is as
            long is left out, as trainers do.
        device: where to compute.
    """
    import torch
    from peft import PeftModel
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wishbone.data.tokenize import tokenize_pairs

    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map={"": device})
    model = PeftModel.from_pretrained(base, adapter).eval()
    margins = []
    for row in tokenize_pairs(_dataset(pairs), AutoTokenizer.from_pretrained(directory)):
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


def _log_probability(model: Any, prompt: list[int], completion: list[int]) -> float:
    import torch

    ids = torch.tensor([prompt + completion], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    own = logits.double().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
    return float(own.sum())


def _dataset(pairs: list[Row]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(pairs)
