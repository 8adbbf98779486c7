"""A length of training in steps, epochs or percent, as configurations write it."""

import dataclasses
import re

from hwa_jax.errors import UserError

_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training.

    Attributes:
        value: at least 0; a whole number of steps, any number of epochs or percent.
        unit: "steps", "epochs" or "percent" (of the whole training).

    Example:
        >>> Duration.parse("1.5 epochs").steps(steps_per_epoch=10)
        15
        >>> Duration.parse("25%").steps(steps_per_epoch=10, total_steps=80)
        20
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str | int, field: str = "duration") -> "Duration":
        """Reads "500 steps", "20 epochs" or "30%"; a whole number means steps.

        Args:
            text: what the configuration says.
            field: the configuration's field, for the message.

        Raises:
            UserError: anything else.
        """
        if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
            return cls(text, "steps")
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if not match:
            raise UserError(f'{field}={text!r}: write a duration as "500 steps", "20 epochs" or "30%"')
        value, unit = float(match[1]), match[2][:4]
        if unit == "step" and value != int(value):
            raise UserError(f"{field}={text!r}: steps are whole")
        return cls(value, {"step": "steps", "epoc": "epochs", "%": "percent"}[unit])

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """This length in optimizer steps, rounded to the nearest, halves up.

        Args:
            steps_per_epoch: of one particle.
            total_steps: of the whole training; percent needs it.

        Raises:
            ValueError: percent without `total_steps`.
        """
        if self.unit == "percent" and total_steps is None:
            raise ValueError("percent of what? pass total_steps")
        if self.unit == "percent":
            return int(self.value * total_steps / 100 + 0.5)
        return int(self.value * (steps_per_epoch if self.unit == "epochs" else 1) + 0.5)

    def times(self, factor: float) -> str:
        """A multiple of this length, as configurations write it.

        Example:
            >>> Duration.parse("2.5 epochs").times(2)
            '5 epochs'
            >>> Duration.parse("400000 steps").times(4)
            '1600000 steps'
        """
        value = self.value * factor
        return f"{int(value) if value == int(value) else value} {self.unit}"
