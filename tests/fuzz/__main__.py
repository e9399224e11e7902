"""`make fuzz`: hostile files of every kind, for minutes; prints counts by class and keeps what went wrong."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import kinds, mutations, paths
from tests.fuzz.kinds import Kind
from tests.fuzz.worker import ACCEPTED, FAULT, HANG, MEMORY, REFUSED, Outcome, Worker, outcome_of, scratch

COLUMNS = (REFUSED, ACCEPTED, FAULT, HANG, MEMORY)
BAD = (FAULT, HANG, MEMORY)


@dataclass
class Tally:
    """What became of the inputs.

    Attributes:
        counts: class → end → how many.
        faults: (input, how it ended) of those that are faults.
    """

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[tuple[str, Outcome]] = field(default_factory=list)

    def table(self) -> str:
        """The counts by class, and their sums."""
        rows = [(group, self.counts[group]) for group in self.counts]
        rows.append(("all", sum((count for _, count in rows), Counter[str]())))
        lines = [" | ".join(("class", "inputs tried", *COLUMNS))]
        lines += [
            " | ".join([group, str(count.total()), *(str(count[end]) for end in COLUMNS)])
            for group, count in rows
        ]
        return "\n".join(lines)


class Fuzz:
    """Runs inputs of all kinds.

    Args:
        folder: to work in.
        seed: of what is drawn.
        keep: where inputs that went wrong are put.
        only: a part of the kinds' names; all where it is empty.
    """

    def __init__(self, folder: Path, seed: int, keep: Path, only: str = "") -> None:
        self.folder, self.seed, self.keep = folder, seed, keep
        self.kinds = [kind for kind in kinds.every() if only in f"{kind.group}/{kind.name}"]
        self.worker = Worker(self.kinds)
        self.tally = Tally()
        for i, kind in enumerate(self.kinds):
            place = folder / str(i)
            place.mkdir()
            kind.build(place / "seed")
            shutil.copytree(place / "seed", place / "work", symlinks=True)
            # Here, so that what it imports is there in every child that is forked.
            outcome = outcome_of(kind, place / "work", self._free(i))
            # The files that SHIP.json of the samples speaks for are not there.
            assert outcome.end == ACCEPTED or "not what was shipped" in outcome.words, (kind.name, outcome)

    def run(self, name: str) -> Outcome:
        """Makes the input `KIND/FILE/NUMBER` and reads it."""
        number, _, rest = name.partition("/")
        file = rest.rpartition("/")[0]
        i = next(i for i, kind in enumerate(self.kinds) if f"{kind.group}:{kind.name}" == number)
        place, kind = self.folder / str(i), self.kinds[i]
        draw = random.Random(f"{self.seed}/{name}")
        data = (place / "seed" / file).read_bytes()
        work = place / "work" / file
        _remove(work)
        what = draw.random()
        if what < 0.1:
            paths.put(work, data, draw)
        else:
            form = "bytes" if what < 0.4 else kind.files[file]
            work.write_bytes(mutations.FORMATS[form](data, draw))
        outcome = self._read(i)
        self._count(name, kind, work, outcome)
        _remove(work)
        shutil.copy2(place / "seed" / file, work)
        return outcome

    def _count(self, name: str, kind: Kind, work: Path, outcome: Outcome) -> None:
        self.tally.counts[kind.group][outcome.end] += 1
        if outcome.end not in BAD:
            return
        self.tally.faults.append((name, outcome))
        target = self.keep / name.replace("/", "_").replace(" ", "-")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not work.is_symlink() and work.is_file() and work.stat().st_size < 2**24:
            shutil.copyfile(work, target)
        target.with_name(f"{target.name}.txt").write_text(
            f"{outcome.end}\n{outcome.words}\n", encoding="utf-8", errors="backslashreplace"
        )

    def _free(self, i: int) -> Path:
        free = self.folder / str(i) / "free"
        shutil.rmtree(free, ignore_errors=True)
        free.mkdir()
        return free

    def _read(self, i: int) -> Outcome:
        return self.worker.read(i, self.folder / str(i) / "work", self._free(i))

    def names(self) -> Iterator[str]:
        """Names of inputs without end: the classes take turns, and the kinds and files within them."""
        groups: dict[str, list[str]] = {}
        for kind in self.kinds:
            for file in kind.files:
                groups.setdefault(kind.group, []).append(f"{kind.group}:{kind.name}/{file}")
        count = 0
        while True:
            for sources in groups.values():
                yield f"{sources[count % len(sources)]}/{count}"
            count += 1


def _remove(path: Path) -> None:
    if not path.is_symlink() and path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # threads do not survive a fork
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument(
        "--inputs", type=int, help="so many in all, however long they take, instead of --seconds"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of CLASS/KIND")
    parser.add_argument(
        "--again", help="one input by its name, as a failed run prints it, with the same --seed"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("build/fuzz"), help="where inputs go that went wrong"
    )
    options = parser.parse_args()
    with scratch() as folder:
        fuzz = Fuzz(folder, options.seed, options.keep.absolute(), options.only)
        try:
            if options.again:
                outcome = fuzz.run(options.again)
                print(f"{options.again}: {outcome.end}\n{outcome.words}")
                return int(outcome.end in BAD)
            begun = time.monotonic()
            for count, name in enumerate(fuzz.names()):
                if count >= options.inputs if options.inputs else time.monotonic() - begun > options.seconds:
                    break
                fuzz.run(name)
        finally:
            fuzz.worker.close()
    print(fuzz.tally.table())
    for name, outcome in fuzz.tally.faults:
        print(f"\n--seed {options.seed} --again '{name}': {outcome.end}\n{outcome.words}")
    if fuzz.tally.faults:
        print(f"\n{len(fuzz.tally.faults)} inputs went wrong; they are in {options.keep}", file=sys.stderr)
    return int(bool(fuzz.tally.faults))


if __name__ == "__main__":
    sys.exit(main())
