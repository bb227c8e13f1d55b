"""Ranges that flags of several benchmarks share: names of a pattern, tuples that are not empty."""

import re
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Matching:
    """The names that match a pattern as a whole.

    Attributes:
        pattern: The regular expression.
        words: What such a name is, as the message says it.
    """

    pattern: str
    words: str

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` unless the value is such a name."""
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"`{name}` must be {self.words}, got {value!r}.")


@dataclass(frozen=True)
class Some:
    """What a tuple must be: not empty."""

    def check_all(self, name: str, values: tuple) -> None:
        """Raises a `ValueError` unless there is a value."""
        if not values:
            raise ValueError(f"`{name}` must have at least one value, got none.")


HIDDEN = r"mlp_[1-9]\d*(x[1-9]\d*)*"
Mlp = Annotated[str, Matching(HIDDEN, "mlp_SIZExSIZE...")]
"""A flag's type: the name of a network of hidden layers, as `models.create` knows it."""
Perceptron = Annotated[str, Matching(f"logistic|{HIDDEN}", "logistic or mlp_SIZExSIZE...")]
"""A flag's type: the name of such a network, or of one without a hidden layer."""
