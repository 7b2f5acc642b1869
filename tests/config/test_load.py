"""Every way a configuration can be wrong, and what the person who wrote it is told."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from wishbone.config import cautions, dump_config, load_config, parse_config
from wishbone.errors import RequestError

SMALLEST = "model: {name: org/some-model}\ndata: {train: org/some-pairs}\n"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RequestError) as caught:
        parse_config(text, overrides)
    return caught.value.problems


def only_problem(text: str, *overrides: str) -> str:
    found = problems(text, *overrides)
    assert len(found) == 1, found
    return found[0]


def write(path: Path, text: str = SMALLEST) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# what is read


def test_the_smallest_configuration_has_the_documented_defaults():
    config = parse_config(SMALLEST)
    assert (config.model.name, config.data.train) == ("org/some-model", "org/some-pairs")
    assert config.preference.loss == ["sigmoid"]
    assert (config.preference.beta, config.training.learning_rate, config.data.max_length) == (0.1, 5e-6, 1024)
    assert config.output.dir is None


@pytest.mark.parametrize("written", ["5e-6", "5E-06", "0.000005", "5.0e-6", ".5e-5", "+5e-6"])
def test_every_way_to_write_a_number_is_a_number(written: str):
    assert parse_config(f"{SMALLEST}training: {{learning_rate: {written}}}").training.learning_rate == 5e-6
    assert parse_config(SMALLEST, [f"training.learning_rate={written}"]).training.learning_rate == 5e-6


def test_one_loss_is_a_list_of_one():
    assert parse_config(f"{SMALLEST}preference: {{loss: ipo}}").preference.loss == ["ipo"]


def test_words_of_yaml_1_1_are_text():
    assert (
        parse_config(f"{SMALLEST}model: {{name: x, revision: no}}".replace(SMALLEST.splitlines()[0], "")).model.revision
        == "no"
    )


def test_a_section_without_keys_keeps_its_defaults():
    assert parse_config(f"{SMALLEST}training:\n  # learning_rate: 1e-6\n").training.learning_rate == 5e-6


def test_json_is_read_as_well():
    assert parse_config('{"model": {"name": "x"}, "data": {"train": "y", "max_length": null}}').data.max_length is None


def test_overrides_replace_add_and_clear_values():
    config = parse_config(
        f"{SMALLEST}training: {{epochs: 3}}\n",
        [
            "training.epochs=2",
            "training.epochs=4",
            "preference.loss=[sigmoid, sft]",
            "preference.loss_weights=[1, 0.2]",
            "data.max_length=null",
            "data.system_prompt=Answer: briefly # and well",
            "data.split='1e3'",
            "output.report_to=wandb",
        ],
    )
    assert config.training.epochs == 4
    assert config.preference.loss == ["sigmoid", "sft"]
    assert config.preference.loss_weights == [1.0, 0.2]
    assert config.data.max_length is None
    assert config.data.system_prompt == "Answer: briefly # and well"
    assert config.data.split == "1e3"
    assert config.output.report_to == ["wandb"]


def test_overrides_alone_can_make_a_configuration():
    assert parse_config("", ["model.name=a", "data.train=b"]).data.train == "b"


# what is refused, one at a time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data: {train: x, max_length: 0}",
            "data.max_length (line 1): 0 is not accepted. It takes a whole number from 2",
        ),
        (
            "preference: {beta: 0}",
            "preference.beta (line 1): 0 is not accepted. It takes a number above 0 (default: 0.1)",
        ),
        ("preference: {beta: -0.5}", "preference.beta (line 1): -0.5 is not accepted. It takes a number above 0"),
        ("preference: {beta: .nan}", "preference.beta (line 1): nan is not accepted"),
        ("preference: {beta: .inf}", "preference.beta (line 1): inf is not accepted"),
        ("preference: {beta: 1e999}", "preference.beta (line 1): inf is not accepted"),
        ("preference: {loss: sigmod}", "loss[0] (line 1): 'sigmod' is not accepted. Did you mean sigmoid?"),
        ("preference: {loss: [ipo, SIMPO]}", "loss[1] (line 1): 'SIMPO' is not accepted. Did you mean simpo?"),
        ("preference: {loss: []}", "preference.loss (line 1): [] is not accepted"),
        ("preference: {f_divergence: js}", "Did you mean js_divergence?"),
        ("preference: {label_smoothing: 0.5}", "It takes a number of at least 0 and below 0.5"),
        ("preference: {use_weighting: yes}", "'yes' is not accepted. Write true. It takes true or false"),
        ("preference: {ld_alpha: 2}", "2 is not accepted. It takes a number from 0 to 1, or null"),
        ("adapter: {rank: 8.0}", "adapter.rank (line 1): 8.0 is not accepted. Write 8. It takes a whole number"),
        ("adapter: {rank: true}", "adapter.rank (line 1): true is not accepted. It takes a whole number"),
        (
            "adapter: {target_modules: q_proj}",
            "It takes one of all-linear, language-linear, or a list of at least one, each item one line of text",
        ),
        ("training: {learning_rate: '1e-5'}", "'1e-5' is not accepted. Write the number without quotes."),
        ("training: {learning_rate: fast}", "training.learning_rate (line 1): 'fast' is not accepted. It takes"),
        ("training: {token_budget: none}", "It takes auto, or a whole number"),
        ("training: {lr: 1e-6}", "training.lr (line 1): no such key; did you mean training.learning_rate?"),
        ("training: {epoch: 1}", "training.epoch (line 1): no such key; did you mean epochs? training takes"),
        ("training: {beta: 1}", "training.beta (line 1): no such key; did you mean preference.beta?"),
        ("training: 5", "training (line 1): 5 is not a section; write its keys below it (learning_rate,"),
        ("trainng: {epochs: 1}", "trainng (line 1): no such section; did you mean training? The sections are model,"),
        ("learning_rate: 1e-6", "learning_rate (line 1): no such key; did you mean training.learning_rate?"),
        ("'[red]x': 1", "'[red]x' (line 1): no such key"),
        ("'a\\u001b[31m': {}", "no such section"),
    ],
)
def test_a_wrong_value_is_named_with_rule_and_remedy(text: str, expected: str):
    rest = SMALLEST if not text.startswith("data") else SMALLEST.splitlines()[0]
    message = only_problem(f"{text}\n{rest}")
    assert expected in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the configuration is empty; the smallest one is model: {name: smollm2-135m-instruct}"),
        ("# only a comment\n", "the configuration is empty"),
        ("- a\n- b\n", "the configuration is a list, but must be sections of keys"),
        ("just text", "the configuration is 'just text', but must be sections of keys"),
        ("a: &x 1\nb: *x\n", "line 2: an alias (*x) is not accepted; write the value out"),
        ("a: !!python/object:os.system x\n", "line 1: the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("---\na: 1\n---\nb: 1\n", "line 3: a second document begins here"),
        ("a: [[[[[[[[[[]]]]]]]]]]", "values nest more than 7 levels deep"),
        ("[" * 100_000, "values nest more than 7 levels deep"),
        ("{[a]: 1}", "line 1: a mapping or list is not accepted as a key"),
        ("a: b: c", "line 1, column 5: this is not YAML"),
        ("a:\n\t- b", "line 2, column 1: this is not YAML"),
        ("a: '", "this is not YAML"),
        ('a: "\\UFFFFFFFF"', "this is not YAML"),
        ('a: "\\U00FFFFFF"', "this is not YAML"),
        (f"%YAML 1.{'9' * 5000}\n--- a", "this is not YAML"),
        ("a: \x00", "this is not YAML (unacceptable character #x0000"),
        ("a" * 300_000, "the text has 300000 characters; a configuration has at most 262144"),
    ],
)
def test_text_that_is_no_configuration(text: str, expected: str):
    assert expected in only_problem(text)


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "line 2: an alias (*a0) is not accepted" in only_problem("\n".join(levels))


def test_a_key_given_twice_is_named_with_both_lines():
    text = f"{SMALLEST}training:\n  epochs: 1\n  seed: 3\n  epochs: 2\n"
    assert only_problem(text) == "training.epochs (line 6): given twice, first on line 4; keep one of them"


def test_half_a_surrogate_pair_is_no_text():
    assert "line 3: '\\ud800' contains half a surrogate pair" in only_problem(SMALLEST + 'output: {dir: "\\uD800"}')


def test_numbers_too_long_to_be_numbers_are_no_crash():
    assert "training.seed" in only_problem(f"{SMALLEST}training: {{seed: {'9' * 5000}}}")
    assert "training.seed" in only_problem(f"{SMALLEST}training: {{seed: {'9' * 3000}}}")


def test_what_is_missing_is_named_with_what_to_write():
    found = problems("training: {epochs: 1}")
    assert found == [
        "model.name: required, but missing. smollm2-135m-instruct (built in), a model id on the hub, a directory or a "
        ".gguf file.",
        "data.train: required, but missing. Pairs to learn from: a file, a directory, or a data set id on the hub.",
    ]


def test_settings_in_json_are_settings_and_pairs_in_json_are_not(tmp_path: Path):
    """`wishbone init --format json` writes such a file; pairs end in `.json` as well, as a list or line by line."""
    file = write(tmp_path / "run.json", '{\n "model": {"name": "org/model"},\n "data": {"train": "org/pairs"}\n}\n')
    assert load_config(file).model.name == "org/model"
    one = write(tmp_path / "one.json", '{"model": {"name": "org/model"}, "data": {"train": "org/pairs"}}')
    assert load_config(one) == load_config(file)
    for text in ('[{"prompt": "a"}]', '{"prompt": "a"}\n{"prompt": "b"}\n'):
        with pytest.raises(RequestError, match="holds data, and a run's settings are a YAML file"):
            load_config(write(tmp_path / "pairs.json", text))


# overrides


@pytest.mark.parametrize("override", ["0.2", "", "=1", ".beta=1", "preference.=1", "a.b.c=1"])
def test_an_override_that_is_none(override: str):
    assert only_problem(SMALLEST, override) == (
        f"override '{override}': write it as section.key=value, such as preference.beta=0.2"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("preference.bta=1", "preference.bta (override 'preference.bta=1'): no such key; did you mean beta?"),
        ("beta=1", "beta (override 'beta=1'): no such key; did you mean preference.beta?"),
        ("training=1", "training (override 'training=1'): 1 is not a section"),
        ("preference.beta=", "preference.beta (override 'preference.beta='): null is not accepted"),
        ("preference.loss=[ipo", "override 'preference.loss=[ipo': line 1, column 5: this is not YAML"),
        ("preference.beta=-1", "preference.beta (override 'preference.beta=-1'): -1 is not accepted"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str):
    assert expected in only_problem(SMALLEST, override)


# conflicts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "preference: {loss: [sigmoid, sft], loss_weights: [1]}",
            "preference.loss_weights (line 3): loss_weights has 1 weight and loss has 2 (sigmoid, sft); give",
        ),
        (
            "preference: {loss: exo_pair}",
            "preference.loss (line 3): with label_smoothing 0 the loss exo_pair is infinite; set",
        ),
        (
            "preference: {loss: simpo, f_divergence: forward_kl}",
            "preference.f_divergence (line 3): f_divergence forward_kl is not defined for simpo; use",
        ),
        (
            "preference: {loss: [sigmoid, aot], use_weighting: true}",
            "preference.use_weighting (line 3): use_weighting weights single pairs, but aot compares",
        ),
        (
            "data: {train: x, eval: y, eval_fraction: 0.1}",
            "data.eval_fraction (line 3): eval_fraction 0.1 holds out training pairs, but eval names",
        ),
        ("data: {train: x, eval_split: y, eval_fraction: 0.1}", "but eval_split names other pairs"),
        (
            "training: {eval_steps: 5}",
            "training.eval_steps (line 3): training.eval_steps 5 asks for evaluations, but there are no",
        ),
    ],
)
def test_settings_that_cannot_hold_together(text: str, expected: str):
    lines = SMALLEST.splitlines()
    kept = lines if not text.startswith("data") else [lines[0], ""]
    assert expected in only_problem("\n".join([*kept, text]))


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "discopop", "sft"])
def test_losses_that_take_any_divergence(loss: str):
    text = f"{SMALLEST}preference: {{loss: {loss}, f_divergence: js_divergence, use_weighting: true}}"
    assert parse_config(text).preference.f_divergence == "js_divergence"


def test_all_problems_are_reported_at_once():
    text = """\
