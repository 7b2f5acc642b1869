"""Write the generated parts of docs/configuration.md and docs/losses.md.

    python scripts/document_configuration.py [--check]

A page is written by hand, except for the text between `<!-- generated: NAME -->` and `<!-- end -->`. That text comes
from the schema of `RunConfig`, from the docstrings of the losses, and from running both. With `--check` nothing is
written, and the exit status is 1 if a page is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch

from wishbone.config.explain import accepted, sections
from wishbone.config.load import parse_config
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.preference import (
    COUPLED,
    F_DIVERGENCE_LOSSES,
    LOSSES,
    REFERENCE_FREE,
    LossParameters,
    PairScores,
    divergence,
    reference_based,
    reference_free,
    scores,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

WRONG_CONFIGURATION = """\
model:
  name: smollm2-135m-instruct
  dtyp: float32
data:
  train: pairs.jsonl
  max_length: "1024"
preference:
  loss: [sigmoid, sft]
  loss_weights: [1.0]
  beta: 0
training:
  lr: 1e-5
  eval_steps: 10
"""


def fields() -> Iterator[str]:
    """A table of the fields of each section of a configuration."""
    for name, properties in sections().items():
        yield f"### {name}\n"
        yield f"{RunConfig.model_fields[name].description}\n"
        yield "| Key | Accepts | Default | Meaning |\n|---|---|---|---|"
        for key, schema in properties.items():
            default = f"`{_yaml(schema['default'])}`" if "default" in schema else "required"
            yield f"| `{key}` | {_cell(accepted(schema))} | {default} | {_cell(schema['description'])} |"
        yield ""


def problems() -> Iterator[str]:
    """A configuration with many errors, and the message that it gets."""
    yield f"```yaml\n{WRONG_CONFIGURATION}```\n"
    try:
        parse_config(WRONG_CONFIGURATION)
    except RequestError as error:
        yield f"```text\n{error}\n```"


def overview() -> Iterator[str]:
    """A table of all losses."""
    yield "| Loss | What it does | Reads from `preference` | Reference | `f_divergence` |\n|---|---|---|---|---|"
    for name, loss in LOSSES.items():
        purpose = _cell(_teaching(loss).partition("\n")[0])
        read = ", ".join(f"`{parameter}`" for parameter in _parameters_read(name)) or "nothing"
        reference = "no" if name in REFERENCE_FREE or name == "sft" else "yes"
        divergences = "any" if name in F_DIVERGENCE_LOSSES else "reverse_kl"
        coupled = " Couples the pairs of a batch." if name in COUPLED else ""
        yield f"| [`{name}`](#{name}) | {purpose}{coupled} | {read} | {reference} | {divergences} |"


def with_reference() -> Iterator[str]:
    """The equations of the losses that compare with a reference."""
    yield from _equations(reference_based)


def without_reference() -> Iterator[str]:
    """The equations of the losses of the policy alone."""
    yield from _equations(reference_free)


def divergences() -> Iterator[str]:
    """The f-divergences."""
    yield _teaching(divergence)


def token_and_pair_weights() -> Iterator[str]:
    """The two methods that weight tokens or pairs."""
    yield f"### LD-DPO: `ld_alpha`\n\n{_teaching(scores.ld_weights)}\n"
    yield f"### WPO: `use_weighting`\n\n{_teaching(scores.wpo_weight)}"


PARTS: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "configuration.md": {part.__name__: part for part in (fields, problems)},
    "losses.md": {
        part.__name__: part
        for part in (overview, with_reference, without_reference, divergences, token_and_pair_weights)
    },
}


def render(page: str, text: str) -> str:
    """Return the text of a page with its generated parts written again.

    Raises:
        KeyError: the text has a part that this script does not generate.
        ValueError: the text lacks a part that this script generates.
    """
    parts = PARTS[page]
    if missing := parts.keys() - {match[2] for match in PART.finditer(text)}:
        raise ValueError(f"{page} has no place for {', '.join(sorted(missing))}")
    return PART.sub(lambda match: match[1] + "\n".join(parts[match[2]]()).strip("\n") + "\n" + match[3], text)


def main(arguments: list[str]) -> int:
    """Write the pages, or only check them, and return the exit status."""
    stale = []
    for page in PARTS:
        text = (DOCS / page).read_text(encoding="utf-8")
        if (made := render(page, text)) != text:
            stale.append(page)
            if "--check" not in arguments:
                (DOCS / page).write_text(made, encoding="utf-8")
    for page in stale:
        print(f"docs/{page} {'is stale: run this script' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


def _equations(module: ModuleType) -> Iterator[str]:
    yield f"{_teaching(module)}\n"
    for name, loss in LOSSES.items():
        if inspect.getmodule(loss) is module:
            yield f"### {name}\n\n{_teaching(loss)}\n"


def _teaching(thing: Any) -> str:
    """A docstring without its lists of arguments, values and errors; references to papers become links."""
    prose = re.split(r"\n\n(?:Args|Returns|Raises):\n", inspect.getdoc(thing) or "")[0]
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", prose)


def _parameters_read(name: str) -> list[str]:
    """The hyperparameters that a loss reads when it is called, in the order of their definition."""
    read: set[str] = set()

    class Watched:
        def __getattr__(self, parameter: str) -> Any:
            read.add(parameter)
            return getattr(LossParameters(label_smoothing=0.1), parameter)

    some = dict.fromkeys(PairScores.__dataclass_fields__.keys() - {"weights"}, -torch.ones(2))
    LOSSES[name](PairScores(**some), cast(LossParameters, Watched()))
    return [parameter for parameter in LossParameters.__dataclass_fields__ if parameter in read]


def _yaml(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return re.sub(r"e-0(\d)", r"e-\1", str(value))


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table and is not taken for HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
