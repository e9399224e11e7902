"""Moments on disk: whose they are, whether they are whole, and when they are gathered again."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from pipeline import store
from pipeline.calib.compensation import gathering, moment_files
from pipeline.calib.compensation.moment_files import MomentFiles, MomentsText
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.store import records
from pipeline.types import UserError

ATTN, MLP, RUN = (MapPlace.parse(name) for name in ("attn0", "mlp2", "block1-2"))


def unopened() -> Reference:
    raise AssertionError("nothing had to be gathered")


@pytest.fixture
def files(checkpoint: Checkpoint, text: MomentsText, reference: Reference) -> MomentFiles:
    return MomentFiles(checkpoint, text, lambda: reference)


def test_what_is_gathered_is_read_and_never_gathered_twice(
    files: MomentFiles, checkpoint: Checkpoint, text: MomentsText, reference: Reference
) -> None:
    files.make([ATTN, RUN])
    expected = gathering.gather(reference, text.fitted, [ATTN, RUN], lambda: None)
    assert files.folder == Path("calib/tiny/moments")
    for place in (ATTN, RUN):
        got, wanted = files.read(place), expected[place]
        np.testing.assert_array_equal(got.mapped.gram, wanted.mapped.gram)
        np.testing.assert_array_equal(got.mapped.cross, wanted.mapped.cross)
        assert (got.energy, got.stream) == (wanted.energy, wanted.stream)
        assert {name: rows.tobytes() for name, rows in got.held_tokens.items()} == {
            name: rows.tobytes() for name, rows in wanted.held_tokens.items()
        }
        assert (got.folded is None) == (place is ATTN) == ("y" not in got.held_tokens)
    assert files.read(RUN).between.tobytes() == expected[RUN].between.tobytes()  # type: ignore[union-attr]
    MomentFiles(checkpoint, text, unopened).make([RUN, ATTN])
    record = records.read(records.MomentsRecord, files.record(RUN))
    assert record.weights == checkpoint.identity and record.contents == checkpoint.contents
    assert record.place == "block1-2" and record.texts.origin == texts.OWN_NAME
    assert (record.samples, record.length, record.tokens) == (24, 16, 21 * 16)


def test_only_what_is_missing_is_gathered(files: MomentFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.make([ATTN])
    asked: list[list[MapPlace]] = []
    whole = gathering.gather

    def gather(reference: Any, tokens: Any, places: Any, advance: Any) -> Any:
        asked.append(list(places))
        return whole(reference, tokens, places, advance)

    monkeypatch.setattr(gathering, "gather", gather)
    files.make([ATTN, MLP, RUN])
    assert asked == [sorted([MLP, RUN])]
    files.memory = gathering.bytes_needed(64)
    files.file(MLP).write_bytes(files.file(MLP).read_bytes()[:-1])  # damaged
    files.file(RUN).unlink()
    files.make([ATTN, MLP, RUN])
    assert asked[1:] == [[place] for place in sorted([MLP, RUN])]


def test_moments_of_another_text_are_gathered_again_with_a_word(
    files: MomentFiles, checkpoint: Checkpoint, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    files.make([ATTN])
    Path("other.txt").write_text(texts.text()[40_000:90_000])
    other = MomentsText.cut(checkpoint, texts.TextInput((Path("other.txt"),)), 24, 16)
    with caplog.at_level(logging.WARNING):
        MomentFiles(checkpoint, other, lambda: reference).make([ATTN])
    assert (
        "attn0 are of other weights, tokens, --samples or --length, or damaged: gathered again" in caplog.text
    )
    record = json.loads(files.record(ATTN).read_text())
    assert record["texts"]["from"] == ["../../../other.txt"]
    assert not list(files.folder.glob(".*"))


def test_moments_that_were_named_must_be_of_this_model_and_text(
    files: MomentFiles, checkpoint: Checkpoint, text: MomentsText
) -> None:
    files.make([ATTN])
    given = Path("elsewhere")
    files.folder.rename(given)
    MomentFiles(checkpoint, text, unopened, given).make([ATTN])
    with pytest.raises(UserError, match=r"^elsewhere has no moments of mlp2 \(mlp2\.json\)"):
        MomentFiles(checkpoint, text, unopened, given).make([MLP])
    shorter = MomentsText.cut(checkpoint, texts.OWN, 23, 16)
    with pytest.raises(UserError, match="is of another text, or of other --samples"):
        MomentFiles(checkpoint, shorter, unopened, given).make([ATTN])
    other = dataclasses.replace(checkpoint)
    other.__dict__["identity"] = "content:" + "0" * 64
    with pytest.raises(UserError, match="is of other weights than"):
        MomentFiles(other, text, unopened, given).make([ATTN])
    (given / "attn0.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"not what attn0\.json describes"):
        MomentFiles(checkpoint, text, unopened, given).make([ATTN])


def test_moments_that_are_none_are_refused_though_their_digest_is_right(files: MomentFiles) -> None:
    files.make([ATTN, MLP])
    whole = load_file(files.file(MLP))

    def put(content: bytes) -> None:
        files.file(MLP).write_bytes(content)
        record = json.loads(files.record(MLP).read_text())
        files.record(MLP).write_text(json.dumps({**record, "sha256": store.sha256(files.file(MLP))}))

    put(save({**whole, "more": np.zeros(1)}))
    with pytest.raises(UserError, match=r"mlp2\.safetensors does not hold the moments of mlp2"):
        files.read(MLP)
    for name in whole:
        put(save({**whole, name: whole[name][:-1]}))
        with pytest.raises(UserError, match="does not hold the moments"):
            files.read(MLP)
        put(save({other: tensor for other, tensor in whole.items() if other != name}))
        with pytest.raises(UserError, match="does not hold the moments"):
            files.read(MLP)
    put(b"nothing")
    with pytest.raises(UserError, match=r"mlp2\.safetensors cannot be read"):
        files.read(MLP)
    put(save(whole))
    assert files.read(MLP).mapped.tokens == files.read(ATTN).mapped.tokens


def test_moments_that_were_summed_otherwise_are_gathered_again(
    files: MomentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.make([ATTN])
    before = files.record(ATTN).read_text()
    monkeypatch.setattr(gathering, "OUTLIER", 4.0)
    files.make([ATTN])
    assert files.record(ATTN).read_text() != before


def test_a_pass_that_is_killed_leaves_what_was_done_and_nothing_half_written(
    files: MomentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gathering.gather

    def gather(reference: Any, tokens: Any, places: Any, advance: Any) -> Any:
        if ATTN not in places:
            raise KeyboardInterrupt
        return whole(reference, tokens, places, advance)

    files.memory = gathering.bytes_needed(64)
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "gather", gather)
        with pytest.raises(KeyboardInterrupt):
            files.make([ATTN, MLP])
    assert sorted(path.name for path in files.folder.iterdir()) == ["attn0.json", "attn0.safetensors"]
    files.make([ATTN, MLP])
    assert files.read(MLP).mapped.tokens == files.read(ATTN).mapped.tokens


def test_a_text_with_fewer_tokens_than_unknowns_is_refused_before_a_pass(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match=r"give 120 to fit on.* needs 128: take --samples 10 or more"):
        MomentsText.cut(checkpoint, texts.OWN, 9, 16)
    moment_files.refuse_too_few(64, 10, 16)
    with pytest.raises(UserError, match="must be at least 2"):
        MomentsText.cut(checkpoint, texts.OWN, 1, 16)
    Path("short.txt").write_text("much too short " * 20)
    with pytest.raises(UserError, match=r"fills .* sequences of 16 tokens, not 40"):
        MomentsText.cut(checkpoint, texts.TextInput((Path("short.txt"),)), 24, 16)


def test_losses_are_reported_on_what_nothing_was_fitted_on(text: MomentsText) -> None:
    assert text.fitted.shape == (24, 16) and text.held_out.shape == (16, 16)
    np.testing.assert_array_equal(text.held_back, text.fitted[21:])
