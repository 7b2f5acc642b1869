"""The model card of a run: what it is, how it was made, what it does on held-out pairs, how to load and repeat it.

What a run's files say is not trusted: in the text it stands as code, without line breaks, and the metadata are written
as YAML by huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from wishbone.config.schema import RunConfig
from wishbone.model.hub import TIMEOUT_SECONDS
from wishbone.paths import user_path
from wishbone.report.outcome import outcome
from wishbone.result.base_name import BaseName
from wishbone.result.finished_run import FinishedRun
from wishbone.result.vllm import adapter_served

PICTURE, SETTINGS = "curves.svg", "wishbone.yaml"


def model_card(
    run: FinishedRun, repository: str, base: BaseName, *, merged: bool, licence: str | None, picture: bool
) -> ModelCard:
    """Return the card of a run.

    Args:
        run: the run.
        repository: "owner/name" on the hub.
        base: the base model.
        merged: whether the repository holds the whole model, and not the adapter alone.
        licence: of the result, as the hub names licences; None says nothing.
        picture: whether the curves lie beside the card.
    """
    data = run.config.data
    on_hub = _is_on_hub(data.train)
    about = ModelCardData(
        base_model=base.hub_id,
        datasets=[data.train.partition(":")[0]] if on_hub else None,
        library_name="transformers" if merged else "peft",
        license=licence,
        pipeline_tag="text-generation",
        tags=["wishbone", "dpo", "preference-optimization", *([] if merged else ["lora"])],
    )
    text = "\n".join(_sections(run, repository, base, merged=merged, picture=picture))
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")


def data_licence(name: str) -> str:
    """Return what the hub says of the licence of a data set, in words."""
    if not _is_on_hub(name):
        return "a local file, whose licence is not known here"
    try:
        card = HfApi().dataset_info(name.partition(":")[0], timeout=TIMEOUT_SECONDS).card_data
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled):
        return "licence not known: the hub could not be asked"
    licence = getattr(card, "license", None)
    return f"licence {code(str(licence))}" if licence else "its page names no licence"


def code(text: Any) -> str:
    """A text as code in Markdown, on one line, whatever it holds."""
    shown = "".join(letter if letter.isprintable() else " " for letter in str(text)).replace("`", "'").strip()
    return f"`{shown[:200] or '-'}`"


def _is_on_hub(name: str) -> bool:
    return not user_path(name).exists() and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def shown_name(name: str) -> str:
    """A name of a data set or a model; of a path on this machine only its last part."""
    return name if _is_on_hub(name) else Path(name).name or name


def _sections(run: FinishedRun, repository: str, base: BaseName, *, merged: bool, picture: bool) -> Iterator[str]:
    config, summary = run.config, run.record.summary
    name = repository.rpartition("/")[2]
    what = (
        "All weights"
        if not run.is_adapter
        else "The adapter, merged into the base model"
        if merged
        else "A LoRA adapter"
    )
    based = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})" if base.hub_id else code(base.name)
    yield f"# {name}\n"
    yield f"{what} of {based}, trained on preference pairs with Wishbone.\n"
    if base.note:
        yield f"Note: {base.note}.\n"
    yield "## How it was made\n"
    yield "| | |\n|---|---|"
    for label, value in _facts(config, summary):
        yield f"| {label} | {value.replace('|', chr(92) + '|')} |"
    yield ""
    measured = outcome(run.record)
    if measured.changes:
        first, second = measured.times
        yield f"## Measured\n\n{measured.caption}\n"
        yield f"| Metric | {first} | {second} | Change |\n|---|--:|--:|--:|"
        for change in measured.changes:
            yield f"| {change.label} | {' | '.join(change.shown())} |"
        yield ""
    if picture:
        yield f"![Loss and reward margin over the steps]({PICTURE})\n"
    yield "## Use it\n"
    yield from _use(repository, base, config, merged=merged)
    yield "## Repeat it\n"
    yield f"With [`{SETTINGS}`]({SETTINGS}), after the names of data and model are set to where they are:\n"
    yield f"```sh\nwishbone train {SETTINGS}\n```\n"
    versions = run.record.environment.get("libraries")
    if isinstance(versions, dict):
        used = {"wishbone": run.record.environment.get("wishbone"), **versions}
        yield "Versions: " + ", ".join(code(f"{key} {value}") for key, value in used.items() if value) + "."


def _facts(config: RunConfig, summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    data, preference, training, adapter = config.data, config.preference, config.training, config.adapter
    yield "Data", f"{code(shown_name(data.train))}, {data_licence(data.train)}"
    pairs = summary.get("pairs")
    if isinstance(pairs, dict):
        yield "Pairs", f"{code(pairs.get('train'))} trained, {code(pairs.get('heldout'))} held out"
    losses = preference.loss if isinstance(preference.loss, list | tuple) else [preference.loss]
    yield "Objective", f"{' + '.join(map(code, losses))}, beta {code(preference.beta)}"
    if adapter.method == "lora":
        yield "Adapter", f"LoRA, rank {code(adapter.rank)}, on {code(adapter.target_modules)}"
    rate = f"learning rate {code(training.learning_rate)}"
    yield "Steps", f"{code(summary.get('steps', 'unknown'))}, {rate}"
    if data.template in ("chat", "none"):
        yield "Form", "the chat template" if data.template == "chat" else "plain texts, without a chat template"


def _use(repository: str, base: BaseName, config: RunConfig, *, merged: bool) -> Iterator[str]:
    name = repository.rpartition("/")[2]
    if merged:
        loader, imports = "AutoModelForCausalLM", "from transformers import AutoModelForCausalLM, AutoTokenizer"
    else:
        loader = "AutoPeftModelForCausalLM"
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
    yield (
        f"```python\n{imports}\n\n"
        f'model = {loader}.from_pretrained("{repository}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n```\n'
    )
    if merged:
        yield f"```sh\nvllm serve {repository}\n```\n"
    elif base.hub_id and (served := adapter_served(config.adapter.rank, name, repository)):
        yield f"```sh\nvllm serve {base.hub_id} {served}\n```\n"
    yield (
        "For Ollama and llama.cpp, the run's owner writes a GGUF file with `wishbone export RUN --ollama DIRECTORY`, "
        f"and `ollama create {name} -f DIRECTORY/Modelfile` takes it.\n"
    )
