"""The page of one run: its numbers are those of the card, and it survives every odd run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from depure.evaluation.card import keep_card
from depure.pieces import Pieces
from depure.reporting import report, save_figures

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Every tag is closed in order; text, links and sources are kept."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            # only pieces of the page itself are drawn upon
            if key in ("src", "xlink:href") and not str(value).startswith(("data:image/png", "#")):
                self.outside.append(str(value))
            assert not key.startswith("on")
        assert tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def words_of(path: Path) -> str:
    outline = Outline(path.read_text())
    assert outline.outside == []
    assert len(outline.ids) == len(set(outline.ids))
    return outline.words


def card_at(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "card.json").read_text()))


def rewrite(folder, card):
    """A card changed on purpose, with the seal that it would have."""
    keep_card(Pieces(folder, card["run"]["seal"]["run"]), card)


def test_numbers_of_the_card(make_run):
    folder = make_run(draws=7)
    text = words_of(report(folder))
    results = card_at(folder)["results"]
    for side in ("clean", "robust"):
        single = results[side]["accuracy"]
        for e in (single, results[side]["any_of_n"][6], results[side]["majority_of_k"][6]):
            assert f"{100 * e['value']:.1f} %" in text
            assert f"{100 * e['low']:.1f} to {100 * e['high']:.1f}" in text
    assert "Worst of 7 draws" in text
    assert "Majority vote of 7 draws" in text
    effect = results["effect"]
    assert f"{100 * effect['value']:.1f}" in text
    assert f"{100 * effect['low']:.1f} to {100 * effect['high']:.1f}" in text
    for part in ("54 172", "5417", "540", "30.1 s", "433 MiB", "3 × 10⁻⁷", "69.00 %"):  # noqa: RUF001
        assert part in text.replace("\u202f", " "), part


def test_every_setting_command_and_version_is_there(make_run):
    folder = make_run()
    text = words_of(report(folder))
    for part in (
        "made-up", "3: cat, dog, emu", "feedbeef00000001", "UNet(651,041 weights, epsilon",
        "DDPM(variance=small, clip_x0=False)", "Noised up to 0.1", "Denoising steps 10",
        "SmallCNN(65,834 weights)", "83fd0609f64d892d", "float32", "≤ 8/255", "3.14 % of its range",
        "nothing of the noise", "projected gradient ascent", "cross-entropy", "any wrong class",
        "depure evaluate --out run", "torch", "seed 7",
    ):  # fmt: skip
        assert part in text, part


def test_checks_show_words_and_signs(make_run):
    text = words_of(report(make_run()))
    for part in ("2 of 3 checks need attention: fresh draws, ball", "✓ passed", "! attention"):
        assert part in text, part
    assert "✗ failed" in text
    assert "All 1 checks" not in text


def test_user_data_is_escaped(make_run):
    evil = "<script>alert('$x$')</script> & <b>"
    folder = make_run(title=evil, command=evil, classes=("<i>cat", "dog", "emu"))
    page = report(folder).read_text()
    assert "<script" not in page
    assert page.count(html.escape(evil, quote=False).replace("'", "&#39;")) >= 3
    assert Outline(page).words.count(evil) >= 3


def test_title_given_wins(make_run):
    assert "Which sampler?" in words_of(report(make_run(), title="Which sampler?"))


def test_one_draw_says_so(make_run):
    known = make_run("known", draws=1, knows=("forward", "reverse"))
    text = words_of(report(known))
    assert "deterministic white-box, DW-box), so every draw would be the same" in text
    assert "Worst of 1" not in text
    assert "Majority vote of" not in text
    assert 'aria-label="Accuracy against' not in (known / "report.html").read_text()
    assert "The defence draws no noise" in words_of(report(make_run("id", draws=1, stages=())))
    assert "One draw was asked for" in words_of(report(make_run("one", draws=1)))


def test_no_trace_and_one_iteration(make_run):
    assert "recorded no iterations" in words_of(report(make_run("none", iterations=0)))
    assert "recorded no iterations" not in words_of(report(make_run("one", iterations=1)))


def test_single_image(make_run):
    text = words_of(report(make_run(images=1)))
    assert "1 image, 7 fresh draws each: few" in text


@pytest.mark.parametrize("shape", [(3, 12, 8), (4, 300, 200)])
def test_colours_and_sizes(make_run, shape):
    text = words_of(report(make_run(shape=shape)))
    assert ("shown reduced" in text) == (shape[1] > 200)


def test_two_draws_have_no_vote(make_run):
    text = words_of(report(make_run(draws=2)))
    assert "Worst of 2 draws" in text
    assert "Majority vote of 1" not in text


def test_more_draws_than_the_curves(make_run):
    text = words_of(report(make_run(draws=140)))
    assert "All 140 draws are used; the curves are drawn up to 128" in text
    assert "Worst of 128 draws" in text
    assert "Majority vote of 127 draws" in text


def test_without_pictures(make_run):
    assert "no pictures" in words_of(report(make_run(shards=False)))
    assert "Clean, purified" not in words_of(report(make_run("bare", examples=False)))


def test_approximate_gradient_warns(make_run):
    text = words_of(report(make_run(exact=False)))
    assert "approximate gradient, by choice" in text


def test_null_entries_of_a_gradient_check(make_run):
    folder = make_run()
    card = card_at(folder)
    card["gradient_check"]["finite_difference_error"] = None
    card["gradient_check"]["rows"][0] |= {"cosine": None, "sign_agreement": None}
    rewrite(folder, card)
    assert "not measured" in words_of(report(folder))


def test_settings_unknown_to_the_page_are_shown(make_run):
    folder = make_run()
    card = card_at(folder)
    card["setting"]["attack"] = {"name": "Square", "queries": 5000, "p_init": 0.8}
    card["setting"]["model"]["purifier"] = {
        "name": "Denoise",
        "networks": ["Net(3 weights)"],
        "strength": 0.5,
        "mode": "'a, (b'",
        "rule": {"name": "Rule", "depth": [1, 2]},
    }
    card["setting"]["threat"]["ball"] = {"name": "Patch", "side": 5}
    card["setting"]["mystery"] = [1, None]
    rewrite(folder, card)
    text = words_of(report(folder))
    for part in (
        "Square",
        "P init 0.8",
        "Net(3 weights)",
        "'a, (b'",
        "Rule(depth=1, 2)",
        "side 5",
        "1, default",
    ):
        assert part in text, part


def test_page_is_repeatable(make_run):
    folder = make_run()
    assert report(folder).read_bytes() == report(folder).read_bytes()


def test_missing_and_foreign_cards(make_run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no card\.json: finish the run with"):
        report(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report(tmp_path / "nowhere")
    folder = make_run()
    card = card_at(folder)
    (folder / "card.json").write_text(json.dumps(card | {"schema": "depure.card/9"}))
    with pytest.raises(ValueError, match=r"schema 'depure\.card/9', but this version"):
        report(folder)
    card["results"]["effect"]["value"] += 0.5
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"card\.json is damaged \(its checksum does not fit\)"):
        report(folder)
    del card["results"]["effect"]
    rewrite(folder, card)
    with pytest.raises(ValueError, match=r"card\.json is damaged \('effect' is missing"):
        report(folder)
    del card["run"]["seal"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"card\.json does not say which run"):
        report(folder)
    (folder / "card.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        report(folder)


def test_damaged_pictures(make_run):
    folder = make_run()
    (folder / "examples.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"examples\.safetensors is damaged"):
        report(folder)


def test_pieces_of_another_run_are_refused(make_run):
    folder, other = make_run(), make_run("other", data_seed=1, fingerprint="another")
    kept = (folder / "shards" / "00001.safetensors").read_bytes()
    for name in ("examples.safetensors", "shards/00001.safetensors"):
        shutil.copy(other / name, folder / name)
        with pytest.raises(ValueError, match=rf"{name} is part of another run"):
            report(folder)
        (folder / name).unlink()
    report(folder)
    (folder / "shards" / "00002.safetensors").write_bytes(kept)
    (folder / "shards" / "00001.safetensors").write_bytes(kept)
    with pytest.raises(ValueError, match=r"00002.safetensors is shards/00001\S+ of this run under"):
        report(folder)


def test_a_page_that_is_right_is_not_written_again(make_run):
    page = report(make_run())
    before = page.stat().st_ino
    assert report(page.parent).stat().st_ino == before
    page.write_text("old")
    assert "A made-up run" in report(page.parent).read_text()


def test_figures_for_papers(make_run):
    folder = make_run()
    paths = save_figures(folder)
    assert [p.name for p in paths] == ["accuracy.svg", "accuracy.png", "trace.svg", "trace.png"]
    assert all(p.stat().st_size > 1000 for p in paths)
    assert save_figures(make_run("bare", draws=1, iterations=0)) == []
    battery = save_figures(make_run("battery", members=("PGD", "Square"), iterations=0))
    assert [p.name for p in battery[2:]] == ["calls.svg", "calls.png"]


def test_an_ensemble_shows_accuracy_against_calls(make_run):
    folder = make_run("battery", members=("DiffHammer", "APGD"))
    text = words_of(report(folder))
    assert "Accuracy against calls" in text
    assert "each with a loss of its own" in text
    page = (folder / "report.html").read_text()
    drawn = page[page.index('aria-label="Accuracy against calls') :]
    assert ">DiffHammer<" in drawn
    assert ">APGD, ce<" in drawn
    plain = words_of(report(make_run("plain")))
    assert "Accuracy against calls" not in plain
    assert "each with a loss of its own" not in plain


def test_matplotlib_is_imported_late_and_pyplot_never(make_run):
    code = (
        "import sys, depure.reporting as r; assert 'matplotlib' not in sys.modules; "
        f"r.report({str(make_run())!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
