"""usage: python -m runs.gpu [--shape 7b|13b|tiny] [--provider cuda|cpu] [--out FOLDER] …: `make gpu`.

Writes proof.md, proof.json and logs/ into the folder, and prints the page's path last. Exit 0 passed, 1 a
stage failed or nothing was checked, 2 wrong input, or no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from pipeline import store
from pipeline.store import processes
from pipeline.types import Provider, UserError
from runs.gpu import page, results, shapes
from runs.gpu.machine import Machine
from runs.gpu.proof import Proof
from runs.gpu.stages import ROOT, Conductor, Stage


def main(arguments: list[str] | None = None) -> int:
    """Runs a proof; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with processes.stoppable():
            return _prove(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runs.gpu", description=__doc__)
    parser.add_argument("--shape", default="7b", help="7b, 13b or tiny")
    parser.add_argument("--provider", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--out", type=Path, help="folder of page, JSON and logs; evals/gpu/SHAPE-PROVIDER")
    parser.add_argument("--work", type=Path, help="folder of weights, graphs and engines; OUT/work")
    parser.add_argument("--sequences", type=int, help="timed of each length; 200, 10 of tiny")
    parser.add_argument("--no-int4", action="store_true", help="no engines with weights of 4 bits")
    parser.add_argument("--minutes", type=float, help="for everything; 120, 180 of 13b, 30 of tiny")
    parser.add_argument("--seconds", type=float, help="for one stage; 1200, 2400 of 13b, 400 of tiny")
    return parser


def _prove(options: argparse.Namespace) -> int:
    shape, provider = shapes.find(options.shape), _provider(options.provider)
    sequences = shape.sequences if options.sequences is None else options.sequences
    minutes = shape.minutes if options.minutes is None else options.minutes
    seconds = shape.seconds if options.seconds is None else options.seconds
    if min(sequences, minutes, seconds) <= 0:
        raise UserError("--sequences, --minutes and --seconds must be above 0")
    out: Path = (options.out or ROOT / "evals" / "gpu" / f"{shape.key}-{provider}").absolute()
    work: Path = (options.work or out / "work").absolute()
    for folder in (out / "logs", work):
        folder.mkdir(parents=True, exist_ok=True)
    for old in (out / "logs").glob("[0-9][0-9]-*.*"):
        old.unlink()
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    conductor = Conductor(work, out / "logs", float(seconds), 60 * float(minutes))
    looked = conductor.run(Stage("machine", (provider,), module="runs.gpu.machine"))
    if looked.output is None:
        raise UserError(looked.reason.removeprefix("exit 2: "))
    proof = Proof(shape, Machine(**looked.output), conductor, sequences, with_int4=not options.no_int4)
    conductor.after = lambda: _write(proof, out, started)
    proof.run()
    _write(proof, out, started)
    found = results.findings(proof)
    print(out / "proof.md")
    return 0 if page.passed(proof, found) else 1


def _provider(name: str) -> Provider:
    if name == "cuda":
        return "cuda"
    if name == "cpu":
        return "cpu"
    raise UserError(f"PROVIDER is cuda or cpu, not {name!r:.40}")


def _write(proof: Proof, out: Path, started: str) -> None:
    """Writes page and JSON, also after each stage: a run that is ended leaves what it found."""
    found = results.findings(proof)
    store.write_json(out / "proof.json", page.record(proof, found, started))
    with store.atomic(out / "proof.md") as temporary:
        temporary.write_text(page.markdown(proof, found, started), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
