"""What one run is: six sections of plain values, checked together before anything is loaded.

A preference pair is one prompt with two completions, of which one is preferred. A run says which model learns from
which pairs (`model`, `adapter`, `data`), what it minimizes (`preference`), how (`training`) and where the result goes
(`output`). Every field carries its own bounds, so `RunConfig.model_json_schema()` is the same contract in JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from wishbone.config.section import Conflict, Line, Section, refuse
from wishbone.errors import counted

LossName = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "dpop", "simpo", "cpo", "orpo", "rdpo",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_32bit",
    "lion_8bit", "adafactor", "adagrad", "rmsprop", "sgd",
]  # fmt: skip
Tracker = Literal[
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune",
    "swanlab", "tensorboard", "trackio", "wandb",
]  # fmt: skip

EMBEDDED_MODEL = "smollm2-135m-instruct"
DIVERGENCE_LOSSES = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"})
SORTED_LOSSES = frozenset({"aot", "aot_unpaired"})


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _listed_trackers(value: Any) -> Any:
    return value if value == "auto" else _listed(value)


class ModelConfig(Section):
    """The model that learns, which with its adapter off is also the reference."""

    name: Line = Field(description=f"{EMBEDDED_MODEL} (built in), a model id on the hub, a directory or a .gguf file.")
    revision: Line | None = Field(
        default=None, description="Branch, tag or commit of a model on the hub; null: its default."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format of the weights; auto: bfloat16 where the device computes in it, or float32.",
    )
    quantization: Literal["none", "nf4", "fp8", "int8"] = Field(
        default="none",
        description="Frozen weights in 4 bits (nf4, through bitsandbytes), in FP8 (fp8: RTX 40, L4, H100, later), in "
        "int8 after a rotation (int8: RTX 20, T4 and later, or a CPU), or as dtype says (none).",
    )
    reference: Line | None = Field(
        default=None,
        description="Another model as the reference, named as in name; null: this model as it is before training.",
    )
    sharding: Literal["auto", "none", "fsdp"] = Field(
        default="auto",
        description="Weights on several GPUs: divided (fsdp), whole on each (none), or divided where one GPU "
        "does not hold the run (auto).",
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the model.")


class AdapterConfig(Section):
    """What is trained: low-rank matrices added to the frozen linear layers (Hu et al. 2021), or every weight."""

    method: Literal["lora", "full"] = Field(default="lora", description="lora: low-rank adapters; full: every weight.")
    rank: int = Field(default=16, ge=1, le=16384, description="Rank of the adapter matrices.")
    alpha: float | None = Field(
        default=None, gt=0, description="Adapter output is scaled by alpha / rank; null: alpha = rank."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Probability that an adapter input is dropped in training."
    )
    target_modules: Literal["all-linear", "language-linear"] | Annotated[list[Line], Field(min_length=1)] = Field(
        default="all-linear",
        description="all-linear (every linear layer but the head, those of a vision tower among them), "
        "language-linear (those of the language model), or a list of module name endings.",
    )


class DataConfig(Section):
    """Where the preference pairs come from, and what happens to long and to unusable ones."""

    train: Line = Field(description="Pairs to learn from: a file, a directory, or a data set id on the hub.")
    eval: Line | None = Field(default=None, description="Pairs to evaluate on: a file, a directory, or a data set id.")
    split: Line = Field(default="train", description="Split of data.train to learn from.")
    eval_split: Line | None = Field(
        default=None, description="Split to evaluate on: of data.eval, or of data.train where data.eval is not set."
    )
    eval_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the training pairs held out to evaluate on."
    )
    max_length: int | None = Field(
        default=1024, ge=2, le=2**24, description="Longest prompt plus completion, in tokens; null: no limit."
    )
    truncation: Literal["keep_start", "keep_end"] = Field(
        default="keep_start", description="Which end of a sequence longer than max_length is kept."
    )
    invalid_rows: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="Rows that are not usable pairs: refuse (list them and end) or drop (count them and continue).",
    )
    template: Literal["auto", "chat", "none"] = Field(
        default="auto",
        description="Pairs of texts with a prompt: one user turn and one answer in the model's chat template (chat), "
        "trained as they are (none), or auto (chat where the model has a template and the texts hold none of its "
        "tokens).",
    )
    lost_text: Literal["refuse", "drop", "allow"] = Field(
        default="refuse",
        description="Rows of which the chat template loses text (tool calls, thoughts): refuse (list them and end), "
        "drop (count them and continue) or allow (train what remains of them).",
    )
    system_prompt: str | None = Field(
        default=None, min_length=1, description="System message for conversations that have none; null: none is added."
    )
    columns: dict[Line, Line | None] | None = Field(
        default=None,
        description="For the name of a column of a layout its name in the data; null in its place: it is not read.",
    )
    pairs: Literal["best_worst", "best_rest", "all"] = Field(
        default="best_worst",
        description="Pairs of a row with scored or ranked completions: the best with the worst, with every other, or "
        "every two.",
    )
    least_margin: float = Field(
        default=0.0,
        ge=0,
        description="Least difference of scores, or of ranks, within such a pair; equal ones are never a pair.",
    )

    @model_validator(mode="after")
    def _one_source_of_evaluation(self) -> Self:
        given = [name for name in ("eval", "eval_split") if getattr(self, name) is not None]
        if self.eval_fraction > 0 and given:
            text = (
                f"eval_fraction {self.eval_fraction:g} holds out training pairs, but {' and '.join(given)} names "
                f"other pairs to evaluate on; set eval_fraction to 0 or leave out {' and '.join(given)}"
            )
            refuse([Conflict(("eval_fraction", *given), text)])
        return self


class PreferenceConfig(Section):
    """What is minimized. Names and formulas: `wishbone.preference.losses`."""

    loss: Annotated[
        list[LossName],
        Field(min_length=1),
        BeforeValidator(_listed, json_schema_input_type=LossName | Annotated[list[LossName], Field(min_length=1)]),
    ] = Field(default=["sigmoid"], description="The loss, or several that are added up; sigmoid is DPO.")
    loss_weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="One weight per loss; null: every weight is 1."
    )
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull towards the reference; tau in IPO.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of preference labels taken to be wrong (robust, exo_pair, aot)."
    )
    f_divergence: Divergence = Field(
        default="reverse_kl", description="Divergence between policy and reference (f-DPO)."
    )
    f_alpha: float = Field(default=0.5, description="Alpha of alpha_divergence; 1 is reverse_kl.")
    ld_alpha: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight of the tokens beyond the shorter completion (LD-DPO); null: all count 1.",
    )
    use_weighting: bool = Field(
        default=False, description="Weight pairs by how likely the policy is to write them (WPO)."
    )
    discopop_tau: float = Field(default=0.05, gt=0, description="Temperature of discopop.")
    simpo_gamma: float = Field(default=0.5, ge=0, description="Target margin of simpo, in reward units.")
    dpop_lambda: float = Field(
        default=50.0, ge=0, description="Penalty of dpop on a chosen completion losing probability."
    )
    rdpo_alpha: float = Field(default=0.01, ge=0, description="Length penalty of rdpo, in reward units per token.")
    cpo_alpha: float = Field(
        default=1.0, ge=0, description="Weight of the log-likelihood of the chosen completion in cpo."
    )
    orpo_lambda: float = Field(default=0.1, ge=0, description="Weight of the odds-ratio term in orpo.")

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        conflicts = []
        names = ", ".join(self.loss)
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            text = (
                f"loss_weights has {counted(len(self.loss_weights), 'weight')} and loss has {len(self.loss)} "
                f"({names}); give one weight per loss, or leave loss_weights out"
            )
            conflicts.append(Conflict(("loss_weights", "loss"), text))
        if "exo_pair" in self.loss and self.label_smoothing == 0:
            text = "with label_smoothing 0 the loss exo_pair is infinite; set label_smoothing above 0, such as 1e-3"
            conflicts.append(Conflict(("label_smoothing", "loss"), text))
        unfit = [name for name in self.loss if name not in DIVERGENCE_LOSSES]
        if self.f_divergence != "reverse_kl" and unfit:
            text = (
                f"f_divergence {self.f_divergence} is not defined for {', '.join(unfit)}; use reverse_kl, or one of "
                f"the losses {', '.join(sorted(DIVERGENCE_LOSSES))}"
            )
            conflicts.append(Conflict(("f_divergence", "loss"), text))
        unfit = [name for name in self.loss if name in SORTED_LOSSES]
        if self.use_weighting and unfit:
            text = (
                f"use_weighting weights single pairs, but {', '.join(unfit)} compares a sorted batch; "
                "set use_weighting to false or choose another loss"
            )
            conflicts.append(Conflict(("use_weighting", "loss"), text))
        refuse(conflicts)
        return self


class TrainingConfig(Section):
    """How the loss is minimized, and how much memory a step may take."""

    learning_rate: float = Field(default=5e-6, gt=0, le=1, description="Peak learning rate, reached after the warm-up.")
    epochs: float = Field(default=1.0, gt=0, le=100_000, description="Passes over the training pairs.")
    max_steps: int | None = Field(
        default=None, ge=1, le=10**9, description="Optimizer steps; null: as many as epochs needs."
    )
    batch_size: int = Field(default=1, ge=1, le=65536, description="Pairs per device in one micro-step.")
    gradient_accumulation: int = Field(
        default=8, ge=1, le=65536, description="Micro-steps that make one optimizer step."
    )
    warmup_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises."
    )
    scheduler: Scheduler = Field(default="linear", description="How the learning rate changes after the warm-up.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Gradients are scaled down to this norm; 0: never.")
    optimizer: Optimizer = Field(
        default="adamw_torch", description="Optimizer; the 8-bit, paged and lion ones need a GPU."
    )
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="Seed of adapter weights, data order and dropout.")
    logging_steps: int = Field(default=1, ge=1, le=10**9, description="Optimizer steps between two lines of metrics.")
    eval_steps: int | None = Field(
        default=None, ge=1, le=10**9, description="Optimizer steps between two evaluations; null: once an epoch."
    )
    save_steps: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Optimizer steps between two checkpoints; null: one each epoch, and one each three minutes.",
    )
    token_budget: Literal["auto"] | Annotated[int, Field(ge=2, le=2**24)] = Field(
        default="auto", description="Most tokens in one row; changes memory and speed, never results."
    )
    activations: Literal["auto", "keep", "recompute", "offload"] = Field(
        default="auto",
        description="What happens to activations until the backward pass: keep, recompute, offload (recompute, layer "
        "inputs in host memory), or auto (keep what fits).",
    )
    guard: Literal["off", "report", "slow", "stop"] = Field(
        default="report",
        description="Watches held-out pairs and a few answers: report says when they go wrong, slow also halves the "
        "learning rate, stop also ends the run with the best weights.",
    )
    guard_steps: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Optimizer steps between two measurements of the guard; null: as 3 % of the run's time allows.",
    )
    reference_store: Line = Field(
        default="auto",
        description="Where reference log-probabilities are stored for later epochs and runs: auto (user's cache), off, "
        "or a file.",
    )


class OutputConfig(Section):
    """Where the run writes, and which trackers get its metrics."""

    dir: Line | None = Field(default=None, description="Run directory; null: runs/<name>-<date>-<time>.")
    report_to: Annotated[
        Literal["auto"] | list[Tracker],
        BeforeValidator(_listed_trackers, json_schema_input_type=Literal["auto"] | Tracker | list[Tracker]),
    ] = Field(
        default="auto",
        description="Experiment trackers that also get metrics and texts; auto: TensorBoard (files in the run "
        "directory) or trackio where one is installed.",
    )
    answers: int = Field(
        default=3,
        ge=0,
        le=50,
        description="Held-out prompts that are answered before and after training; 0: none.",
    )


class RunConfig(Section):
    """One training run. `model.name` and `data.train` are required, everything else has a default."""

    model: ModelConfig = Field(description="The model that learns.")
    adapter: AdapterConfig = Field(default=AdapterConfig(), description="What is trained.")
    data: DataConfig = Field(description="The preference pairs.")
    preference: PreferenceConfig = Field(default=PreferenceConfig(), description="What is minimized.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How the loss is minimized.")
    output: OutputConfig = Field(default=OutputConfig(), description="Where the result goes.")

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        data, conflicts = self.data, []
        if self.model.quantization != "none" and self.adapter.method == "full":
            text = (
                f"model.quantization {self.model.quantization} freezes the weights, but adapter.method full trains "
                "them; set adapter.method to lora, or model.quantization to none"
            )
            conflicts.append(Conflict(("model.quantization", "adapter.method"), text))
        if (
            self.training.eval_steps is not None
            and data.eval is None
            and data.eval_split is None
            and not data.eval_fraction
        ):
            text = (
                f"training.eval_steps {self.training.eval_steps} asks for evaluations, but there are no pairs to "
                "evaluate on; set data.eval, data.eval_split or data.eval_fraction, or leave out training.eval_steps"
            )
            fields = ("training.eval_steps", "data.eval", "data.eval_split", "data.eval_fraction")
            conflicts.append(Conflict(fields, text))
        refuse(conflicts)
        return self
