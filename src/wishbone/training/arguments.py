"""`DPOConfig`: TRL's training arguments and the few that Wishbone adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DPOConfig as TRLDPOConfig

from wishbone.errors import RequestError


@dataclass
class DPOConfig(TRLDPOConfig):  # type: ignore[misc]
    """All of TRL's `DPOConfig`, with further losses and the engine's one setting.

    `loss_type` also takes `dpop`, `rdpo`, `simpo`, `cpo` and `orpo`.
    """

    token_budget: int | str = field(
        default="auto", metadata={"help": "Most tokens in one row, or 'auto'. Changes memory and speed, never results."}
    )
    activations: str = field(
        default="auto",
        metadata={
            "help": "With gradient_checkpointing: 'auto' recomputes only the rows whose activations do not fit, "
            "'recompute' all of them. The gradients are the same.",
            "choices": ["auto", "recompute"],
        },
    )
    simpo_gamma: float = field(default=0.5, metadata={"help": "Target reward margin of the `simpo` loss."})
    dpop_lambda: float = field(default=50.0, metadata={"help": "Weight of the penalty of the `dpop` loss."})
    rdpo_alpha: float = field(default=0.01, metadata={"help": "Price of a completion token in the `rdpo` loss."})
    cpo_alpha: float = field(default=1.0, metadata={"help": "Weight of the likelihood term of the `cpo` loss."})
    orpo_lambda: float = field(default=0.1, metadata={"help": "Weight of the odds ratio term of the `orpo` loss."})

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if self.activations not in ("auto", "recompute"):
            problems.append(f"activations {self.activations!r} is not known: choose 'auto' or 'recompute'")
        if self.token_budget != "auto" and not (isinstance(self.token_budget, int) and self.token_budget > 1):
            problems.append(f"token_budget {self.token_budget!r} must be 'auto' or a number of tokens above 1")
        if problems:
            raise RequestError(problems)

    @classmethod
    def from_trl(cls, config: TRLDPOConfig) -> DPOConfig:
        """Return `config` as this class; what TRL resolved stays resolved."""
        own = object.__new__(cls)
        own.__dict__.update(config.__dict__)
        return own
