"""Options that TRL or transformers removed or renamed, and what to use instead.

Scripts and examples on the web still have the old names. This table is read only for options that the installed
libraries do not have.
"""

from __future__ import annotations

SUCCESSORS = {
    # TRL's DPOConfig and DPOTrainer
    "max_completion_length": "max_length limits prompt and completion together, and max_prompt_length the prompt",
    "max_target_length": "max_length limits prompt and completion together, and max_prompt_length the prompt",
    "rpo_alpha": "loss_type=['sigmoid', 'sft'] with loss_weights=[1.0, rpo_alpha] adds the same term",
    "reference_free": "choose a loss without reference: loss_type 'simpo', 'cpo' or 'orpo'",
    "generate_during_eval": "`wishbone compare` or a callback shows answers",
    "use_logits_to_keep": "logits of prompts are never computed; leave it out",
    "use_num_logits_to_keep": "logits of prompts are never computed; leave it out",
    "use_liger_loss": "logits of whole rows are never computed; leave it out",
    "label_pad_token_id": "labels are not padded any more; leave it out",
    "padding_value": "processing_class.pad_token decides; leave it out",
    "is_encoder_decoder": "only decoder models are trained; leave it out",
    "model_adapter_name": "the active adapter is trained: call model.set_adapter",
    "ref_adapter_name": "the reference is a copy of the active adapter at the start; leave it out, or give a ref_model",
    "force_use_ref_model": "a ref_model that is given is used, with an adapter too; leave it out",
    "ref_model_init_kwargs": "load the reference yourself and give it as ref_model",
    "base_model_attribute_name": "it is found by itself; leave it out",
    "tools": "give them in the column tools of the data, which may be the same in every row",
    "tokenizer": "give the tokenizer to DPOTrainer, as processing_class",
    **dict.fromkeys(
        ("model", "ref_model", "train_dataset", "eval_dataset", "processing_class", "peft_config", "callbacks"),
        "give it to DPOTrainer",
    ),
    "dataset_text_field": "preference data has the columns prompt, chosen and rejected; leave it out",
    **dict.fromkeys(("packing", "eval_packing", "packing_strategy"), "rows are packed in any case; leave it out"),
    **dict.fromkeys(("dataset_kwargs", "dataset_batch_size"), "it belongs to SFTConfig; leave it out"),
    **dict.fromkeys(
        ("completion_only_loss", "assistant_only_loss"), "only completions are trained in any case; leave it out"
    ),
    **dict.fromkeys(("max_seq_length", "seq_length"), "it is called max_length"),
    **dict.fromkeys(("gamma_beta_ratio", "gamma"), "it is called simpo_gamma, in the units of the reward"),
    **dict.fromkeys(("epochs", "num_epochs"), "it is called num_train_epochs"),
    "eos_token": "set tokenizer.eos_token, and give the tokenizer to DPOTrainer as processing_class",
    "chat_template_path": "set tokenizer.chat_template, and give the tokenizer to DPOTrainer as processing_class",
    "shuffle_dataset": "pairs are shuffled in any case, by seed; leave it out",
    "alpha": "AlphaPO's reward is not trained here; loss_type='simpo' is it with alpha=0",
    "center_rewards_coefficient": "it belongs to RewardConfig; leave it out",
    **dict.fromkeys(
        (
            "max_new_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "generation_kwargs",
            "use_vllm",
        ),
        "pairs are trained as they are and nothing is generated; leave it out",
    ),
    "lr": "it is called learning_rate",
    "batch_size": "it is called per_device_train_batch_size",
    # TRL's ModelConfig, whose options stand beside those of DPOConfig in its scripts
    **dict.fromkeys(
        ("torch_dtype", "dtype", "attn_implementation", "model_revision"),
        "give it to from_pretrained, or in model_init_kwargs where the model is given by its name",
    ),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant"),
        "give from_pretrained a BitsAndBytesConfig",
    ),
    **dict.fromkeys(
        (
            "use_peft",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_parameters",
            "lora_modules_to_save",
            "lora_task_type",
            "use_rslora",
            "use_dora",
        ),
        "give DPOTrainer a LoraConfig as peft_config",
    ),
    "model_name_or_path": "give DPOTrainer the name, as model",
    # TRL's ScriptArguments
    **dict.fromkeys(
        ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming"),
        "load the data (datasets.load_dataset, or wishbone.data.source.load_pairs) and give DPOTrainer train_dataset",
    ),
    "desirable_weight": "it belongs to KTO, which is not trained here",
    "undesirable_weight": "it belongs to KTO, which is not trained here",
    # transformers' TrainingArguments
    "evaluate_during_training": "use eval_strategy='steps'",
    "use_legacy_prediction_loop": "leave it out",
    "group_by_length": "rows are packed by length in any case; leave it out, or give a column of lengths and use "
    "train_sampling_strategy='group_by_length' with remove_unused_columns=False",
    "train_sampling_strategy": "use group_by_length=True with this version of transformers",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "evaluation_strategy": "it is called eval_strategy",
    "overwrite_output_dir": "checkpoints are never overwritten; name another output_dir, or leave it out",
    "per_gpu_train_batch_size": "it is called per_device_train_batch_size",
    "per_gpu_eval_batch_size": "it is called per_device_eval_batch_size",
    "no_cuda": "it is called use_cpu",
    "use_mps_device": "the device is found by itself; leave it out",
    "fp16_backend": "fp16=True is enough",
    "fp16_opt_level": "fp16=True is enough",
    "half_precision_backend": "fp16=True or bf16=True is enough",
    "jit_mode_eval": "leave it out",
    "use_ipex": "leave it out",
    "xpu_backend": "it is called ddp_backend",
    "tpu_num_cores": "leave it out",
    "tpu_metrics_debug": "leave it out",
    "past_index": "leave it out",
    "ray_scope": "leave it out",
    "mp_parameters": "leave it out",
    "include_inputs_for_metrics": "use include_for_metrics=['inputs']",
    "include_tokens_per_second": "use include_num_input_tokens_seen",
    "dispatch_batches": "use accelerator_config={'dispatch_batches': ...}",
    "split_batches": "use accelerator_config={'split_batches': ...}",
    "fsdp_min_num_params": "use fsdp_config={'min_num_params': ...}",
    "fsdp_transformer_layer_cls_to_wrap": "use fsdp_config={'transformer_layer_cls_to_wrap': ...}",
    "sharded_ddp": "it is called fsdp",
    "push_to_hub_model_id": "it is called hub_model_id",
    "push_to_hub_organization": "use hub_model_id='organization/name'",
    "push_to_hub_token": "it is called hub_token",
    "save_safetensors": "checkpoints are always safetensors; leave it out",
    "torchdynamo": "it is called torch_compile_backend",
    "adafactor": "use optim='adafactor'",
    "predict_with_generate": "`wishbone compare` or a callback shows answers",
    "gradient_checkpointing": "it is called activation_checkpointing",
    "gradient_checkpointing_kwargs": "it is called activation_checkpointing_kwargs",
    "activation_checkpointing": "it is called gradient_checkpointing in this version of transformers",
    "activation_checkpointing_kwargs": "it is called gradient_checkpointing_kwargs in this version of transformers",
}
"""What replaces an option, by its former name."""

