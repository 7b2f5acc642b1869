"""What a person knows before a run: model, machine, data, and what went wrong last time.

`wishbone init` asks for it, flags are its fields with dashes in place of underscores, and its JSON Schema is the form
of the planner page. Rules (`wishbone.config.rules`) read it as facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from wishbone.config.document import show
from wishbone.config.explain import accepted, nearest
from wishbone.config.schema import EMBEDDED_MODEL
from wishbone.config.section import Conflict, Line, Section, refuse
from wishbone.config.written_numbers import number_meant
from wishbone.errors import RequestError

Symptom = Literal[
    "collapse", "lost_abilities", "repetition", "chosen_falling", "no_learning", "length_growth", "out_of_memory", "nan"
]
SYMPTOMS: tuple[Symptom, ...] = get_args(Symptom)
NO_GPU = "none"
Tokens = Annotated[int, Field(ge=1, le=2**24)]


class Situation(Section):
    """Answers of a person; all but the model and the data have a default."""

    model: Line = Field(description=f"{EMBEDDED_MODEL} (built in), a model id on the hub or a directory.")
    parameters_billion: float | None = Field(
        default=None, gt=0, le=10_000, description="Size of a model that is not known by name, in billions of weights."
    )
    gpu: Line = Field(
        default=NO_GPU, description="Name of the GPU, such as RTX 4090, or its memory, such as 24GB, or none."
    )
    gpu_memory_gib: float | None = Field(
        default=None, gt=0, le=4096, description="Memory of each GPU in GiB; null: that of the named GPU."
    )
    gpus: int = Field(default=1, ge=1, le=128, description="How many of these GPUs train at the same time.")
    method: Literal["lora", "full"] = Field(default="lora", description="lora: an adapter; full: every weight.")
    reference: Literal["none", "given"] = Field(
        default="none", description="none: the model as it is before training; given: another model."
    )
    reference_model: Line | None = Field(default=None, description="The other model, if reference is given.")
    data: Line = Field(description="Preference pairs: a file, a directory or a data set id on the hub.")
    pairs: int | None = Field(default=None, ge=1, le=10**12, description="How many pairs there are; null: unknown.")
    prompt_tokens: Tokens = Field(default=128, description="Median length of a prompt in tokens.")
    completion_tokens: Tokens = Field(default=256, description="Median length of a completion in tokens.")
    longest_tokens: Tokens = Field(default=1024, description="Longest prompt plus completion in tokens.")
    noisy_labels: bool = Field(default=False, description="Some pairs have the worse completion as the chosen one.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Learning rate to use, or that of the run with the symptoms; null: recommended.",
    )
    symptoms: list[Symptom] = Field(default=[], description="What went wrong in an earlier run.")
    target: Literal["wishbone", "trl", "unsloth"] = Field(
        default="wishbone", description="Trainer for which the file is written."
    )
    output: Line | None = Field(default=None, description="File to write; null: standard output.")

    @model_validator(mode="after")
    def _answers_agree(self) -> Self:
        conflicts = []
        if self.reference == "given" and self.reference_model is None:
            text = "given needs the other model: name it with --reference-model, or leave --reference out"
            conflicts.append(Conflict(("reference", "reference_model"), text))
        if self.reference == "none" and self.reference_model is not None:
            text = (
                f"{show(self.reference_model)} is not used with --reference none; say --reference given or leave it out"
            )
            conflicts.append(Conflict(("reference_model", "reference"), text))
        if self.longest_tokens < self.prompt_tokens + self.completion_tokens:
            text = (
                f"{self.longest_tokens} is shorter than a median pair ({self.prompt_tokens} + "
                f"{self.completion_tokens}); give the longest prompt plus completion"
            )
            conflicts.append(Conflict(("longest_tokens", "prompt_tokens", "completion_tokens"), text))
        if self.gpu.lower() == NO_GPU and self.gpu_memory_gib is not None:
            text = f"{self.gpu_memory_gib:g} needs a GPU, but none is named; name it with --gpu"
            conflicts.append(Conflict(("gpu_memory_gib", "gpu"), text))
        if self.gpu.lower() == NO_GPU and self.gpus > 1:
            text = f"{self.gpus} GPUs, but none is named; name it with --gpu"
            conflicts.append(Conflict(("gpus", "gpu"), text))
        if len(set(self.symptoms)) < len(self.symptoms):
            twice = sorted({symptom for symptom in self.symptoms if self.symptoms.count(symptom) > 1})
            conflicts.append(Conflict(("symptoms",), f"{', '.join(twice)} given twice; once is enough"))
        refuse(conflicts)
        return self


def flag(field: str) -> str:
    """The flag of a field. That of `symptoms` may be repeated, each with one of them."""
    return "--symptom" if field == "symptoms" else f"--{field.replace('_', '-')}"


def read_situation(answers: Mapping[str, Any]) -> Situation:
    """Check answers, by field name.

    Raises:
        RequestError: with every problem, each beginning with the flag that it is about.
    """
    values = dict(answers)
    problems: dict[str, None] = {}
    broken: set[str] = set()
    placeholders = {name: "placeholder" for name, field in Situation.model_fields.items() if field.is_required()}
    while True:
        try:
            situation = Situation.model_validate(values)
        except ValidationError as error:
            found, fields = _explained(error, broken)
            problems |= dict.fromkeys(found)
            broken |= fields
            values = {name: value for name, value in values.items() if name not in broken}
            values |= {name: text for name, text in placeholders.items() if name in broken}
            continue
        if problems:
            raise RequestError(list(problems))
        return situation


def _explained(error: ValidationError, broken: set[str]) -> tuple[list[str], set[str]]:
    """Sentences for the errors of single fields or, if there are none, for conflicts between fields."""
    items = error.errors(include_url=False)
    single = [item for item in items if item["type"] != "conflict"]
    if single:
        return [_sentence(item) for item in single], {str(item["loc"][0]) for item in single}
    conflicts = [conflict for item in items for conflict in item["ctx"]["conflicts"]]
    sound = [conflict for conflict in conflicts if broken.isdisjoint(conflict.fields)]
    fields = {name for conflict in conflicts for name in conflict.fields}
    return [f"{flag(conflict.fields[0])}: {conflict.text}" for conflict in sound], fields


def _sentence(item: Any) -> str:
    name, value = str(item["loc"][0]), item["input"]
    if item["type"] == "extra_forbidden":
        close = nearest(name, Situation.model_fields)
        return f"{flag(name)}: no such option" + (f"; did you mean {flag(close)}?" if close else "")
    schema = Situation.model_json_schema()["properties"][name]
    if item["type"] == "missing":
        return f"{flag(name)}: required, but missing. {schema['description']}"
    choices = SYMPTOMS if name == "symptoms" else [str(choice) for choice in schema.get("enum", ())]
    close = nearest(value, choices) if isinstance(value, str) else None
    kind = schema["items"] if name == "symptoms" and isinstance(value, str) else schema
    kinds = {branch.get("type") for branch in schema.get("anyOf", [schema])}
    numeric = isinstance(value, str) and kinds & {"integer", "number"}
    number = number_meant(value, whole="integer" in kinds) if numeric else None
    return (
        f"{flag(name)}: {show(value)} is not accepted. "
        + (f"Did you mean {close}? " if close else "")
        + (f"Write {number}. " if number else "")
        + (f"It takes {accepted(kind)}")
    )
