"""A chat template ends: by itself, with its reason, or because it took too long or too much."""

from __future__ import annotations

import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from datasets import Dataset
from small_tokenizers import assistant, user
from transformers import PreTrainedTokenizerBase

from wishbone.data import chat_template
from wishbone.data.chat_template import rendered
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError

PAIRS = Dataset.from_list(
    [{"prompt": [user("Hi")], "chosen": [assistant(f"yes {n}")], "rejected": [assistant("no")]} for n in range(3)]
)
TWO_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set text = namespace(all='x') %}"
    "{% for a in range(60) %}{% set text.all = text.all + text.all %}{% endfor %}{{ text.all }}"
)
HOSTILE = {
    "two loops": (TWO_LOOPS, "did not end within 1 s"),
    "a long product": ("{{ 9 ** (9 ** 9) }}", "did not end within 1 s"),
    "a doubled text": (DOUBLED, "did not end within 1 s|needs too much memory"),
    "a long text": ("{{ 'x' * 10 ** 11 }}", "needs too much memory"),
    "a text of eight gigabytes": ("{{ 'x' * 8 * 10 ** 9 }}", "needs too much memory"),
    "a macro that calls itself": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "calls itself endlessly, or nests too deeply",
    ),
    "deep brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests too deeply"),
    "deep blocks": ("{% for a in messages %}" * 60 + "{% endfor %}" * 60, "cannot be compiled"),
    "a division by zero": (
        "{{ 1 / (messages | length - 2) }}",
        "row 1: the chat template refuses it: division by zero",
    ),
    "a message that is not there": ("{{ messages[9].content + 'x' }}", "row 3: the chat template refuses it: "),
    "a refusal": ("{{ raise_exception('no ' ~ messages[-1].content) }}", "row 3: the chat template refuses it: no Hi"),
}


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("template", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_does_not_end_well_is_refused(
    template: str, problem: str, chatml: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chatml, "chat_template", template)
    limit, handler = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(RequestError) as error:
        tokenize_pairs(PAIRS, chatml)
    assert re.search(problem, str(error.value))
    assert time.monotonic() - began < 20
    assert resource.getrlimit(resource.RLIMIT_AS) == limit
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def in_a_thread(work: Callable[[], Any]) -> BaseException | None:
    found: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  handed to the test
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return found[0] if found else None


@pytest.mark.slow
def test_a_template_ends_in_another_thread_too(
    chatml: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_a_thread(partial(tokenize_pairs, PAIRS, chatml)) is None
    monkeypatch.setattr(chatml, "chat_template", TWO_LOOPS)
    error = in_a_thread(partial(tokenize_pairs, PAIRS, chatml))
    assert isinstance(error, RequestError)
    assert "did not end within 1 s" in str(error)


def test_a_timer_that_was_running_runs_on() -> None:
    rung: list[int] = []
    earlier = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 100)
        assert rendered(lambda: 7, conversations=1) == 7
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


@pytest.mark.slow
def test_time_and_memory_grow_with_what_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.0)
    rendered(lambda: time.sleep(0.3), conversations=100)
    with pytest.raises(RequestError, match="did not end within"):
        rendered(lambda: time.sleep(30), conversations=10)
    monkeypatch.setattr(chat_template, "MEMORY", 2**28)
    with pytest.raises(RequestError, match="needs too much memory"):
        rendered(lambda: len(b"x" * 2**33), conversations=1000)  # beyond what the C library takes from a kept heap
    assert rendered(lambda: len(b"x" * 2**29), conversations=1000, characters=2**24) == 2**29
