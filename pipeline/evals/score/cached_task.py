"""A task of lm-eval's whose prompts are built once and kept on disk.

lm-eval's own request cache pickles, and names a file by the task alone: other rows under the same task name
would get the old prompts. Here the file is JSON, and its name is a digest of all that the prompts depend on.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from pipeline import store
from pipeline.evals.score import kept_files
from pipeline.evals.score.answers import BAD_ROW, judged
from pipeline.evals.score.stable import described
from pipeline.store import records
from pipeline.types import UserError

SEED = 1234
"""lm-eval's own seed of the few-shot draw."""
MAX_BYTES = 2**30
"""Bytes of the questions of a task, unpacked, at most."""
FORMAT = 3
"""Of the kept prompts: nobody looked as closely at the answers of earlier ones."""
OF_ANSWERS = ("custom_dataset", "metric_list", "filter_list", "process_results")
"""Parts of a task that its prompts do not depend on; the rows have a digest of their own."""


class CachedTask(ConfigurableTask):
    """A task whose prompts are kept in the cache of `project`."""

    project = store.Project()
    _instances: list[Instance]

    def build_all_requests(self, *, limit: int | None = None, **options: Any) -> None:
        """Makes the questions, or reads them where they have been made of the same rows.

        Args:
            limit: documents at most.
            options: lm-eval's own.

        Raises:
            UserError: a row makes no prompt.
        """
        documents = dict(self.doc_iterator(limit=limit))
        file = self.project.prompts(self._digest(limit, options))
        instances = read_instances(file, documents)
        if instances is None:
            with judged(self, documents):
                super().build_all_requests(limit=limit, **options)
            write_instances(file, self._instances)
            instances = read_instances(file, documents)
            kept_files.sweep(file.parent, "*.json.gz")
        if instances is None:
            raise UserError(f"{file} does not read back as it was written; the disk is failing")
        self._instances = instances

    def _digest(self, limit: int | None, options: dict[str, Any]) -> str:
        """A digest of everything that the prompts depend on."""
        config = {
            field.name: described(getattr(self.config, field.name))
            for field in fields(self.config)
            if field.name not in OF_ANSWERS
        }
        rows = {
            split: store.text_digest(json.dumps(list(data), default=described))
            for split, data in self.dataset.items()
        }
        template = {key: described(value) for key, value in options.items() if key != "chat_template"}
        version = importlib.metadata.version("lm_eval")
        inputs = [FORMAT, version, config, rows, limit, SEED, template]
        return store.text_digest(json.dumps(inputs, sort_keys=True))


def write_instances(file: Path, instances: list[Instance]) -> None:
    """Writes questions; a context that the choices of a question share is written once."""
    contexts = dict.fromkeys(instance.args[0] for instance in instances)
    numbers = {context: number for number, context in enumerate(contexts)}
    rows = [
        [i.request_type, i.task_name, i.doc_id, i.repeats, i.idx, numbers[i.args[0]], list(i.args[1:])]
        for i in instances
    ]
    with (
        store.atomic(file) as temporary,
        gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as out,
    ):
        json.dump({"contexts": list(contexts), "instances": rows}, out)


def read_instances(file: Path, documents: dict[int, Any]) -> list[Instance] | None:
    """The questions in a file, with their documents; None where it is missing or broken."""
    if not file.is_file():
        return None
    try:
        records.refuse_odd_file(file, MAX_BYTES)
        with gzip.open(file, "rb") as packed:
            content = packed.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            return None
        data = json.loads(content.decode())
        contexts = data["contexts"]
        instances = [
            Instance(kind, documents[document], (contexts[context], *rest), idx, (task, document, repeats))
            for kind, task, document, repeats, idx, context, rest in data["instances"]
        ]
    except (UserError, OSError, EOFError, zlib.error, RecursionError, *BAD_ROW):
        return None
    kept_files.used(file)
    return instances
