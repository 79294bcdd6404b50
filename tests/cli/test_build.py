"""From words to parts: attacks, balls and samplers."""

import json

import click
import pytest

from depure.attacks import (
    APGD,
    FAB,
    LPA,
    MIPGD,
    PGD,
    PPGD,
    SPSA,
    DiffAttack,
    DiffHammer,
    FullIntermediate,
    LowFrequency,
    RayS,
    ReColorAdv,
    Square,
    StAdv,
    SubstituteAttack,
    Transfer,
    autoattack,
    strongest,
)  # fmt: skip
from depure.cli import attacks as cli_attacks
from depure.cli.attacks import build_attack, build_threat
from depure.cli.build import build_model, build_purifier, build_sampler
from depure.cli.evaluate import command
from depure.cli.options import ATTACKS
from depure.diffusion import Heun, Straight, VPDiscrete
from depure.networks.features.distance import FeatureDistance
from depure.purifiers import BPDA
from depure.threat import L1, L2, Flow, Linf, Perceptual, Threat
from depure.zoo import load_classifier
from depure.zoo.classifier import BUNDLED


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
        ("--attack rays --chunk 8", RayS()),
        ("--attack mi-pgd --eot 3", MIPGD(eot=3)),
        ("--attack diffattack --eot 3", DiffAttack(APGD(eot=3))),
        ("--attack diffattack-published --eot 3", DiffAttack(APGD(eot=3), balanced=False)),
        ("--attack full-intermediate --loss dlr", FullIntermediate(APGD(eot=20, loss="dlr"))),
        (
            "--attack full-intermediate-published",
            FullIntermediate(APGD(eot=20), balanced=False),
        ),
        ("--attack diffhammer --attack-steps 9", DiffHammer(steps=9)),
        ("--attack stadv --attack-steps 9", StAdv(steps=9)),
        ("--attack recolor --eot 2", ReColorAdv(eot=2)),
        ("--attack ppgd --loss ce", PPGD(loss="ce")),
        ("--attack lpa", LPA()),
        ("--attack low-frequency --eot 4", LowFrequency(eot=4)),
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
        ("--attack square --queries 9", "--queries is for autoattack, autoattack-stochastic"),
        ("--attack autoattack-rand --queries 9", "--queries is for autoattack"),
        ("--attack strongest --queries 9", "--queries is for autoattack"),
        ("--attack pgd --calls 9", "--calls is for strongest; the attack is pgd"),
        ("--perceptual-net digits", "add --ball perceptual"),
    ],
)
def test_settings_that_an_attack_lacks(line, message):
    with pytest.raises(ValueError, match=message):
        build_attack(options(line))


def test_every_name_is_known_to_both_sides():
    assert sorted(ATTACKS) == sorted((*cli_attacks._PRESETS, *cli_attacks._ENSEMBLES))


def test_attacks_on_something_simpler():
    model = build_model(options("--images 2 --steps 2"))[0]
    found = build_attack(options("--attack bpda --eot 3"), model)
    assert isinstance(found, SubstituteAttack)
    assert found.attack == PGD(50, eot=3, average="logits")
    assert found.source.purifier.backprop == Straight()
    assert found.source.classifier is model.classifier
    bare = build_model(options("--images 2 --denoiser none"))[0]
    assert isinstance(build_attack(options("--attack bpda"), bare).source.purifier, BPDA)
    found = build_attack(options("--attack transfer"), model)
    assert isinstance(found, Transfer)
    assert found.attack == APGD()
    assert found.classifier is model.classifier
    with pytest.raises(ValueError, match="the attack bpda is for `depure evaluate`"):
        build_attack(options("--attack bpda"))


def test_balls_that_belong_to_attacks():
    assert build_threat(options("--attack stadv")) == Threat(Flow(0.05))
    assert build_threat(options("--ball flow --eps 0.1")) == Threat(Flow(0.1))
    assert build_threat(options("--attack low-frequency")) == Threat(Linf(8 / 255))
    plain = FeatureDistance(load_classifier("digits"))
    assert build_threat(options("--attack lpa")).ball == Perceptual(plain, 0.5)
    other = FeatureDistance(load_classifier("digits-adversarial"))
    line = "--attack ppgd --eps 0.2 --perceptual-net digits-adversarial"
    assert build_threat(options(line)).ball == Perceptual(other, 0.2) != Perceptual(plain, 0.2)


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
    found = build_attack(options("--attack autoattack --queries 9"))
    assert found.members[-1].steps == 9
    few = build_attack(options("--attack strongest --calls 300 --knows forward"))
    assert few == strongest(300, Linf())
    with pytest.raises(ValueError, match="--eot does not apply to the attack strongest"):
        build_attack(options("--attack strongest --eot 2"))


def test_the_chunk_is_the_rows_of_a_pass(run, tmp_path):
    line = "evaluate --images 4 --steps 2 --eps 0.2 --draws 1 --check-images 0 --attack-steps 1"
    assert run(f"{line} --eot 2 --gradient-check none --chunk 3 --out a")[0] == 0
    assert json.loads((tmp_path / "a" / "chunk.json").read_text())["rows"] == 3


def test_images_that_someone_else_made_are_judged_alike(run, tmp_path):
    line = "evaluate --images 8 --steps 2 --eps 0.2 --draws 3 --check-images 0 --attack-steps 2"
    assert run(f"{line} --eot 2 --out a")[0] == 0
    assert run(f"{line} --adversarial a/shards/00000.safetensors --out b")[0] == 0
    a, b = (json.loads((tmp_path / n / "card.json").read_text())["results"] for n in "ab")
    assert a["robust"] == b["robust"]
    status, _, err = run(f"{line} --eps 0.05 --adversarial a/shards/00000.safetensors --out c")
    assert status == 1
    assert "ball" in err


def test_the_recipe_of_adbm_has_its_betas():
    """alpha_bar at index 100, from which it noises: 0.903694, not the 0.8951 of betas from 1e-4."""
    given = f"--data x --classifier resnet56:x --denoiser {BUNDLED / 'digits' / 'denoiser'}"
    purifier = build_purifier(options(f"--config adbm-cifar10-linf {given}"))
    schedule = purifier.denoiser.schedule
    assert schedule == VPDiscrete.linear(1000, 1e-6, 0.02)
    path = purifier.grid.path(schedule)
    assert path.times == (99, 79, 59, 39, 19, -1)
    assert path.alpha**2 == pytest.approx(0.903694, abs=1e-6)
    assert schedule.alpha_bar[99] == pytest.approx(0.905507, abs=1e-6)
    other = build_purifier(options(f"--config addt-cifar10-linf {given}"))
    assert other.denoiser.schedule.betas[0] == pytest.approx(1e-4)


def test_betas_go_with_discrete_schedules_alone():
    with pytest.raises(ValueError, match=r"--betas replaces .* discrete.*--sampler sde"):
        build_purifier(options("--betas 1e-6:0.02 --sampler sde"))


@pytest.mark.parametrize(
    "betas", ["1e-6", "0:0.02", "0.02:1e-4", "1e-6:1", "a:b", "1:2:3", "nan:1"]
)
def test_bad_betas_are_refused(betas):
    with pytest.raises(click.BadParameter, match="is not FIRST:LAST with 0 < FIRST"):
        options(f"--betas {betas}")
