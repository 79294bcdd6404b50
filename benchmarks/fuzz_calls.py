"""What the fuzz types: every command with one or several odd options, and odd configurations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

LONG = "9" * 5000
HUGE = ("1000000000000", "9" * 25, LONG, "-" + "9" * 25)
# What is no plain finite number in any notation: to accept it is nonsense.
NO_NUMBER = (
    "nan", "-nan", "inf", "-inf", "Infinity", "1e99999999", "-1e99999999", "1/0", "0/0", "nan/1",
    "1/1e99999999", "²", "½", "1/²", "8\u2215255", "x", "1,5", "--", "1;ls", "0x", "1e", "1//2",
    "1/2/3", "None", "True", "[1]", "{}", "\udcff", "1\u00002",
)  # fmt: skip
NUMBERS = (
    "0", "-0", "-1", "-1e-3", "1e-400", "1e400", "-1e400", "1e999", "0.5", "1/2", "1_000", "٣",
    " 1", "", " ", "+1", "1e3", "0x10", "1e-99999999", "2.5", "255", *HUGE,
)  # fmt: skip
TEXTS = (
    "", " ", "[/b]", "[red]x[/red]", "a[/]b", "[link=x", "\\[", "../x", "a/../../b", "/", ".",
    "..", "/dev/null", "/dev/null/x", "/proc/x", "n" * 300, LONG, "\udcff", "x\udcff.png",
    "a\u0000b", "-", "~", "%s%n", "{0}", "a\nb", "é", "🦆", "\u202e", "<script>", "&amp;", "none",
    "NONE", "digits", "digits:", ":", "::", "=", "a=", "=a", ",", ",,", "²", "nan", "1/0", "0",
    "-1", "junk.txt", "empty", "nothing/there", "resnet20", "resnet20:", "resnet20:junk.txt",
    "resnet20:empty", "resnet²:x", "resnet0", "resnet" + "9" * 20, "small-cnn:junk.txt",
    "small-cnn:empty", "small-cnn-²", "small-cnn-0", "small-cnn--1", "small-cnn-" + "9" * 20,
    "wrn-0-0", "wrn-28-0:junk.txt", "wrn-²-²:x", "wrn-10-" + "9" * 20,
    "wrn-" + "9" * 20 + "-1:junk.txt", "alexnet:junk.txt", "alexnet:a,b,c", "vgg16:",
    "surrogate:²", "surrogate:0", "surrogate:" + LONG, "full:1", "cuda:99", "cuda:²", "cuda:-1",
    "meta", "cpu:7", "x", "²/²", "0/0", "2/1", "1/" + "9" * 30, "forward", "forward,forward",
    "sideways", "8,8", "8,²", "8,-8", "0", "8," + "9" * 30, "7", "1e99999999", "inf",
)  # fmt: skip
OUT = "out"

_EVALUATE = ("--images 2 --steps 1 --draws 2 --attack-steps 1 --eot 1 --check-images 0", OUT)
_TRAIN = ("--images 16 --updates 2 --batch 8 --save-every 1", OUT)
_LOOK = ("--images 2 --steps 1 --draws 2 --attack-steps 1 --eot 1", OUT)
BASES: dict[str, tuple[str, str]] = {
    "evaluate": _EVALUATE, "verify-gradient": ("--images 1 --steps 1 --approximations none", ""),
    "purify": ("pictures cleaned --steps 1", ""), "report": ("run", ""), "demo": ("--help", ""),
    "train classifier": (_TRAIN[0] + " --arch small-cnn-8", OUT),
    "train adversarial": (_TRAIN[0] + " --arch small-cnn-8 --attack-steps 1", OUT),
    "train diffusion": (_TRAIN[0] + " --widths 8,8", OUT),
    "train addt": (_TRAIN[0] + " --iterations 1", OUT),
    "analyse stochasticity": (_LOOK[0] + " --levels 0 --pools 1", OUT),
    "analyse landscape": (_LOOK[0] + " --points 3", OUT),
    "analyse trajectories": (_LOOK[0], OUT),
    "analyse purification": (_LOOK[0] + " --t-stars 0.1 --grid-steps 1", OUT),
    "analyse gradients": (_LOOK[0] + " --eots 1 --reference 2", OUT),
    "analyse transfer": (_LOOK[0] + " --seeds 0", OUT),
    "analyse quality": ("--images 16 --steps 1", OUT),
    "analyse explain": (_LOOK[0] + " --points 3", OUT),
}  # fmt: skip
FIXTURES = ("pictures", "run", "junk.txt", "empty", "model", "small.safetensors")


@dataclass(frozen=True)
class Case:
    """One call: what is typed, what lies in its folder, and what its outcome must show."""

    kind: str
    argv: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # an error must name one of them
    absurd: bool = False  # to accept it is nonsense
    inside: str = ""  # new files may only appear below this folder
    shown: str = ""  # what a success must print as it was typed
    files: tuple[str, ...] = FIXTURES
    change: Callable[[Path], None] | None = field(default=None, compare=False)
    code: str = ""  # Python instead of a command line


def command_of(root: click.Group, name: str) -> click.Command:
    """The click command of a name such as "train addt"."""
    found: click.Command = root
    for word in name.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None, name
        found = inner
    return found


def _kind_of(option: click.Parameter) -> str:
    name = type(option.type).__name__
    if name in ("Choice",):
        return "choice"
    if option.name in ("levels", "pools", "t_stars", "grid_steps", "eots", "seeds"):
        return "list"
    if isinstance(option, click.Option) and option.is_flag:
        return "flag"
    return (
        "number"
        if name in ("Number", "Count", "IntRange", "FloatRange", "IntParamType", "FloatParamType")
        else "text"
    )


def options_of(command: click.Command) -> list[click.Option]:
    """Those that take a value, but for --config, which has cases of its own."""
    found = [p for p in command.params if isinstance(p, click.Option)]
    return [p for p in found if _kind_of(p) != "flag" and p.name not in ("config", "preset")]


def _value(option: click.Option, rng: random.Random) -> tuple[str, bool]:
    """A value for the option, and whether accepting it would be nonsense."""
    kind = _kind_of(option)
    if kind in ("number", "list"):
        if option.name == "channels" or rng.random() < 0.6:
            return rng.choice(NO_NUMBER), True
        value = rng.choice(NUMBERS)
        if option.name in ("eps", "check_eps"):
            return value, value in ("0", "-0", "-1", "-1e-3", "1e-400", "1e400", "255", "2.5")
        return value, value in ("", " ", "1e400", "-1e400", "1e999") and kind == "number"
    if kind == "choice":
        return rng.choice(TEXTS[:60]), False
    return rng.choice(TEXTS), False


def _line(command: str, extra: Sequence[str], out: str = "") -> tuple[str, ...]:
    text, default = BASES[command]
    folder = ("--out", default) if default and "--out" not in extra else ()
    if command == "demo" and extra:
        text = "--quick"  # the odd option must stop it: no row is computed
    return (*command.split(), *text.split(), *folder, *extra)


def option_case(root: click.Group, rng: random.Random) -> Case:
    """A command with one odd option, seldom two or three."""
    name = rng.choice([c for c in BASES if c != "demo"])
    options = options_of(command_of(root, name))
    chosen = rng.sample(options, min(len(options), rng.choice((1, 1, 1, 1, 2, 3))))
    if name.startswith("evaluate") and rng.random() < 0.15:
        chosen = [
            o
            for o in options
            if o.name
            in ("title", "out", "part", "backprop", "perceptual_net", "classifier", "memory_limit")
        ]
        chosen = [rng.choice(chosen)]
    words: list[str] = []
    absurd = False
    names: list[str] = []
    for option in chosen:
        value, nonsense = _value(option, rng)
        absurd |= nonsense
        words += [f"{option.opts[0]}={value}"]
        names += [option.opts[0], str(option.name), option.opts[0].strip("-").replace("-", " ")]
        names += [value] if value.strip() else []
    title = next((w[8:] for w in words if w.startswith("--title=")), "")
    shown = title.strip() if name == "evaluate" and len(chosen) == 1 and len(title) < 30 else ""
    return Case(f"option: {name}", _line(name, words), tuple(names), absurd, shown=shown)


def beside_case(root: click.Group, rng: random.Random) -> Case:
    """A name beside that could leave the folder, or be taken for markup."""
    name = rng.choice(["analyse explain", "analyse transfer", "analyse stochasticity"])
    odd = (
        "../x", "../../y", "/tmp/depure-fuzz-escape", "a/../../../z", "..", ".", "[/b]",
        "\udcff", "a\u0000b", "n" * 300, " ", "a b", "ADDT",
    )  # fmt: skip
    value = rng.choice(odd)
    return Case("beside", _line(name, [f"--beside={value}=digits-addt"]), ("--beside",), inside=OUT)


def main_case(root: click.Group, rng: random.Random) -> Case:
    """Options before the command, unknown commands, missing and surplus arguments, help."""
    threads = rng.choice((*NO_NUMBER, *NUMBERS, "99999", "100000000", "2147483648"))
    lines: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("--threads", threads, *_line("verify-gradient", [])), ("threads",)),
        ((rng.choice(TEXTS),), ("command",)),
        ((*rng.choice(list(BASES)).split(), rng.choice(TEXTS)), ("",)),
        ((*rng.choice(list(BASES)).split(), "--" + rng.choice(TEXTS)), ("",)),
        ((*rng.choice(list(BASES)).split(), "--help"), ("",)), (("report",), ("RUNS",)),
        (("report", rng.choice(TEXTS), "--out", rng.choice(TEXTS)), ("",)),
        (("report", "run", "--out", rng.choice(TEXTS)), ("",)),
        (("report", "run", "run", "--title", rng.choice(TEXTS)), ("",)),
        (("purify", rng.choice(TEXTS), rng.choice(TEXTS), "--steps", "1"), ("",)),
        (("purify", "pictures", rng.choice(TEXTS), "--steps", "1"), ("",)),
        (("demo", "--jobs", rng.choice(NO_NUMBER)), ("jobs",)),
        (("demo", f"--what={rng.choice(TEXTS)}"), ("what",)),
    ]  # fmt: skip
    argv, names = rng.choice(lines)
    return Case(
        "main", argv, names, absurd=argv[0] in ("--threads", "demo") and argv[-1] in NO_NUMBER
    )


def _bomb(levels: int = 9) -> str:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"title: *a{levels - 1}"])


def _inline_bomb(levels: int = 9) -> str:
    text = "&z0 [x,x,x,x,x,x,x,x,x,x]"
    for i in range(1, levels):
        text = f"&z{i} [{text},{','.join([f'*z{i - 1}'] * 9)}]"
    return f"title: {text}"


CONFIGS: tuple[Any, ...] = (
    _bomb(), _inline_bomb(), _inline_bomb(8), "title: &a [*a]", "a: &a {b: *a}",
    "title: " + "[" * 3000, "title: " + "{a: " * 3000, "title: " + "[" * 200 + "]" * 200,
    "null: 1", "[1]: 2", "? [a]\n: 1", "1: 2", "~", "", "# nothing", "- 1", "x", "3", "eps",
    "eps:", "eps: null", "eps: {a: 1}", "eps: [1, 2]", "eps: .nan", "eps: .inf", "eps: -.inf",
    "eps: true", "eps: 1e99999999", "eps: 8/0", "eps: 255", "eps: -1", "eps: 1:30",
    "eps: 2020-01-01", "eps: 2020-99-99", "seed: " + LONG, "seed: 0x" + "f" * 6000,
    "seed: 1:2:3:4", "seed: 0o17", "seed: ²", "steps: true", "steps: [1]", "steps: 1.5",
    "draws: -1", "draws: " + "9" * 30, "threads: 3", "help: 1", "config: c.yaml",
    'title: "a\\0b"', 'out: "a\\0b"', 'denoiser: "a\\0b"', 'classifier: "small-cnn:a\\0b"',
    'data: "a\\0b"', 'out: "[/b]"', 'title: "\\ud83d"', 'title: "\\udcff"', "title: '[/b]'",
    "data: [a, b]", "knows: [forward, reverse]", "knows: {a: b}", "knows: [[forward]]",
    "knows: 1", "join: nothing", "join: [a, b]", "join: null", "title: !!binary x",
    "title: !!binary AAAA", "title: !!int x", "title: !!float x", "title: !!bool x",
    "title: !!null x", "title: !!timestamp x", "title: !!set {a, b}", "title: !!omap [1]",
    "title: !!pairs [1]", "title: !!str [1]", "title: !!map [1]", "title: !!seq {a: 1}",
    "title: !!python/name:os.system ''", "title: =", "<<: 1", "<<: [1]", "title: *nothing",
    "title: &a", "%YAML 9.9\n---\ntitle: x", "title: a\n---\ntitle: b", "title: a\ntitle: b",
    "\ttitle: a", "title: 'a", 'title: "\\x"', "title: |\n a\n b", "clip-x0: maybe",
    "clip-x0: 2", "clamp: yes", "random-start: [yes]", "eps: ''", "eps: ' '", "attack: null",
    "attack: [pgd]", "attack: 3", "ball: [linf]", "device: [cpu]", "part: 1/1", "part: ²/²",
    "images: 2020-01-01", "mix: 1e-999999999", "t-star: 1e-99999999", "memory-limit: .inf",
    "memory-limit: .nan", "memory-limit: -1", "backprop: surrogate:²", "adversarial: junk.txt",
    b"\xff\xfe\x00", b"title: \xff", b"\x00", "\ufefftitle: a", "title: a".encode("utf-16"),
    b"\x89PNG\r\n", b"eps: \x01", "x" * 200_000, "title: " + "y" * 200_000,
    "\n".join(f"k{i}: {i}" for i in range(20_000)),
)  # fmt: skip


def config_case(root: click.Group, rng: random.Random) -> Case:
    """A configuration that is odd, damaged or hostile; seldom a folder or another kind of file."""
    if rng.random() < 0.08:
        value = rng.choice((*TEXTS[:35], "pictures", "small.safetensors", "run/card.json"))
        return Case("config", _line("evaluate", [f"--config={value}"]), ("--config", value))
    command = rng.choice(["evaluate"] * 5 + ["purify", "verify-gradient", "train classifier"])
    text = rng.choice(CONFIGS)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")

    def change(folder: Path) -> None:
        (folder / "c.yaml").write_bytes(data)

    absurd = any(word in data[:40] for word in (b".nan", b".inf", b"1e99999999", b"eps: 255"))
    key = data[:20].split(b":")[0].decode("utf-8", "replace")
    return Case(
        "config",
        _line(command, ["--config=c.yaml"]),
        ("c.yaml", f"--{key}", key),
        absurd and command == "evaluate" and key != "memory-limit",
        change=change,
    )
