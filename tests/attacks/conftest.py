"""What tests of attacks share: watches that hand on what they hear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from depure.attacks import Expected, Watch


class Hearing(Watch):
    def __init__(self, note: Callable[[Expected], object]) -> None:
        self.note = note

    def iteration(self, measured: Expected) -> None:
        self.note(measured)


class HearingMembers(Watch):
    def __init__(self, note: Callable[[int, Tensor], object]) -> None:
        self.note = note

    def member(self, number: int, accuracy: Tensor) -> None:
        self.note(number, accuracy)


@pytest.fixture
def hear() -> type[Hearing]:
    """Makes a watch that hands each iteration to a function, such as a list's `append`."""
    return Hearing


@pytest.fixture
def hear_members() -> type[HearingMembers]:
    """Makes a watch that hands number and accuracy of each member to a function."""
    return HearingMembers
