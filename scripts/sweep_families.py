"""Train a tiny model of every family that transformers knows; write docs/families.md: how each runs, and whether right.

    python scripts/sweep_families.py [--only NAME,NAME] [--part 1/4] [--seconds 120]

The families are those of transformers' causal and image-text models. A configuration is made small by rules on the
names of its fields, so no family is listed by hand; one that cannot be made small is named with what stopped it. Each
is trained for one step on text, all weights, with another random model as the reference. The loss is compared with a
loop over single sequences in transformers alone. Each family runs in a process of its own, so a crash is a result.

Results are added to docs/families.json, where those of other families stay, and the table is written from it.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tiny import tiny_tokenizer  # type: ignore[import-not-found]  # noqa: E402

from wishbone import DPOConfig, DPOTrainer  # noqa: E402
from wishbone.errors import RequestError  # noqa: E402

KEPT, PAGE = ROOT / "docs" / "families.json", ROOT / "docs" / "families.md"
TABLE = re.compile(r"(?<=<!-- generated: families -->\n).*?(?=<!-- end -->)", re.DOTALL)
KINDS = {
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
    "image-text": (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, AutoModelForImageTextToText),
}
VOCABULARY = 384
COLUMNS = ("prompt", "chosen", "rejected")
ROWS = [
    dict(zip(COLUMNS, row, strict=True))
    for row in (
        ("What is the capital of France? ", "Paris.", "I do not know, ask somebody else."),
        ("Two and two are ", "four", "five"),
        ("Say yes. ", "Yes, of course, with pleasure.", "No."),
        ("A ", "It begins with little.", "So does this one."),
    )
]
EXACT = 1e-5
"""Largest relative difference of the loss that float32 explains."""

RULES: tuple[tuple[str, object], ...] = (
    (r"vocab_size(_per_layer_input)?|text_vocab_size|.*_vocab_size", VOCABULARY),
    (r"hidden_size|d_model|n_embd|dim|embed_dim|decoder_hidden_size|word_embed_proj_dim|hidden_dim|lru_width", 32),
    (r"out_hidden_size|projection_dim|text_hidden_size|output_dim|proj_dim|embedding_size", 32),
    (r"(dense_|shared_|mlp_|ffn_|expert_ffn_)?(intermediate|hidden|inner)_size|ffn_dim|d_ff|n_inner|mlp_dim", 64),
    (r".*_ffn_dim|moe_intermediate_size|.*expert.*_intermediate_size|expert_ffn_hidden_size|ffn_hidden_size", 64),
    (r"num_(hidden_)?layers|n_layers?|decoder_layers|encoder_layers|depth|num_decoder_layers", 2),
    (r"num_(attention_)?heads|n_heads?|(de|en)coder_attention_heads|num_decoder_heads|vision_heads", 4),
    (r"num_(key_value_heads|query_groups|kv_heads)|n_kv_heads?|num_global_key_value_heads", 2),
    (r"head_dim|global_head_dim|kv_channels|attention_head_dim|swa_head_dim", 16),
    (r"(num|n_routed|num_local|moe_num|num_routed)_experts|ffn_num_experts", 4),
    (r"num_experts_per_to(k|ken)|moe_(k|topk|top_k)|top_k_experts", 2),
    (r"n_group|topk_group|n_groups|num_shared_experts|n_shared_experts|first_k_dense_replace|mamba_n_groups", 1),
    (r"q_lora_rank|kv_lora_rank|index_head_dim|v_head_dim|qk_nope_head_dim|lora_rank", 16),
    (r"qk_rope_head_dim", 8),
    (r"linear_num_key_heads|linear_num_value_heads|mamba_n_heads|mamba_num_heads", 4),
    (r"linear_(key|value)_head_dim|mamba_d_head|mamba_head_dim", 16),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_dt_rank|time_step_rank", 8),
    (r"max_position_embeddings|n_positions|max_seq_len|context_length|max_sequence_length", 256),
    (r"sliding_window|attention_window_size|local_window|window_size", 64),
    (r"image_size", 32),
    (r"patch_size|spatial_patch_size", 8),
    (r".*dropout.*|.*pdrop.*|.*drop_path.*|.*layerdrop.*|.*jitter.*", 0.0),
    (r"router_aux_loss_coef|aux_loss_coef|router_z_loss_coef|.*mtp_loss.*", 0.0),
)
"""A field whose name matches gets this value, the first rule that matches; only numbers are replaced."""
DERIVED = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "attention_layers", "no_rope_layers")
"""Lists with one entry a layer, cut to the layers that are left."""


def small(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration of the same kind that is as small as the rules make it."""
    parts = config.sub_configs
    fields: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in parts and isinstance(getattr(config, name), PreTrainedConfig):
            fields[name] = small(getattr(config, name))
        elif isinstance(value, bool) or name in ("model_type", "transformers_version", "architectures"):
            continue
        elif isinstance(value, (int, float)):
            if re.fullmatch(r".*_token_(id|index)", name) and value >= VOCABULARY:
                fields[name] = VOCABULARY - 1 - len(fields) % 64
            elif (rule := next((new for pattern, new in RULES if re.fullmatch(pattern, name)), None)) is not None:
                fields[name] = rule
    layers = fields.get("num_hidden_layers")
    for name in DERIVED:
        found = config.to_dict().get(name)
        if layers and isinstance(found, (list, tuple)) and len(found) > layers:
            kinds = list(dict.fromkeys(found))  # each kind once, as far as there is room
            fields[name] = (kinds + [kinds[-1]] * layers)[:layers]
    text = fields.get("text_config", fields)
    rope = config.get_text_config().to_dict().get("rope_parameters")
    if "vision_config" in parts and isinstance(rope, dict) and "rope_type" in rope:
        half = text.get("head_dim", 8) // 2  # positions in time, height and width share the pairs of a head
        text["rope_parameters"] = {**rope, "mrope_section": [half // 2, half // 4, half // 4]}
    return fields


def built(family: str, kind: str, seed: int) -> PreTrainedModel:
    """A random model of a family, in float32."""
    config = CONFIG_MAPPING[family](**small(CONFIG_MAPPING[family]()))
    text = config.get_text_config()
    for one in {id(config): config, id(text): text}.values():
        one.bos_token_id, one.eos_token_id, one.pad_token_id = 0, 1, 2
    torch.manual_seed(seed)
    model: PreTrainedModel = KINDS[kind][1].from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and not name.endswith(("A_log", ".D")):
            parameter.data.normal_(0.0, 1.0 / parameter.shape[-1] ** 0.5)
    return model.eval()


def textbook(policy: PreTrainedModel, reference: PreTrainedModel, pairs: list[tuple[list[int], ...]]) -> float:
    """The mean DPO loss (beta 0.1) of token ids (prompt, chosen, rejected), one sequence at a time."""

    def logp(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None]).sum()

    def margin(model: PreTrainedModel, pair: tuple[list[int], ...]) -> torch.Tensor:
        return logp(model, pair[0], pair[1]) - logp(model, pair[0], pair[2])

    with torch.no_grad():
        differences = [margin(policy, pair) - margin(reference, pair) for pair in pairs]
    return float(torch.stack([torch.nn.functional.softplus(-0.1 * one) for one in differences]).mean())


def trained(policy: PreTrainedModel, reference: PreTrainedModel) -> dict[str, Any]:
    """How a model runs, and how far its loss is from the textbook's."""
    tokenizer = tiny_tokenizer(chat=False)
    with TemporaryDirectory() as directory:
        arguments = DPOConfig(
            output_dir=directory, max_steps=1, per_device_train_batch_size=4, learning_rate=1e-6, use_cpu=True,
            report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, guard="off", max_length=128,
            reference_store="off", gradient_checkpointing=False, bf16=False,
        )  # fmt: skip
        try:
            trainer = DPOTrainer(
                policy, reference, args=arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
            )
            ids = [tuple(row[f"{name}_ids"] for name in COLUMNS) for row in trainer.train_dataset]
            expected = textbook(policy, reference, ids)
            loss = trainer.train().training_loss
        except RequestError as error:
            return {"path": "refused", "reason": str(error).replace("\n", " ")[:300]}
    step = trainer.preference_step
    form = None if step is None else step.policy.form
    path = {None: "TRL's path", "shared_prefix": "fast"}.get(form, "plain")
    return {"path": path, "difference": abs(loss - expected) / abs(expected), "reason": trainer.form_reason}


def run_apart(family: str, kind: str, seconds: float) -> dict[str, Any]:
    """The result of a family in a process of its own; what it dies of is the last line that it writes."""
    ours, theirs = multiprocessing.Pipe()

    def child(errors: int) -> None:
        os.dup2(errors, 2)
        torch.set_num_threads(1)
        models = built(family, kind, 0), built(family, kind, 1)
        with torch.no_grad():  # what transformers itself cannot run is no finding
            models[0](input_ids=torch.arange(3, 12)[None], use_cache=False)
        theirs.send("built")
        theirs.send(trained(*models))

    with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = multiprocessing.get_context("fork").Process(target=child, args=(errors.fileno(),))
        process.start()
        theirs.close()
        found: Any = None
        try:
            while not isinstance(found, dict) and ours.poll(seconds):
                found = ours.recv()
            why = f"no result in {seconds:.0f} s"
        except EOFError:
            process.join()
            errors.seek(0)
            lines = [
                line.strip() for line in errors.read().splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)
            ]
            why = lines[-1][:220] if lines else f"it ended with {process.exitcode}"
        process.kill()
        process.join()
    if isinstance(found, dict):
        return found
    return {"path": "crash" if found == "built" else "not built", "reason": why}


