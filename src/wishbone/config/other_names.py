"""Settings, sections and values by the names that other trainers and people use."""

from __future__ import annotations

KEYS = {
    "accumulation_steps": "training.gradient_accumulation",
    "adapter_method": "adapter.method",
    "base_model": "model.name",
    "bf16": "model.dtype",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "eval_dataset": "data.eval",
    "dpo_beta": "preference.beta",
    "f_alpha_divergence_coef": "preference.f_alpha",
    "f_divergence_type": "preference.f_divergence",
    "finetuning_type": "adapter.method",
    "fp16": "model.dtype",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "gradient_checkpointing": "training.activations",
    "learning_rate_scheduler": "training.scheduler",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "loss_type": "preference.loss",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.scheduler",
    "lr_scheduler_type": "training.scheduler",
    "max_seq_length": "data.max_length",
    "micro_batch_size": "training.batch_size",
    "model_id": "model.name",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "optim": "training.optimizer",
    "output_dir": "output.dir",
    "pairs": "data.train",
    "per_device_train_batch_size": "training.batch_size",
    "pref_beta": "preference.beta",
    "pref_loss": "preference.loss",
    "quantization_bit": "model.quantization",
    "r": "adapter.rank",
    "rl_beta": "preference.beta",
    "sequence_len": "data.max_length",
    "train_dataset": "data.train",
    "truncation_mode": "data.truncation",
    "val_size": "data.eval_fraction",
    "adapter": "adapter.method",
    "data": "data.train",
    "model": "model.name",
    "output": "output.dir",
    "preference": "preference.loss",
}
"""Settings by the names that other trainers use, and by their section alone."""
SECTIONS = {
    **dict.fromkeys(("dataset", "datasets"), "data"),
    **dict.fromkeys(("lora", "peft", "peft_config"), "adapter"),
    **dict.fromkeys(("dpo", "loss", "objective"), "preference"),
    **dict.fromkeys(("optimizer", "optim", "train", "trainer", "training_args", "training_arguments"), "training"),
    **dict.fromkeys(("logging", "report", "run"), "output"),
}
"""Sections by the names that other trainers use."""
VALUES = {
    **dict.fromkeys(("adam", "adamw"), "adamw_torch"),
    "adamw_fused": "adamw_torch_fused",
    "lion": "lion_32bit",
    "paged_adamw": "paged_adamw_32bit",
    **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16", "half", "torch.float16"), "float16"),
    **dict.fromkeys(("fp32", "f32", "float", "full", "torch.float32"), "float32"),
    **dict.fromkeys(("4bit", "4_bit", "4", "int4", "bnb", "bnb_4bit", "fp4", "qlora"), "nf4"),
    **dict.fromkeys(("w8a8", "rotated_int8", "int8_rotated", "load_in_rotated_int8"), "int8"),
    "load_in_4bit": "nf4",
    "load_in_fp8": "fp8",
    **dict.fromkeys(("float8", "e4m3"), "fp8"),
    **dict.fromkeys(("checkpointing", "gradient_checkpointing"), "recompute"),
    "cosine_annealing": "cosine",
    "dpo": "sigmoid",
    "left": "keep_end",
    "right": "keep_start",
}
"""Values by the names that people use, where the spelling of another one is nearer."""
LLM_INT8 = frozenset(
    {"8bit", "8_bit", "8", "bnb_8bit", "bitsandbytes_8bit", "llm.int8", "llm.int8()", "llm_int8", "load_in_8bit"}
)
"""What people call bitsandbytes' 8 bits, which are another form than int8 here."""
NO_LOSS = {
    **dict.fromkeys(
        ("kto", "kto_pair"), "KTO learns from single answers; of the losses for pairs bco_pair is the nearest"
    ),
    **dict.fromkeys(("ppo", "grpo", "rloo"), "It learns from rewards, and pairs have none"),
}
"""Objectives that no pair has a loss of, and what to do."""
