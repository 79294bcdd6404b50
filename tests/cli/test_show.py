"""What a user typed is printed as it was typed."""

import pytest
import torch

from depure.cli.show import console, progress_bar
from depure.data import digits, write_image

QUICK = "--images 2 --steps 1 --draws 2 --attack-steps 1 --eot 1 --check-images 0"


@pytest.mark.parametrize("text", ["[/b]", "[red]x", "[link=x", ":smile:", "\\[", "a[bold]b[/]"])
def test_nothing_is_read_as_markup(capsys, text):
    console().print(text)
    with progress_bar(text, 1) as progress:
        progress(1, 1)
    said = capsys.readouterr()
    assert said.out == f"{text}\n"
    assert text in said.err


def test_titles_and_paths_are_plain_text(run, tmp_path):
    status, out, _ = run(f"evaluate {QUICK} --title [/b][red]x --out r[/b]x")
    assert status == 0
    assert "[/b][red]x: accuracy in %" in out
    assert "report: r[/b]x/report.html" in out
    assert (tmp_path / "r[" / "b]x" / "report.html").exists()


def test_a_name_that_is_not_text_is_purified_like_the_others(run, tmp_path):
    image = digits("test").x[0]
    for name in ("a.png", "b\udcff.png"):
        write_image(image, tmp_path / "in" / name)
    status, out, err = run("purify in out\udcff --steps 1 --contact-sheet sheet.png")
    assert (status, err.count("Error")) == (0, 0)
    assert "purified 2 image(s) into out" in out
    assert sorted(p.name for p in (tmp_path / "out\udcff").iterdir()) == ["a.png", "b\udcff.png"]
    assert (tmp_path / "sheet.png").exists()
    assert torch.isfinite(image).all()


def test_threads_are_bounded_by_the_cores(fails):
    for threads in ("0", "99999", "-1", "²", "9" * 5000, "1e3"):
        fails(f"--threads {threads} evaluate {QUICK}", "--threads", "not a whole number from 1 to")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--memory-limit inf", "'--memory-limit'"),
        ("--memory-limit nan", "'--memory-limit'"),
        ("--memory-limit 0", "'--memory-limit'"),
        ("--part ²/²", "--part must be I/N"),
        ("--part 2/1", "--part must be I/N"),
        ("--backprop surrogate:²", "--backprop must be surrogate:STEPS"),
        ("--backprop surrogate:0", "--backprop must be surrogate:STEPS"),
        ("--device x", "device 'x' is not available"),
        ("--device meta", "device 'meta' is not available"),
        ("--eps 8", "did you mean 8/255?"),
        ("--ball l2 --eps 9", "largest L2 change"),
        ("--eta nan", "'--eta'"),
        ("--seed 9223372036854775808", "'--seed'"),
        ("--classifier small-cnn:none.safetensors", "--classifier: no weights at none.safetensors"),
        ("--denoiser nowhere", "--denoiser: no folder nowhere"),
        ("--data nowhere", "--data: nowhere does not exist"),
        ("--attack lpa --perceptual-net alexnet:a,b,c", "--perceptual-net must be alexnet:FILE"),
    ],
)
def test_an_option_is_named_where_it_enters(fails, tmp_path, option, said):
    fails(f"evaluate {QUICK} {option}", said)
    assert not list(tmp_path.iterdir())
