"""What a trained network takes and gives, as plain values: enough to use it without the data that trained it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from nasengine.errors import RunError
from nasengine.task import Shapes, Task

_RAW: Final = {"uint8": "images from 0 to 255", "float32": "numbers", "int64": "tokens"}


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Inputs and outputs of a network.

    Attributes:
        input: the shape of one input.
        outputs: how many numbers come out, one a class or one a target.
        vocabulary: how many tokens there are; 0 where the inputs are no tokens.
        dtype: of the inputs before they are standardised: uint8, float32 or int64.
        mean: of each channel, in the units of those inputs; empty for tokens.
        std: the standard deviation of each channel; empty for tokens.
        classes: the names of the classes or targets.
        regression: whether the outputs are numbers to predict in place of scores of classes.
        measure: the name of what the network was judged by.
        target_mean: of each target, in its own units; empty where targets were not standardised.
        target_std: the standard deviation of each target, likewise.
    """

    input: tuple[int, ...]
    outputs: int
    vocabulary: int
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    regression: bool
    measure: str
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    @classmethod
    def of(cls, task: Task) -> Interface:
        """That of the networks of a task."""
        data, shapes = task.dataset, task.shapes
        mean, std = ((), ()) if shapes.vocabulary else (tuple(moment.tolist()) for moment in task.normalisation)
        return cls(
            **vars(shapes),
            dtype=str(data.train_inputs.dtype).removeprefix("torch."),
            mean=mean,
            std=std,
            classes=data.classes,
            regression=data.is_regression,
            measure=task.measure.name,
            target_mean=data.target_mean,
            target_std=data.target_std,
        )

    @classmethod
    def read(cls, data: object, where: str) -> Interface:
        """What `plain` gave, `where` it is kept. Raises RunError if it is something else."""
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        try:
            known = {"target_mean", "target_std"}  # which older files do not have
            if not isinstance(data, Mapping) or not set(fields) - known <= set(data) <= set(fields):
                raise TypeError
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
            }
            found = cls(**values)
            found._check()
        except TypeError:
            raise RunError(
                f"{where} must say what the network takes and gives ({', '.join(fields)}), but does not; train the "
                "network again."
            ) from None
        return found

    def plain(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def shapes(self) -> Shapes:
        """What the network is built for."""
        return Shapes(self.input, self.outputs, self.vocabulary)

    @property
    def preprocessing(self) -> str:
        """In words what is done to the inputs before the network."""
        if self.vocabulary:
            return f"none: int64 tokens from 0 to {self.vocabulary - 1}"
        return f"(x - mean) / std in float32, by channel (dimension 1), x being {self.dtype} {_RAW[self.dtype]}"

    @property
    def postprocessing(self) -> str:
        """In words what is done to the outputs after the network."""
        if not self.regression:
            return "none: a score a class, the largest one is that of the class; softmax gives shares"
        if self.target_std:
            return "y * target_std + target_mean, by target, for the targets in their own units: y is standardised"
        return "none: the outputs are the targets as the data have them"

    def examples(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` random inputs as the network meets them: standard normal numbers, or tokens."""
        if self.vocabulary:
            return torch.randint(self.vocabulary, (count, *self.input), generator=rng)
        return torch.randn(count, *self.input, generator=rng)

    def _check(self) -> None:
        """Raises TypeError unless all fields are of their types."""
        whole = [*self.input, self.outputs, self.vocabulary]
        numbers = [*self.mean, *self.std, *self.target_mean, *self.target_std]
        if not all(type(value) is int for value in whole) or min(self.input, default=0) < 1:
            raise TypeError
        if not all(type(value) is float and math.isfinite(value) for value in numbers):
            raise TypeError
        if 0.0 in (*self.std, *self.target_std):
            raise TypeError
        if self.dtype not in _RAW or (self.dtype == "int64") != (self.vocabulary > 0):
            raise TypeError
        channels = 0 if self.vocabulary else self.input[0]
        if not {len(self.mean), len(self.std)} == {channels} or len(self.classes) != self.outputs:
            raise TypeError
        targets = {len(self.target_mean), len(self.target_std)}
        if targets != {0} and targets != {self.outputs}:
            raise TypeError
        texts = [self.measure, *self.classes]
        if not all(isinstance(text, str) for text in texts) or type(self.regression) is not bool:
            raise TypeError
