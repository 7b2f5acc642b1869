"""`wishbone compare`: the model's answers before and after a run, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wishbone.cli.answers import print_answer
from wishbone.cli.console import say, screen
from wishbone.cli.finished import RunDirectory, TrustRemoteCode, opened_run
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.phases import phase
from wishbone.report.html import write_report
from wishbone.run.phase_display import phases_shown

if TYPE_CHECKING:
    from wishbone.report.answers import Question


def compare(
    run: RunDirectory,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="A prompt to answer; may be repeated.", show_default=False),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, max=50, help="Without --prompt: how many prompts of the held-out pairs to answer.")
    ] = 3,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Longest answer, in tokens.")] = 80,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare the model's answers before and after the run, side by side, and keep them in its report."""
    settle_libraries()
    with requested():
        finished = opened_run(run, trust_remote_code=trust_remote_code)
        config = finished.settings
        as_text = finished.config.data.template == "none"
        with screen(error=True).status("loading torch"):
            from wishbone.report.answers import answer_before_and_after, to_json, write_answers
            from wishbone.result.finished_run import refuse_moved

        with phases_shown(screen(error=True)), phase("run", note="answers before and after"):
            refuse_moved(finished.path, "model.name", config.model.name)
            questions = _questions(config, prompt or [], count, as_text=as_text)
            answers = answer_before_and_after(finished.path, config.model, questions, max_new_tokens=max_new_tokens)
    if as_json:
        typer.echo(to_json(answers), nl=False)
    else:
        for number, answer in enumerate(answers, 1):
            print_answer(number, answer.prompt, answer.before, answer.after)
    try:
        write_answers(finished.path, answers)
        report = write_report(finished.path)
    except RequestError as error:  # a run of somebody else, or a full disk: the answers are there
        say(f"the run's report does not have them: {error}", marker="note: ", style="bold yellow", error=True)
        return
    if not as_json:
        say(str(report), marker="report: ", style="bold green")


def _questions(config: RunConfig, prompts: list[str], count: int, *, as_text: bool) -> list[Question]:
    """The given prompts, as turns or texts; without any, the first held-out ones, or of the training pairs."""
    from wishbone.model.load import load_tokenizer
    from wishbone.report.answers import question_from_text, questions_from_pairs

    model = config.model
    tokenizer = load_tokenizer(model.name, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if prompts:
        return [question_from_text(text, tokenizer, config.data.system_prompt, as_text=as_text) for text in prompts]
    from wishbone.model.load import read_model_config
    from wishbone.run.prepare_data import prepare_data, processor_of
    from wishbone.run.shown_pairs import questions_with_images
    from wishbone.trainer.image_tokens import has_images

    described = read_model_config(model.name, model.revision, model.trust_remote_code, weights=False)
    processor = processor_of(model, described)
    trained, heldout, _ = prepare_data(config, tokenizer, processor)
    pairs = trained if heldout is None else heldout
    if not has_images(pairs):
        return questions_from_pairs(pairs, tokenizer, count)
    assert processor is not None
    return questions_with_images(pairs, processor(), count)
