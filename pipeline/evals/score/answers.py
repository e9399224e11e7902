"""Whether the documents of a task of lm-eval's can be answered, and which one makes no prompt.

lm-eval scores an answer that is none of the choices as the model's mistake, takes index −1 for the last
choice, and says nothing but a warning. This asks the task itself, whatever its rows look like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask

from pipeline.types import UserError

BAD_ROW = (KeyError, IndexError, TypeError, ValueError, SyntaxError, TemplateError)
"""What lm-eval's templates raise on a row that they cannot take."""
Documents = Mapping[int, Any]
"""A task's documents by number."""


@contextmanager
def judged(task: ConfigurableTask, documents: Documents) -> Iterator[None]:
    """Holds the documents of a task whose requests are made meanwhile to what can be scored.

    Raises:
        UserError: a document makes no prompt, or its right answer is none of its choices.
    """
    try:
        yield
        refuse_unanswerable(task, documents)
    except UserError:
        raise
    except (*BAD_ROW, AssertionError) as error:
        raise bad_row(task, documents, error) from None


def refuse_unanswerable(task: ConfigurableTask, documents: Documents) -> None:
    """Refuses documents whose right answer is none of their choices.

    Raises:
        UserError: names the task and the document.
    """
    # A task that judges answers by code of its own may use targets as it likes.
    if task.config.doc_to_choice is None or callable(task.config.process_results):
        return
    is_written = task.OUTPUT_TYPE == "generate_until"  # its answer is the choice that an index names
    if not is_written and task.OUTPUT_TYPE != "multiple_choice":
        return
    for number, document in documents.items():
        choices = task.doc_to_choice(document)
        target = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        answers = target if isinstance(target, list) else [target]
        has_other_form = isinstance(target, list) != bool(task.multiple_target) and not task.multiple_input
        if has_other_form or not all(_is_choice(answer, choices, is_written) for answer in answers):
            raise UserError(
                f"row {number + 1} of {task.task_name}: its answer is {target!r:.40}, none of its "
                f"{len(choices)} choices"
            )


def _is_choice(answer: object, choices: list[str], by_index: bool) -> bool:
    if isinstance(answer, int):
        return 0 <= answer < len(choices)
    return not by_index and isinstance(answer, str) and answer in choices


def bad_row(task: ConfigurableTask, documents: Documents, error: Exception) -> UserError:
    """The error that names the row which makes no prompt.

    Args:
        task: whose prompts could not be made.
        documents: of them.
        error: why.
    """
    for number, document in documents.items():
        try:
            task.doc_to_text(document), task.doc_to_target(document)
            if task.config.doc_to_choice is not None:
                task.doc_to_choice(document)
        except BAD_ROW as reason:
            return UserError(
                f"row {number + 1} of {task.task_name} makes no prompt: {type(reason).__name__} {reason}"
            )
    return UserError(
        f"{task.task_name}: no prompts can be made of its rows: {str(error) or type(error).__name__}"
    )