FORMER_LOSSES = {
    "kto_pair": "TRL removed it; bco_pair is the nearest",
    "aot_pair": "it is called aot",
    "dpo": "it is called sigmoid",
}
"""Values of `loss_type` that TRL removed or renamed, and what to choose instead."""

FORMER_OPTIMIZERS = {
    "adamw_hf": "it is called adamw_torch",
    "adamw_apex_fused": "it is called adamw_torch_fused",
}
"""The same for `optim` of transformers."""

SETTINGS = {
    **dict.fromkeys(("rl", "stage"), "preference optimization is all that is done; leave it out"),
    **dict.fromkeys(
        ("do_train", "do_eval"), "`wishbone train` trains, and evaluates where pairs are held out; leave it out"
    ),
    "evaluation_strategy": "training.eval_steps says how often",
    "eval_strategy": "training.eval_steps says how often",
    "save_strategy": "training.save_steps says how often",
    "group_by_length": "rows are packed by length in any case; leave it out",
    "rpo_alpha": "preference.loss: [sigmoid, sft] with preference.loss_weights: [1.0, rpo_alpha] adds the same term",
    "reference_free": "preference.loss: simpo, cpo or orpo needs no reference",
    "max_completion_length": "data.max_length limits prompt and completion together",
    "max_target_length": "data.max_length limits prompt and completion together",
    "max_prompt_length": "data.max_length limits prompt and completion together",
    "max_seq_length": "did you mean data.max_length?",
    "tokenizer": "the tokenizer is that of model.name; leave it out",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "report_to": "did you mean output.report_to?",
    "no_cuda": "CUDA_VISIBLE_DEVICES= in the environment hides the GPUs",
    "use_cpu": "CUDA_VISIBLE_DEVICES= in the environment hides the GPUs",
    "ref_model": "did you mean model.reference?",
    "warmup_steps": "training.warmup_ratio is the share of all steps",
    "tools": "give them in the column tools of the data",
    "gamma_beta_ratio": "did you mean preference.simpo_gamma, in the units of the reward?",
    **dict.fromkeys(("path", "dataset_name"), "did you mean data.train?"),
    **dict.fromkeys(("val_set_size", "test_size"), "did you mean data.eval_fraction?"),
    **dict.fromkeys(("shuffle", "shuffle_dataset"), "pairs are shuffled in any case, by training.seed; leave it out"),
    **dict.fromkeys(("num_proc", "dataset_num_proc"), "all cores are used in any case; leave it out"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), "did you mean model.quantization?"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "`wishbone push RUN OWNER/NAME` publishes a run"),
    **dict.fromkeys(("run_name", "overwrite_output_dir"), "output.dir names the run; a run is never overwritten"),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model"), "training.guard: stop ends a run with the best weights"
    ),
    **dict.fromkeys(
        ("sync_ref_model", "bias", "use_dora", "use_rslora", "modules_to_save", "init_lora_weights", "peft_config"),
        "only DPOTrainer in a script has it; leave it out",
    ),
}
"""What to write in a YAML file in place of an option of TRL or transformers."""


def successor(name: str) -> str | None:
    """Return what replaces a former option of DPOConfig or DPOTrainer, or None if there never was one."""
    return SUCCESSORS.get(name)
