"""The projections that write to the residual stream, which a matrix can be folded into.

Legend: C hidden size, I inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pipeline.calib.compensation import maps
from pipeline.calib.compensation.gathering import Array
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.reference import Reference
from pipeline.models.safetensors_index import torch_dtype
from pipeline.models.sizes import rules_of
from pipeline.types import Sublayer, UserError


class Projections:
    """The last matrices of a whole model's sublayers.

    Args:
        checkpoint: the model.
        reference: the same, loaded.
    """

    def __init__(self, checkpoint: Checkpoint, reference: Reference) -> None:
        self.checkpoint, self.reference = checkpoint, reference
        self.rules = rules_of(checkpoint.config.get("model_type"))

    def refusal(self, sublayer: Sublayer | None) -> str:
        """Why nothing can be folded into a sublayer's projection; '' where it can.

        Args:
            sublayer: one that is there; None: there is none before the place.
        """
        if sublayer is None:
            return "no sublayer that is there writes to the stream before it"
        if self.rules.norms(sublayer[1])[1] is not None:
            return f"a norm stands behind the projection of layer {sublayer[0]}'s {sublayer[1]}"
        try:
            module = self.reference.model.get_submodule(self._name(sublayer))
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear) or self.weight(sublayer) not in self.checkpoint.tensors:
            return f"no projection of the name {self._name(sublayer)} is in the model"
        return ""

    def weight(self, sublayer: Sublayer) -> str:
        """Name of the weight of a sublayer's projection."""
        return f"{self._name(sublayer)}.weight"

    def folded(self, totals: Mapping[Sublayer, Array]) -> dict[str, torch.Tensor]:
        """The weights and biases of projections that write y + yM instead of y, in the checkpoint's dtype.

        Args:
            totals: sublayer → M [C, C].

        Raises:
            UserError: a weight outgrows the checkpoint's dtype.
        """
        tensors: dict[str, torch.Tensor] = {}
        for sublayer, matrix in totals.items():
            module = self.reference.model.get_submodule(self._name(sublayer))
            for part in ("weight", "bias"):
                if (tensor := getattr(module, part)) is not None:
                    name = f"{self._name(sublayer)}.{part}"
                    tensors[name] = self._stored(
                        name, maps.folded(tensor.detach().cpu().double().numpy(), matrix)
                    )
        return tensors

    def _stored(self, name: str, values: Array) -> torch.Tensor:
        stored = self.checkpoint.tensors[name]
        if (dtype := torch_dtype(stored)) is None:
            raise UserError(
                f"{name} is stored as {stored.dtype}, into which nothing can be folded; take --with linear"
            )
        tensor = torch.from_numpy(values).to(dtype)
        if not tensor.isfinite().all():
            raise UserError(f"{name} outgrows {stored.dtype} once it is folded into; take --with linear")
        return tensor

    def _name(self, sublayer: Sublayer) -> str:
        layer, kind = sublayer
        return f"{self.rules.layers}.{layer}.{self.rules.writers[kind == 'mlp']}"
