"""Configurations of runs, with overrides and odd names, read as `wishbone train` reads them."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from random import Random
from typing import Any

from soak.damage import as_json, damaged_bytes, damaged_value, hostile_value, random_name
from soak.trials import Target

SOUND: dict[str, Any] = {
    "model": {"name": "smollm2-135m-instruct", "dtype": "auto", "reference": None},
    "adapter": {"method": "lora", "rank": 16, "alpha": 32.0, "target_modules": ["q_proj", "v_proj"]},
    "data": {"train": "pairs.jsonl", "eval_fraction": 0.05, "max_length": 1024, "invalid_rows": "drop"},
    "preference": {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1], "beta": 0.1},
    "training": {"learning_rate": 5e-6, "epochs": 1.0, "batch_size": 1, "reference_store": "auto"},
    "output": {"dir": "run", "report_to": []},
}
NAMES = (
    "~nosuchuser", "~nosuchuser/x.jsonl", "n" * 300, "n/" * 3000 + "x", "n" * 300 + ".gguf", "~", "~/", "/", "//",
    ".", "..",
    "./", "../" * 200, "a\0b", "\udcff", "\ud800", "://", "file:///etc/passwd", "s3://b/k",
    "http://127.0.0.1:9/x.jsonl",
    "http://[", "C:\\x", "\\\\host\\x", "a:b:c", "owner/name", "owner/" + "n" * 300, "-", "--", "a b", " ", "",
    "CON", "~+",
    "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/fd/0", "\N{SNOWMAN}" * 100, "a\nb", "x\x1b[2J",
    "pairs.jsonl/x", "pairs.jsonl/", "$HOME", "%s", "{x}", "*", "?", "[", "x.gguf", "x.jsonl.gz", "auto", "off", "none",
)  # fmt: skip
_FIELDS = ("model.name", "model.reference", "model.revision", "data.train", "data.eval", "data.split",
"data.eval_split",
           "output.dir", "training.reference_store")  # fmt: skip
_YAML = ("&a ", "*a ", "!!python/object:os.system ", "!!binary ", "!x ", "---\n", "...\n", "%YAML 9.9\n",
"%TAG ! x\n", "? ",
         ": ", "- ", "|\n", ">-\n", "\t", "{", "}", "[", "]", ",", "#", "'",
         '"', "\\", "\r", "\x85", "\u2028", "\ufeff", "\0",
         "<<: ", "@", "`", "0x1F", "0o7", "1_000", "1e400", ".nan", ".inf", "9" * 5000, "1e9999999999", "=", "~",
         "\\UFFFFFFFF",
         '"\\x', "? - ? - ? - ", "!<", "!%", "&" + "a" * 9000 + " ")  # fmt: skip


def write_config(random: Random, directory: Path) -> Path:
    """A configuration and, beside it, the overrides of the command line."""
    (directory / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    config = json.loads(json.dumps(SOUND))
    overrides: list[str] = []
    style = random.random()
    if style < 0.25:
        config = damaged_value(config, random)
        content = as_json(config).encode()
    elif style < 0.4:
        section, key = random.choice(_FIELDS).split(".")
        config[section][key] = random.choice(NAMES)
        content = as_json(config).encode()
    elif style < 0.5:
        content = as_json(config).encode()
        name = random.choice((*_FIELDS, random_name(random), "training", "x.y.z", "", ".", "preference.loss"))
        value = random.choice((*NAMES, *_YAML, as_json(hostile_value(random))))
        overrides = [f"{name}={value}"] * random.choice((1, 1, 300))
    elif style < 0.502:
        config = {**config, random.choice(("training", "extra", random_name(random))): _many(random)}
        content = as_json(config).encode()
    else:
        text = "".join(f"{name}:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in section.items())
                       for name, section in config.items())  # fmt: skip
        if style < 0.75:
            for _ in range(random.choice((1, 2, 5))):
                spot = random.randrange(len(text) + 1)
                text = text[:spot] + random.choice(_YAML) * random.choice((1, 1, 3, 2000)) + text[spot:]
            content = text.encode("utf-8", "replace")
        else:
            content = damaged_bytes(text.encode(), random)
    path = directory / random.choice(("run.yaml", "run.yaml", "run", "r\nn.yaml", "r" * 250, "run.yml"))
    path.write_bytes(content)
    beside = directory / "overrides"
    beside.write_text(json.dumps(overrides))
    if random.random() < 0.03:
        return directory / random.choice([name for name in NAMES if name not in ("", "/dev/zero", "/proc/self/fd/0")])
    return path


def _many(random: Random) -> dict[str, int]:
    letters = string.ascii_lowercase
    length = random.choice((3, 6))
    return {"".join(random.choices(letters, k=length)): 1 for _ in range(random.choice((200, 20_000)))}


def read_config(path: Path) -> None:
    """Check the configuration and settle its run directory."""
    from wishbone.config.cautions import cautions
    from wishbone.config.load import dump_config, load_config, parse_config
    from wishbone.config.run_directory import choose_run_directory

    beside = path.parent / "overrides"
    overrides = json.loads(beside.read_text()) if os.path.isfile(beside) else []
    config = load_config(path, overrides)
    cautions(config)
    choose_run_directory(config, name=path.stem)
    if parse_config(dump_config(config)) != config:
        raise AssertionError("the configuration that was written is not the one that is read")


TARGETS = [Target("config", write_config, read_config, seconds=10.0)]
