"""What the tests of config.json share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models import config
from pipeline.models.config import Config
from pipeline.types import UserError

FILE = Path("graphs/tiny/config.json")
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
"""LongRoPE of the sizes of LONG_OUTSIDE."""
LONG_OUTSIDE = {"original_max_position_embeddings": 16, "hidden_size": 64, "num_attention_heads": 4}
Refused = tuple[str, dict[str, Any], str]
"""model_type, the keys of its config.json, and what the message says."""
Pair = tuple[str, dict[str, Any], dict[str, Any]]
"""model_type, keys as transformers 4 writes them, and as version 5 does."""


def read(model_type: str = "llama", **keys: Any) -> Config:
    """A config.json with these keys alone, as it is read."""
    return config.normalised({"model_type": model_type, **keys}, FILE)


def assert_refused(model_type: str, keys: dict[str, Any], why: str) -> None:
    """The message is one line that begins with the file."""
    with pytest.raises(UserError, match=why) as caught:
        config.normalised({"model_type": model_type, **keys}, FILE)
    assert str(caught.value).startswith(str(FILE)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def assert_same_meaning(pair: Pair) -> None:
    """To us, and in what transformers is given; their precisions aside."""
    model_type, old, new = pair
    one, other = read(model_type, **old), read(model_type, **new)
    ignored = {"dtype", "torch_dtype"}
    assert {k: v for k, v in one.items() if k not in ignored} == {
        k: v for k, v in other.items() if k not in ignored
    }
    given = config.for_transformers(one)
    assert given == config.for_transformers(other) and not ignored & set(given)
