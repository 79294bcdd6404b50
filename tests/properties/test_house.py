"""The house is kept within its bars, and the counts cannot be fooled by moving a breach."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.properties import house
from tests.properties.house import BARS, Source

FILES = house.sources()
ROOM = Source(
    Path("purifiers/diffpure.py"),
    "class DiffPure(Chained):\n    pass\n\nclass Other(DiffPure): ...",
)


@pytest.mark.parametrize("bar", BARS, ids=[bar.what for bar in BARS])
def test_counts_are_within_their_bars(bar):
    assert bar.goal <= bar.most
    assert bar.count(FILES) <= bar.most


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(p, DiffPure)",
        "isinstance(p, (Other, int))",
        "isinstance(p, Other | int)",
        "isinstance(p, purifiers.DiffPure)",
        "issubclass(type(p), DiffPure)",
        "type(p) is DiffPure",
        "p.__class__ == DiffPure",
        "type(p) in (DiffPure, Other)",
        "type(p).__name__ == 'DiffPure'",
        "match p:\n    case DiffPure():\n        pass",
        "match p:\n    case rooms.Other(steps=3):\n        pass",
        "from depure import DiffPure as D\nisinstance(p, D)",
        "KINDS = (DiffPure, Other)\nisinstance(p, KINDS)",
    ],
)
def test_a_question_for_a_class_is_counted_however_it_is_put(line):
    asking = Source(Path("evaluation/card.py"), line)
    assert house.purifiers_asked_for([ROOM, asking]) == 1


@pytest.mark.parametrize(
    "line", ["isinstance(p, Chained)", "DiffPure(p)", "type(p) is int", "x: DiffPure"]
)
def test_what_is_no_question_for_a_class_is_not_counted(line):
    assert house.purifiers_asked_for([ROOM, Source(Path("evaluation/card.py"), line)]) == 0


def test_a_purifiers_own_room_may_ask():
    asking = Source(Path("purifiers/other.py"), "isinstance(p, DiffPure)")
    assert house.purifiers_asked_for([ROOM, asking]) == 0


@pytest.mark.parametrize(
    "line",
    ["getattr(a, 'b')", "hasattr(a, 'b')", "vars(a)['b']", "vars(a).get('b')", "a.__dict__['b']"],
)
def test_settings_asked_for_by_name_are_counted(line):
    assert house.getattrs([Source(Path("a.py"), line)]) == 1


def test_exports():
    files = [
        Source(Path("a/one.py"), "class Thing: ...\n\ndef left(): ..."),
        Source(Path("a/__init__.py"), "from depure.a.one import Thing\n__all__ = ['Thing']"),
        Source(Path("__init__.py"), "from depure.a import Thing\n__all__ = ['Thing']"),
    ]
    assert house.exported_twice(files) == 0
    assert house.nowhere_exported(files) == 1
    other = Source(Path("b/__init__.py"), "class Thing: ...\n__all__ = ['Thing']")
    assert house.exported_twice([*files, other]) == 1


def test_cycles():
    a = Source(Path("a.py"), "from depure.b import y")
    b = Source(Path("b.py"), "from depure.a import x")
    assert house.cycles([a, b]) == 2
    assert house.cycles([a, Source(Path("b.py"), "def f():\n    from depure.a import x")]) == 0


def test_parameters():
    text = "def f(a, b, c, d, e, f, g, *, h): ..."
    assert house.wide_functions([Source(Path("a.py"), text)]) == 1
    method = "class A:\n    def f(self, a, b, c, d, e, f, g): ..."
    assert house.wide_functions([Source(Path("a.py"), method)]) == 0
