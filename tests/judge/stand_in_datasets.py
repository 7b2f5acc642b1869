"""Small data sets in place of those that TRL's tests read from the hub.

TRL's tests name data sets by their hub id: `load_dataset("trl-internal-testing/zen", "standard_preference")`. The
library prefers a folder of that relative path to the hub, so files below the working directory answer such a call and
the tests stay unchanged:

    trl-internal-testing/zen/README.md                            says which files make which configuration
    trl-internal-testing/zen/standard_preference/train.parquet

Columns, row counts (17 to train, 2 to test) and kinds of content are those of the originals. The text is our own.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

ORGANIZATION = "trl-internal-testing"
TEST_ROWS = 2

SENTENCES: list[tuple[str, str, str, str]] = [
    ("Which road is easy?", "A short road is", " easy to walk.", " hard to paint."),
    ("What warms a house?", "A stove warms the", " house.", " ocean."),
    ("What does a map save?", "A good map saves", " many steps.", " the moon."),
    ("When is bread best?", "Bread", " is best on its first day.", " is made of stone."),
    ("What does rain feed?", "Rain feeds the", " river.", " clock."),
    ("What holds a roof?", "Four walls hold", " one roof.", " a parade of geese."),
    ("Does patience pay?", "Patience", " pays.", " is a small fish."),
    ("Who finds the key?", "The one who looked longest", " finds the key.", " eats the key."),
    ("What beats haste?", "Care beats", " haste.", " drums."),
    ("How should a door close?", "A door should close", " softly.", " in another town."),
    ("When may a bell ring?", "Unless somebody", " sleeps.", " juggles."),
    ("What should you do in fog?", "In thick fog, slow", " down and listen.", " music is forbidden by law."),
    ("How many captains has a ship?", "A ship has one captain, and preferably", " only one.", " several, all asleep."),
    ("For whom is ice slow?", "This path seems steep at first unless you are", " a goat.", " a piano."),
    ("What is better than later?", "Now is", " better than later.", " made of paper."),
    ("Is later better than hurry?", "Although later is often", " better than *too* soon.", " a kind of soup."),
    ("What if a plan needs a book?", "If the plan needs a book to tell,", " it's a bad plan.", " it's a holiday."),
    (
        "What if a plan is told in a line?",
        "If the plan",
        " fits on a line, it may be good.",
        " sings, ask it to dance.",
    ),
    ("Any good tools?", "Labels are one truly useful", " tool -- let's use more!", " cake -- let's bake some!"),
]
"""A question, the beginning of a sentence, a good end and a bad end, one row each."""


def make_datasets(root: Path, *, images: bool) -> None:
    """Write every data set below `root`; those with images only if `images`, because they need pillow."""
    standard = [{"prompt": prompt, "chosen": good, "rejected": bad} for _, prompt, good, bad in SENTENCES]
    conversational = [
        {"prompt": _turn("user", question), "chosen": _answer(good), "rejected": _answer(bad)}
        for question, _, good, bad in SENTENCES
    ]
    unpaired = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, row in enumerate(standard)
    ]
    zen = {
        "standard_preference": Dataset.from_list(standard),
        "conversational_preference": Dataset.from_list(conversational),
        "standard_implicit_prompt_preference": Dataset.from_list(_implicit(standard)),
        "conversational_implicit_prompt_preference": Dataset.from_list(_implicit(conversational)),
        "standard_unpaired_preference": Dataset.from_list(unpaired),
    }
    tiny = root / ORGANIZATION
    _write(tiny / "zen", zen)
    _write(tiny / "harmony", {"preference": Dataset.from_list(_reasoning(conversational))})
    _write(tiny / "toolcall", {"preference": Dataset.from_list(_tool_calls(), on_mixed_types="use_json")})
    _write(root / "trl-lib" / "ultrafeedback_binarized", {"default": Dataset.from_list(_long_pairs(480))})
    if images:
        _write(tiny / "zen-image", {"conversational_preference": _with_one_image(conversational)})
        _write(tiny / "zen-multi-image", {"conversational_preference": _with_many_images(conversational)})


def texts() -> list[str]:
    """Return all text of the data, to train a tokenizer on."""
    return [part for sentence in SENTENCES for part in sentence]


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _answer(end: str) -> list[dict[str, str]]:
    return _turn("assistant", end.strip().capitalize())


def _implicit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs without a prompt column: the prompt is the common beginning of both sides."""
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def _long_pairs(count: int) -> list[dict[str, Any]]:
    """Conversations of one turn, mostly short and a few above 512 tokens, with a score for each side."""
    rng = random.Random(2)

    def text(mean: float) -> str:
        chosen = (rng.choice(SENTENCES) for _ in range(1 + int(rng.expovariate(1 / mean))))
        return " ".join(prompt + rng.choice(ends) for _, prompt, *ends in chosen)

    rows = []
    for _ in range(count):
        prompt = _turn("user", text(2))
        sides = {side: prompt + _turn("assistant", text(5)) for side in ("chosen", "rejected")}
        rows.append({**sides, "score_chosen": rng.uniform(5, 10), "score_rejected": rng.uniform(0, 5)})
    return rows


