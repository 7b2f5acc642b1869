"""The code of Unsloth's DPO notebook (Zephyr), with another import line, a small model and small data.

Two scripts make the same calls in the same order as the notebooks do: the one of 2025 (`DPOConfig`, settings given to
the trainer) and the one of 2024 (`TrainingArguments`, mixed precision by `is_bfloat16_supported`; transformers 5 knows
`warmup_ratio` as `warmup_steps` below 1). Each runs in a process of its own, on the CPU.
"""

from __future__ import annotations

import json
import os
import runpy
from functools import partial
from pathlib import Path

import pytest
from forked import Forked
from tiny import tiny_model, tiny_tokenizer

pytest.importorskip("bitsandbytes")

BEGIN = """
# One must patch the DPO Trainer first!
from wishbone import PatchDPOTrainer
PatchDPOTrainer()

from wishbone import FastLanguageModel, is_bfloat16_supported
import torch
max_seq_length = 4096
dtype = None
load_in_4bit = {four_bit}

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name = "{model}",
    max_seq_length = max_seq_length,
    dtype = dtype,
    load_in_4bit = load_in_4bit,
)

from datasets import load_dataset
raw_datasets = load_dataset("json", data_files = {{"train": "{data}", "test": "{data}"}})

def apply_chat_template(example, tokenizer):
    prompt, answer, other = example["chosen"][0], example["chosen"][1], example["rejected"][1]
    return {{
        "text_prompt": tokenizer.apply_chat_template([prompt], tokenize = False, add_generation_prompt = True),
        "text_chosen": answer["content"] + tokenizer.eos_token,
        "text_rejected": other["content"] + tokenizer.eos_token,
    }}

raw_datasets = raw_datasets.map(
    apply_chat_template,
    fn_kwargs = {{"tokenizer": tokenizer}},
    num_proc = 2,
    remove_columns = list(raw_datasets["train"].features),
    desc = "Formatting comparisons with prompt template",
)
for split in ["train", "test"]:
    raw_datasets[split] = raw_datasets[split].rename_columns(
        {{"text_prompt": "prompt", "text_chosen": "chosen", "text_rejected": "rejected"}}
    )

model = FastLanguageModel.get_peft_model(
    model,
    r = 64,
    target_modules = ["q_proj", "k_proj", "v_proj", "o_proj",
                      "gate_proj", "up_proj", "down_proj",],
    lora_alpha = 64,
    lora_dropout = 0,
    bias = "none",
    use_gradient_checkpointing = "unsloth",
    random_state = 3407,
    use_rslora = False,
    loftq_config = None,
)

# One must patch the DPO Trainer first!
from wishbone import PatchDPOTrainer
PatchDPOTrainer()
"""
TRAIN_2025 = """
from transformers import TrainingArguments
from trl import DPOTrainer, DPOConfig
dpo_trainer = DPOTrainer(
    model = model,
    ref_model = None,
    args = DPOConfig(
        per_device_train_batch_size = 2,
        gradient_accumulation_steps = 4,
        warmup_ratio = 0.1,
        num_train_epochs = 3,
        learning_rate = 1e-3,
        logging_steps = 1,
        optim = "adamw_8bit",
        weight_decay = 0.0,
        lr_scheduler_type = "linear",
        seed = 42,
        output_dir = "outputs",
        report_to = "none",
    ),
    beta = 0.1,
    train_dataset = raw_datasets["train"],
    # eval_dataset = raw_datasets["test"],
    tokenizer = tokenizer,
    max_length = 1024,
    max_prompt_length = 512,
)
"""
TRAIN_2024 = """
from transformers import TrainingArguments
from trl import DPOTrainer
dpo_trainer = DPOTrainer(
    model = model,
    ref_model = None,
    args = TrainingArguments(
        per_device_train_batch_size = 2,
        gradient_accumulation_steps = 4,
        warmup_steps = 0.1,
        num_train_epochs = 3,
        learning_rate = 1e-3,
        fp16 = not is_bfloat16_supported(),
        bf16 = is_bfloat16_supported(),
        logging_steps = 1,
        optim = "adamw_8bit",
        weight_decay = 0.0,
        lr_scheduler_type = "linear",
        seed = 42,
        output_dir = "outputs",
    ),
    beta = 0.1,
    train_dataset = raw_datasets["train"],
    eval_dataset = raw_datasets["test"],
    tokenizer = tokenizer,
    max_length = 1024,
    max_prompt_length = 512,
)
"""
END = """
dpo_trainer.train()

FastLanguageModel.for_inference(model)
inputs = tokenizer("What is 1?", return_tensors = "pt").to(model.device)
outputs = model.generate(**inputs, max_new_tokens = 8, use_cache = True)
model.save_pretrained("lora_model")
tokenizer.save_pretrained("lora_model")
model.save_pretrained_merged("merged", tokenizer, save_method = "merged_16bit")
"""
REPORT = """
import json
print("RESULT " + json.dumps({
    "trainer": type(dpo_trainer).__module__,
    "form": dpo_trainer.preference_step.policy.form,
    "beta": dpo_trainer.args.beta,
    "max_length": dpo_trainer.args.max_length,
    "max_prompt_length": dpo_trainer.args.max_prompt_length,
    "steps": dpo_trainer.state.global_step,
    "losses": [float(line["loss"]) for line in dpo_trainer.state.log_history if "loss" in line],
    "rates": [line["learning_rate"] for line in dpo_trainer.state.log_history if "learning_rate" in line],
    "optimizer": type(getattr(dpo_trainer.optimizer, "optimizer", dpo_trainer.optimizer)).__module__,
    "generated": outputs.shape[1] - inputs["input_ids"].shape[1],
}))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("notebook")
    tokenizer = tiny_tokenizer()
    tiny_model("mistral", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(
        root / "model"
    )
    tokenizer.save_pretrained(root / "model")
    with (root / "pairs.json").open("w") as file:
        for n in range(16):
            question = {"role": "user", "content": f"What is {n}?"}
            answers = ({"role": "assistant", "content": text} for text in (f"It is {n}.", "No idea."))
            chosen, rejected = ([question, answer] for answer in answers)
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    return root


def run(root: Path, directory: Path, train: str, four_bit: bool) -> tuple[dict[str, object], str]:
    begin = BEGIN.format(model=root / "model", data=root / "pairs.json", four_bit=four_bit)
    directory.mkdir(exist_ok=True)
    (directory / "notebook.py").write_text(begin + train + END + REPORT)
    script = partial(runpy.run_path, str(directory / "notebook.py"), run_name="__main__")
    child = Forked(script, directory, os.environ | {"WANDB_MODE": "disabled"})
    out, error = child.communicate()
    assert child.returncode == 0, error[-4000:]
    result = next(line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(result.removeprefix("RESULT ")), error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "four_bit"),
    [
        (TRAIN_2025, True),
        pytest.param(TRAIN_2025, False, marks=pytest.mark.long),
        pytest.param(TRAIN_2024, True, marks=pytest.mark.long),
    ],
    ids=["2025 in 4 bits", "2025 in 16 bits", "2024 in 4 bits"],
)
def test_the_notebook_runs_with_another_import_line(workplace: Path, tmp_path: Path, train: str, four_bit: bool):
    result, said = run(workplace, tmp_path, train, four_bit)
    assert result["trainer"] == "wishbone.trainer.trainer"
    assert result["form"] == "shared_prefix"
    assert (result["beta"], result["max_length"], result["max_prompt_length"]) == (0.1, 1024, 512)
    assert result["steps"] == 6
    losses = result["losses"]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < 0.6
    assert result["rates"][0] == 0.0  # one step of warm-up: a tenth of six, rounded up
    assert max(result["rates"]) == result["rates"][1] == 1e-3
    assert result["optimizer"].startswith("bitsandbytes.")
    assert 0 < result["generated"] <= 8
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "lora_model" / "adapter_model.safetensors").is_file()
    assert "TRL's own path" not in said
    assert "do nothing here" not in said