model: {nme: x}
adapter: {rank: 0}
data:
  max_length: 0
  eval_fraction: 0.1
  eval: y
preference:
  loss: [exo_pair, aot]
  loss_weights: [1]
  beta: -1
  use_weighting: true
training:
  learning_rate: fast
  eval_steps: 3
  seed: 1
  seed: 2
trainng: {}
"""
    found = problems(text, "nonsense", "output.dirr=x", "adapter.alpha=high")
    places = [problem.partition(":")[0] for problem in found]
    assert places == [
        "training.seed (line 16)",
        "override 'nonsense'",
        "model.name",
        "model.nme (line 1)",
        "adapter.rank (line 2)",
        "adapter.alpha (override 'adapter.alpha=high')",
        "data.train",
        "data.max_length (line 4)",
        "preference.beta (line 10)",
        "training.learning_rate (line 13)",
        "output.dirr (override 'output.dirr=x')",
        "trainng (line 17)",
        "data.eval_fraction (line 5)",
        "preference.loss_weights (line 9)",
        "preference.loss (line 8)",
        "preference.use_weighting (line 11)",
    ]


def test_a_conflict_with_a_broken_field_is_not_reported():
    assert len(problems(f"{SMALLEST}preference: {{loss: [sigmod, ipo], loss_weights: [1]}}")) == 1


# files


def test_a_missing_file_names_the_nearest_one(tmp_path: Path):
    write(tmp_path / "dpo.yaml")
    write(tmp_path / "notes.txt")
    with pytest.raises(RequestError, match=r"does not exist; did you mean '.*/dpo\.yaml'\?"):
        load_config(tmp_path / "dop.yml")
    with pytest.raises(RequestError, match=r"the YAML files in '.*' are 'dpo\.yaml'"):
        load_config(tmp_path / "something-else.yaml")
    with pytest.raises(RequestError, match=r"its folder '.*' does not exist either"):
        load_config(tmp_path / "nowhere" / "dpo.yaml")
    (tmp_path / "dpo.yaml").unlink()
    with pytest.raises(RequestError, match="there is no YAML file beside it"):
        load_config(tmp_path / "dpo.yaml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x7fELF\xff\xfe", "is not UTF-8 text (byte 4)"),
        (b"a" * 2_000_000, "is too large"),
        (b"", "the configuration is empty"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes, expected: str):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(RequestError) as caught:
        load_config(tmp_path / "c.yaml")
    assert expected in str(caught.value)


def test_a_directory_is_no_configuration(tmp_path: Path):
    with pytest.raises(RequestError, match="is a directory; there is no YAML file in it"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load_config(tmp_path / "c.yaml").model.name == "org/some-model"


def test_paths_are_found_in_the_current_directory_first_then_beside_the_file(tmp_path: Path, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
        write(folder / "both.jsonl", "")
    write(beside / "only.jsonl", "")
    (beside / "model").mkdir()
    (beside / "run").mkdir()
    path = write(
        beside / "c.yaml",
        "model: {name: ./model}\ndata: {train: both.jsonl, eval: only.jsonl}\noutput: {dir: run}\n",
    )
    monkeypatch.chdir(here)
    config = load_config(path)
    assert config.model.name == str(beside / "model")
    assert (config.data.train, config.data.eval) == (str(here / "both.jsonl"), str(beside / "only.jsonl"))
    assert config.output.dir == str(beside / "run")
    assert load_config(path, ["output.dir=new"]).output.dir == str(here / "new")
    monkeypatch.chdir(tmp_path)
    assert parse_config(dump_config(config)) == config


def test_names_that_lead_nowhere_are_reported_with_the_other_problems(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", "")
    path = write(
        tmp_path / "c.yaml", "model: {name: ./modl}\ndata:\n  train: piars.jsonl\n  eval: /x/y.csv\n  max_length: 1\n"
    )
    with pytest.raises(RequestError) as caught:
        load_config(path)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "data.max_length (line 5)",
        "model.name (line 1)",
        "data.train (line 3)",
        "data.eval (line 4)",
    ]
    assert f"did you mean '{tmp_path}/pairs.jsonl'?" in str(caught.value)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "org/model", "name:configuration"])
def test_names_that_are_no_paths_stay(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    path = write(tmp_path / "c.yaml", f"model: {{name: '{name}'}}\ndata: {{train: '{name}'}}\n")
    assert load_config(path).model.name == name


# cautions


@pytest.mark.parametrize(
    ("setting", "warned"),
    [
        ("training: {learning_rate: 5e-5}", ["training.learning_rate 5e-5 is a rate for supervised fine-tuning"]),
        ("training: {learning_rate: 4.9e-5}", []),
        ("adapter: {method: full}\ntraining: {learning_rate: 5e-5}", []),
        ("preference: {simpo_gamma: 1}", ["preference.simpo_gamma 1 has no effect: only simpo reads it"]),
        ("preference: {simpo_gamma: 1, loss: simpo}", []),
        ("preference: {label_smoothing: 0.1}", ["preference.label_smoothing 0.1 has no effect: only aot,"]),
        ("training: {scheduler: constant}", ["training.warmup_ratio 0.1 has no effect: the constant schedule"]),
        ("training: {scheduler: constant, warmup_ratio: 0}", []),
        ("preference: {f_alpha: 0.1}", ["preference.f_alpha 0.1 has no effect"]),
    ],
)
def test_settings_that_are_probably_not_meant(tmp_path: Path, setting: str, warned: list[str]):
    path = write(tmp_path / "c.yaml", f"{SMALLEST}{setting}\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config(path)
    found = [str(warning.message) for warning in caught]
    assert found == cautions(config)
    assert len(found) == len(warned)
    assert all(start in text for start, text in zip(warned, found, strict=True))