def _reasoning(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs whose answers carry a reasoning, with chat template settings that differ from row to row."""

    def thoughtful(messages: list[dict[str, str]], thought: str) -> list[dict[str, str]]:
        return [{**messages[0], "thinking": thought}]

    efforts = ("low", "medium", "high")
    return [
        {
            "prompt": row["prompt"],
            "chosen": thoughtful(row["chosen"], "This follows from how things are."),
            "rejected": thoughtful(row["rejected"], "Nobody will notice."),
            "chat_template_kwargs": {"reasoning_effort": efforts[i % 3], "model_identity": "You are a tiny model."},
        }
        for i, row in enumerate(rows)
    ]


def _tool_calls() -> list[dict[str, Any]]:
    """Pairs in which the assistant calls tools; arguments and results have different types from row to row."""
    tools = [
        _tool("start_timer", {"seconds": "integer"}),
        _tool("get_time", {"place": "string"}),
        _tool("play_music", {"title": "string", "artist": "string"}),
        _tool("switch_light", {"room": "string", "on": "boolean"}),
    ]
    calls: list[tuple[str, str, dict[str, Any], dict[str, Any], str, str]] = [
        ("Wake me in ten minutes.", "start_timer", {"seconds": 600}, {"seconds": 10}, "600", "In ten minutes."),
        ("What time is it in Oslo?", "get_time", {"place": "Oslo"}, {"place": "Lima"}, "06:22", "It is 06:22."),
        ("What time is it here?", "get_time", {"place": "here"}, {"place": "there"}, "07:01", "Just after seven."),
        (
            "Play a slow tune.",
            "play_music",
            {"title": "Slow", "artist": "Ann"},
            {"title": "Fast", "artist": "Bo"},
            "ok",
            "Playing.",
        ),
        (
            "Light in the hall, please.",
            "switch_light",
            {"room": "hall", "on": True},
            {"room": "hall", "on": False},
            "on",
            "The hall is lit.",
        ),
        ("Timer for one minute.", "start_timer", {"seconds": 60}, {"seconds": 61}, "60", "One minute."),
        ("And what time is it in Rome?", "get_time", {"place": "Rome"}, {"place": "Home"}, "09:15", "It is 09:15."),
        (
            "Make the kitchen dark.",
            "switch_light",
            {"room": "kitchen", "on": False},
            {"room": "attic", "on": False},
            "off",
            "Dark now.",
        ),
    ]
    rows = []
    for i, (request, name, right, wrong, result, answer) in enumerate(calls):
        rejected = _called(name, wrong, result, "Something was done.") if i % 3 else _turn("assistant", "No idea.")
        rows.append(
            {
                "prompt": _turn("user", request),
                "chosen": _called(name, right, result, answer),
                "rejected": rejected,
                "tools": [t for j, t in enumerate(tools) if j <= i % 3 or t["function"]["name"] == name],
            }
        )
    return rows


def _tool(name: str, parameters: dict[str, str]) -> dict[str, Any]:
    properties = {parameter: {"type": kind, "description": parameter} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


def _called(name: str, arguments: dict[str, Any], result: str, answer: str) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": result},
        {"role": "assistant", "content": answer},
    ]


def _pixels(rng: random.Random) -> Any:
    """An image of noise, 32 to 63 pixels high and wide."""
    import numpy as np

    height, width = rng.randrange(32, 64), rng.randrange(32, 64)
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _with_one_image(rows: list[dict[str, Any]]) -> Dataset:
    rng = random.Random(0)
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features(prompt=message, chosen=message, rejected=message, images=List(Image()))
    columns = {side: [row[side] for row in rows] for side in ("prompt", "chosen", "rejected")}
    return Dataset.from_dict({**columns, "images": [[_pixels(rng)] for _ in rows]}, features=features)


def _with_many_images(rows: list[dict[str, Any]]) -> Dataset:
    """Prompts with zero to three images between their parts of text."""
    rng = random.Random(1)
    part = List({"type": Value("string"), "text": Value("string")})
    message = List({"role": Value("string"), "content": part})
    features = Features(prompt=message, chosen=message, rejected=message, images=List(Image()))

    def text(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
        return [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]

    columns: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": [], "images": []}
    for i, row in enumerate(rows):
        prompt = text(row["prompt"])
        for position in range(i % 4):
            prompt[0]["content"].insert(position % 2, {"type": "image"})
        columns["prompt"].append(prompt)
        columns["chosen"].append(text(row["chosen"]))
        columns["rejected"].append(text(row["rejected"]))
        columns["images"].append([_pixels(rng) for _ in range(i % 4)])
    return Dataset.from_dict(columns, features=features)


def _write(folder: Path, configurations: dict[str, Dataset]) -> None:
    lines = ["---", "configs:"]
    for configuration, dataset in configurations.items():
        (folder / configuration).mkdir(parents=True, exist_ok=True)
        splits = dataset.train_test_split(test_size=TEST_ROWS, shuffle=False)
        lines += [f"- config_name: {configuration}", "  data_files:"]
        for split in ("train", "test"):
            splits[split].to_parquet(folder / configuration / f"{split}.parquet")
            lines += [f"  - split: {split}", f"    path: {configuration}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