def families() -> list[tuple[str, str]]:
    """Every family with its kind."""
    return [(name, kind) for kind, (names, _) in KINDS.items() for name in names]


def table(kept: dict[str, Any]) -> str:
    """The Markdown table."""
    rows = ["| Family | Runs | Loss beside the textbook's | Why not fast |", "|---|---|---|---|"]
    for name, found in sorted(kept["families"].items()):
        difference = found.get("difference")
        exact = "" if difference is None else "equal" if difference <= EXACT else f"differs by {difference:.0e}"
        reason = (found.get("reason") or "").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
        rows.append(f"| {name} | {found['path']} | {exact} | {reason} |")
    counts: dict[str, int] = {}
    for found in kept["families"].values():
        counts[found["path"]] = counts.get(found["path"], 0) + 1
    summary = ", ".join(f"{count} {path}" for path, count in sorted(counts.items(), key=lambda one: -one[1]))
    head = (
        f"transformers {kept['transformers']}, torch {kept['torch']}: {len(kept['families'])} families; {summary}.\n\n"
    )
    return head + "".join(f"{row}\n" for row in rows)


def write_page(kept: dict[str, Any]) -> None:
    """Write the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(kept), page), encoding="utf-8")


def main() -> None:
    """Run the families that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="families by name, or KIND:NAME, separated by commas")
    parser.add_argument("--part", default="1/1", help="which part of how many")
    parser.add_argument("--seconds", type=float, default=120, help="most seconds a family")
    parser.add_argument("--out", type=Path, default=KEPT)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("wishbone").setLevel(logging.ERROR)
    only = set((chosen.only or "").split(",")) - {""}
    part, parts = map(int, chosen.part.split("/"))
    kept = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {"families": {}}
    kept |= {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    wanted = [one for one in families() if not only or one[0] in only or f"{one[1]}:{one[0]}" in only]
    for name, kind in wanted[part - 1 :: parts]:
        label = name if kind == "causal" else f"{name} (image-text)"
        kept["families"][label] = found = run_apart(name, kind, chosen.seconds)
        print(label, found, flush=True)
        chosen.out.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if chosen.out == KEPT:
        write_page(kept)
    crashed = sorted(name for name, found in kept["families"].items() if found["path"] == "crash")
    if crashed:
        raise SystemExit(f"{len(crashed)} families crash: {', '.join(crashed)}")


if __name__ == "__main__":
    main()
