"""From words to parts: attacks, balls and samplers."""

import json

import pytest

from depure.attacks import APGD, FAB, PGD, SPSA, RayS, Square, autoattack, strongest
from depure.cli.build import build_attack, build_sampler, build_threat
from depure.cli.evaluate import command
from depure.diffusion import Heun
from depure.threat import L1, L2, Linf, Threat


def options(line=""):
    return command.make_context("evaluate", line.split()).params


@pytest.mark.parametrize(
    ("line", "attack"),
    [
        ("", PGD()),
        ("--attack pgd200+eot20 --random-start", PGD(200, eot=20, random_start=True)),
        ("--attack-steps 7 --eot 3 --loss dlr --target runner_up --average logits",
         PGD(7, eot=3, loss="dlr", target="runner_up", average="logits")),
        ("--attack apgd-ce --restarts 2", APGD(eot=20, restarts=2)),
        ("--attack apgd-dlr --no-random-start", APGD(loss="dlr", eot=20, random_start=False)),
        ("--attack apgd-t --targets 3", APGD(loss="dlr", targets=3, eot=20)),
        ("--attack fab --attack-steps 50", FAB(steps=50, eot=20)),
        ("--attack square --attack-steps 10", Square(steps=10)),
        ("--attack spsa", SPSA()),
        ("--attack rays --chunk 8", RayS(chunk=8)),
    ],
)  # fmt: skip
def test_attacks(line, attack):
    assert build_attack(options(line)) == attack


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--attack square --loss dlr", "--loss does not apply to the attack square"),
        ("--attack apgd-ce --step-size 0.1", "--step-size does not apply"),
        ("--attack pgd --restarts 2", "--restarts does not apply"),
    ],
)
def test_settings_that_an_attack_lacks(line, message):
    with pytest.raises(ValueError, match=message):
        build_attack(options(line))


def test_threats():
    assert build_threat(options("--ball l1")) == Threat(L1(12.0))
    assert build_threat(options("--ball l2 --eps 1/4")) == Threat(L2(0.25))
    line = "--eps 0.1 --knows forward --pool 128"
    assert build_threat(options(line)) == Threat(Linf(0.1), ("forward",), 128)
    line = "--eps 0.1 --knows reverse,forward --mix 0.5"
    assert build_threat(options(line)) == Threat(Linf(0.1), ("forward", "reverse"), 1, 0.5)


def test_edm_samplers():
    assert build_sampler(options("--sampler edm")) == Heun()
    addt = build_sampler(options("--sampler edm --churn 6 --steps 50"))
    assert addt == Heun(0.12, 0.01, 0.46, 1.007)
    for line in ("--churn 6", "--sampler edm --clip-x0", "--sampler edm --eta 1"):
        with pytest.raises(ValueError, match="applies"):
            build_sampler(options(line))


def test_ensembles():
    found = build_attack(options("--attack autoattack-fixed --attack-steps 4 --eot 3"))
    assert found == autoattack("fixed", Linf(), steps=4, eot=3)
    found = build_attack(options("--attack autoattack --queries 9 --chunk 5"))
    assert [m.chunk for m in found.members] == [5] * 4
    assert found.members[-1].steps == 9
    few = build_attack(options("--attack strongest --calls 300 --knows forward"))
    assert few == strongest(300, Linf())
    with pytest.raises(ValueError, match="--eot does not apply to the attack strongest"):
        build_attack(options("--attack strongest --eot 2"))


def test_images_that_someone_else_made_are_judged_alike(run, tmp_path):
    line = "evaluate --images 8 --steps 2 --eps 0.2 --draws 3 --check-images 0 --attack-steps 2"
    assert run(f"{line} --eot 2 --out a")[0] == 0
    assert run(f"{line} --adversarial a/shards/00000.safetensors --out b")[0] == 0
    a, b = (json.loads((tmp_path / n / "card.json").read_text())["results"] for n in "ab")
    assert a["robust"] == b["robust"]
    status, _, err = run(f"{line} --eps 0.05 --adversarial a/shards/00000.safetensors --out c")
    assert status == 1
    assert "ball" in err
