"""The contract's enumerations: its numbers, with names. Import them from `classifier.types`."""

from __future__ import annotations

import enum


class _Labelled(enum.IntEnum):
    """Numbers of the wire with names."""

    @property
    def label(self) -> str:
        """The name as data files, metrics and commands spell it."""
        return self.name.lower()


class Tier(_Labelled):
    """Tiers of model, cheapest first; the numbers are ordered and are the wire's.

    >>> Tier.SIMPLE < Tier.FRONTIER, Tier.parse("complex").label, Tier.COMPLEX.index
    (True, 'complex', 2)
    """

    SIMPLE = 1
    STANDARD = 2
    COMPLEX = 3
    FRONTIER = 4

    @property
    def index(self) -> int:
        """Column of this tier in an array of probabilities: 0 is the cheapest."""
        return int(self) - 1

    @classmethod
    def from_index(cls, index: int) -> Tier:
        """The tier of a column: 0 is the cheapest."""
        return cls(int(index) + 1)

    @classmethod
    def parse(cls, text: str) -> Tier:
        """The tier that `text` names, in any case.

        Raises:
            ValueError: no tier has that name.
        """
        try:
            return cls[text.strip().upper()]
        except KeyError:
            names = ", ".join(tier.label for tier in cls)
            raise ValueError(f"unknown tier {text[:32]!r}; the tiers are {names}") from None


TIERS: tuple[Tier, ...] = tuple(Tier)


class Reason(_Labelled):
    """Why the tier is what it is; the numbers are the wire's. UNSPECIFIED stands for what only a newer server knows."""

    UNSPECIFIED = 0
    MODEL = 1
    FLOOR = 2
    CEILING = 3
    TOP_TIER = 4
    EXPLORED = 5
    ROUTE = 6


class Verdict(_Labelled):
    """What became of the answer at the served tier; the numbers are the wire's."""

    ACCEPTED = 1
    REJECTED = 2
    ESCALATED = 3


class Cause(_Labelled):
    """Why; only QUALITY says anything about complexity. The numbers are the wire's."""

    QUALITY = 1
    AVAILABILITY = 2
    CONTEXT_WINDOW = 3
    POLICY = 4


class Source(_Labelled):
    """Who judged; the numbers are the wire's."""

    AUTOMATIC = 1
    USER = 2
    REVIEWER = 3
    JUDGE = 4


class OutcomeState(enum.IntEnum):
    """Whether an outcome's decision was already in the store; the numbers are the wire's."""

    JOINED = 1
    PENDING = 2
    DUPLICATE = 3
