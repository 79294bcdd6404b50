"""The page that compares runs."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from depure.evaluation.card import check_card
from depure.evaluation.shards import Shard
from depure.evaluation.statistics import difference
from depure.files import read_json
from depure.reporting import report
from depure.reporting.compare import render_compare
from depure.reporting.load import load_run


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def compare(*folders: Path) -> str:
    """The comparison alone, without the pages of its runs."""
    return render_compare([load_run(f) for f in folders], [f"{f.name}.html" for f in folders])


def correct(folder: Path) -> torch.Tensor:
    pieces = check_card(folder / "card.json", read_json(folder / "card.json"))
    names = [f"shards/{p.name}" for p in sorted((folder / "shards").iterdir())]
    shard = Shard.join([Shard.load(pieces, name)[0] for name in names])
    return shard.adversarial == shard.y[:, None]


def test_page_stands_above_the_runs_and_links_to_theirs(make_run, tmp_path):
    runs = [make_run("a b", title="First"), make_run("ä#?", title="Second", robust=0.8, seed=1)]
    path = report(runs, title="Which one?")
    assert path == tmp_path / "report.html"
    page = path.read_text()
    links = re.findall(r'href="([^"#]+)"', page)
    assert [(path.parent / unquote(link)).resolve() for link in links] == [
        run / "report.html" for run in runs
    ]
    assert all((run / "report.html").is_file() for run in runs)
    text = text_of(page)
    assert text.index("First") < text.index("Second")
    assert "Which one?" in text


def test_links_are_relative_to_the_file_asked_for(make_run, tmp_path):
    runs = [make_run("a"), make_run("b")]
    path = report(runs, out=tmp_path / "deep" / "er" / "x.html")
    assert path.name == "x.html"
    assert 'href="../../a/report.html"' in path.read_text()
    assert report(runs, out=tmp_path / "folder") == tmp_path / "folder" / "report.html"


def test_paired_difference_against_the_first(make_run):
    runs = [make_run("a", images=12), make_run("b", images=12, robust=0.9, seed=3)]
    e = difference(correct(runs[1]).numpy(), correct(runs[0]).numpy())
    text = text_of(compare(*runs))
    assert "against run 1" in text
    assert f"{100 * e.value:.1f} {100 * e.low:.1f} to {100 * e.high:.1f}" in text


def test_other_images_are_not_paired(make_run):
    runs = [make_run("a"), make_run("b", data_seed=1, fingerprint="another")]
    text = text_of(compare(*runs))
    assert "do not judge the same images" in text
    assert "against run 1" not in text
    assert "The same images in every run" not in text


def test_runs_without_shards(make_run):
    text = text_of(compare(make_run("a"), make_run("b", shards=False)))
    assert "against run 1" not in text
    assert "The same images in every run" not in text


def test_what_differs_is_said(make_run):
    runs = [
        make_run("a"),
        make_run("b", steps=50),
        make_run("c", knows=("forward", "reverse"), draws=1),
        make_run("d", exact=False),
    ]
    text = text_of(compare(*runs))
    assert "The attacks differ" in text
    assert "The attackers know different things" in text
    assert "Run 4 was attacked with approximate gradients" in text
    assert "The numbers of draws differ" in text
    assert "Attack: Iterations 1, 3, 4 10 2 50" in text


def test_equal_titles_are_told_apart(make_run):
    text = text_of(compare(make_run("a"), make_run("b")))
    assert "A made-up run (a)" in text
    assert "A made-up run (b)" in text


def test_many_runs_and_a_strange_title(make_run):
    evil = "<script>alert('$x')</script> " + "long " * 40
    runs = [make_run(f"r{i}", title=f"{evil}{i}", seed=i, robust=i / 6) for i in range(6)]
    page = compare(*runs)
    assert "<script" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_only_single_draws(make_run):
    runs = [make_run(n, draws=1, stages=()) for n in "ab"]
    assert "Every run was judged on one draw" in text_of(compare(*runs))


def test_refusals(make_run, tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        report([])
    run = make_run("a")
    with pytest.raises(ValueError, match="is the page of one of the runs"):
        report([run, run])
    with pytest.raises(FileNotFoundError, match=r"holds no card\.json"):
        report([run, tmp_path])
    assert not (run / "report.html").exists()  # nothing is written before all runs are read
