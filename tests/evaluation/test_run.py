"""The evaluation: resumable, mergeable, independent of batch, chunk and shard sizes."""

import dataclasses
import errno
import json
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from depure.attacks import (
    APGD,
    FAB,
    PGD,
    DiffAttack,
    DiffHammer,
    Ensemble,
    LowFrequency,
    Square,
    SubstituteAttack,
    Transfer,
    autoattack,
)
from depure.data import Images, digits
from depure.defences import Defended
from depure.evaluation import Evaluation, evaluate
from depure.evaluation.checks import _doubled
from depure.evaluation.gradient_check import verify_gradient
from depure.evaluation.gradient_check.proposal import check_at_proposals
from depure.noise import Noise
from depure.pieces import Pieces, read_config
from depure.purifiers import BPDA, Identity, Purifier
from depure.threat import Linf, Threat
from depure.zoo import load_classifier


class Jitter(Purifier):
    """Two noise stages, cheap."""

    stages = ("forward", "reverse")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        z = noise.normal("forward", 0, x) + noise.normal("reverse", 0, x)
        return x + 0.2 * z


class Cut(Jitter):
    """No gradient."""

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            return torch.sin(3 * super().purify(x, noise))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(3, 16, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) - 0.5) @ self.w.T


@pytest.fixture
def images():
    x = torch.rand(22, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = Head()(x).argmax(1)
    return Images(x, y, torch.arange(100, 122), ("a", "b", "c"), "toy")


MODEL = Defended(Jitter(), Head())
ATTACK = PGD(steps=3, eot=2)
THREAT = Threat(Linf(0.1))
SETTINGS = {"draws": 6, "shard_size": 5, "check_images": 4}


def stable(card):
    """The card without what a clock or a machine decides."""
    return {k: v for k, v in card.items() if k not in ("run", "command")}


def test_tables_and_card(images, tmp_path):
    result = evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "run", **SETTINGS)
    shard, card = result.shard, json.loads((tmp_path / "run" / "card.json").read_text())
    assert shard.clean.shape == shard.adversarial.shape == (22, 6)
    assert shard.loss.shape == (22, 3)
    assert shard.index.tolist() == images.index.tolist()
    assert THREAT.ball.contains(shard.x_adv, images.x).all()
    correct = (shard.adversarial == shard.y[:, None]).double().mean()
    assert card["results"]["robust"]["accuracy"]["value"] == pytest.approx(float(correct))
    assert result.robust.low < result.robust.value < result.clean.value
    assert card["cost"]["classifier_calls"] == 22 * (3 * 2 + 2 * 6)
    assert {c["name"] for c in card["checks"]} >= {"gradient", "ball", "transfer", "more steps"}
    assert all(c["verdict"] != "fail" for c in card["checks"])


def test_judging_draws_are_fresh_and_the_null_control_shares_them(images):
    result = evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS)
    judge = Noise.of(0, images.index).fold("judge").draws(6)
    rows = images.x.repeat_interleave(6, 0)
    expected = MODEL(rows, judge).argmax(1).view(22, 6)
    assert torch.equal(result.shard.clean.long(), expected)
    rows = result.shard.x_adv.repeat_interleave(6, 0)
    expected = MODEL(rows, judge).argmax(1).view(22, 6)
    assert torch.equal(result.shard.adversarial.long(), expected)


def test_sizes_do_not_change_outcomes(images):
    base = evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS).shard
    other = evaluate(MODEL, images, ATTACK, THREAT, **{**SETTINGS, "shard_size": 22}, chunk=3).shard
    assert torch.equal(base.adversarial, other.adversarial)
    assert torch.equal(base.clean, other.clean)
    torch.testing.assert_close(base.x_adv, other.x_adv)
    some = images[[4, 3, 17]]
    alone = evaluate(MODEL, some, ATTACK, THREAT, **SETTINGS).shard
    assert torch.equal(alone.adversarial, base.adversarial[[4, 3, 17]])


def test_known_noise_is_shared_by_attacker_and_judge(images):
    both = evaluate(MODEL, images, ATTACK, Threat(Linf(0.1), ("forward", "reverse")), **SETTINGS)
    assert both.shard.clean.shape == (22, 1)  # all draws coincide
    locked = Noise.of(0, images.index).lock("forward", "reverse")
    expected = MODEL(both.shard.x_adv, locked.fold("anything")).argmax(1)
    assert torch.equal(both.shard.adversarial[:, 0].long(), expected)
    # The attacker saw the very loss that the judge sees.
    loss = nn.functional.cross_entropy(MODEL(images.x, locked), images.y, reduction="none")
    torch.testing.assert_close(both.shard.loss[:, 0], loss.detach())
    forward = evaluate(MODEL, images, ATTACK, Threat(Linf(0.1), ("forward",)), **SETTINGS)
    assert forward.shard.clean.shape == (22, 6)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, and the folder of one with another seed; copy before changing."""
    folder = tmp_path_factory.mktemp("whole")
    x = torch.rand(22, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = Images(x, Head()(x).argmax(1), torch.arange(100, 122), ("a", "b", "c"), "toy")
    for seed in (0, 1):
        evaluate(MODEL, data, ATTACK, THREAT, out=folder / f"{seed}", seed=seed, **SETTINGS)
    return folder


PIECES = (
    "shards/00002.safetensors", "checks-4.json", "gradient_check.json", "examples.safetensors",
)  # fmt: skip


def again(images, out, **changes):
    return evaluate(MODEL, images, ATTACK, THREAT, out=out, **{**SETTINGS, **changes})


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_of_another_run_is_refused_by_name_and_can_be_computed_again(
    name, images, whole, tmp_path
):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    shutil.copy(whole / "1" / name, out / name)
    before = {p: p.read_bytes() for p in out.rglob("*.*")}
    with pytest.raises(ValueError, match=rf"{name} is part of another run .* delete this file"):
        again(images, out)
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == before
    (out / name).unlink()
    kept = {p: p.stat().st_ino for p in out.rglob("*.*")}
    again(images, out)
    assert {p: p.stat().st_ino for p in out.rglob("*.*") if p != out / name} == kept
    assert (out / name).exists()
    assert json.loads((out / "card.json").read_text()) == json.loads(
        (whole / "0" / "card.json").read_text()
    )


@pytest.mark.parametrize("name", PIECES)
def test_a_flipped_bit_is_noticed_by_name(name, images, whole, tmp_path):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    content = bytearray((out / name).read_bytes())
    content[-30] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        again(images, out)


def test_the_same_shard_twice_and_two_swapped(images, whole, tmp_path):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    first, second = (out / "shards" / f"0000{i}.safetensors" for i in (0, 1))
    other = second.read_bytes()
    second.write_bytes(first.read_bytes())
    said = r"00001\.safetensors is shards/00000\.safetensors of this run under another name"
    with pytest.raises(ValueError, match=said):
        again(images, out)
    first.write_bytes(other)
    with pytest.raises(ValueError, match=r"00000\.safetensors is shards/00001\.safetensors"):
        again(images, out)


def test_checks_of_other_images_are_not_those_asked_for(images, whole, tmp_path):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    shutil.copy(out / "checks-4.json", out / "checks-3.json")
    with pytest.raises(ValueError, match=r"checks-3\.json is checks-4\.json of this run"):
        again(images, out, check_images=3)


def test_shards_of_another_format_are_refused_by_name(images, whole, tmp_path):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    shard = out / "shards" / "00001.safetensors"
    save_file(load_file(shard), shard, {"cost": "{}"})
    with pytest.raises(ValueError, match=r"00001\.safetensors does not say which run"):
        again(images, out)


def test_what_is_joined_is_verified(images, whole, tmp_path):
    def run(folder):
        found = Evaluation(MODEL, images, ATTACK, THREAT, tmp_path / folder, **SETTINGS)
        found.prepare()
        return found

    part = run("part")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: join the folder of a run"):
        part.join([tmp_path])
    with pytest.raises(ValueError, match=r"another configuration \(seed: 1, now 0\)"):
        part.join([whole / "1"])
    wrong = shutil.copytree(whole / "0", tmp_path / "wrong")
    name = "shards/00003.safetensors"
    shutil.copy(whole / "1" / name, wrong / name)
    with pytest.raises(ValueError, match=rf"wrong/{name} is part of another run"):
        part.join([wrong])
    assert part.missing() == [3, 4]  # the good ones are there
    (wrong / name).unlink()
    part.join([wrong, whole / "0"])
    assert part.missing() == []
    for path in part.shard_paths():
        assert path.read_bytes() == (whole / "0" / "shards" / path.name).read_bytes()


def test_images_that_changed_between_two_parts(images, tmp_path):
    def part(data, folder, which):
        run = Evaluation(MODEL, data, ATTACK, THREAT, tmp_path / folder, **SETTINGS)
        run.prepare()
        run.compute(which)
        return run

    first = part(images, "a", (0, 2))
    for other in (
        dataclasses.replace(images, y=images.y.roll(1)),
        dataclasses.replace(images, index=images.index + 1),
    ):
        with pytest.raises(ValueError, match=r"another configuration \(data\.fingerprint: "):
            part(other, "a", (1, 2))
    changed = dataclasses.replace(images, x=images.x.clone())
    changed.x[21, 0, 0, 0] += 1 / 255
    with pytest.raises(ValueError, match=r"another configuration \(data\.fingerprint: "):
        part(changed, "a", (1, 2))
    other = part(changed, "b", (1, 2))
    with pytest.raises(ValueError, match=r"another configuration \(data\.fingerprint: "):
        first.join([other.folder])


def test_other_versions_do_not_go_on_but_may_read(images, whole, tmp_path, monkeypatch):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    part = shutil.copytree(whole / "0", tmp_path / "part")
    (part / "shards" / "00001.safetensors").unlink()
    real = torch.__version__
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    kept = (out / "card.json").read_bytes()
    again(images, out)
    assert (out / "card.json").read_bytes() == kept
    with pytest.raises(ValueError, match=rf"begun with other versions.*{re.escape(real)}.*9\.9\.9"):
        again(images, part)
    with pytest.raises(ValueError, match="begun with other versions"):
        again(images, out, check_images=2)
    new = Evaluation(MODEL, images, ATTACK, THREAT, tmp_path / "new", **SETTINGS)
    new.prepare()
    with pytest.raises(ValueError, match=r"another configuration \(versions\.torch: "):
        new.join([part])


def test_a_shard_at_work_is_not_begun_twice(images, tmp_path):
    def start(which):
        run = Evaluation(MODEL, images, ATTACK, THREAT, tmp_path / "run", **SETTINGS)
        run.prepare()
        run.compute(which, lambda done, total: second(done))
        return run

    def second(done):
        if 0 < done < 5 and not refused:
            refused.append(True)
            with pytest.raises(BlockingIOError, match=r"at work on .*00000\.safetensors"):
                start((0, 1))
            start((1, 2))  # the other part may share the folder

    refused = []
    assert start((0, 2)).missing() == []
    assert refused
    assert not [p.name for p in (tmp_path / "run").rglob(".*")]


def test_what_killed_processes_left_is_cleaned(images, whole, tmp_path):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    left = [
        out / ".card.json.depure-lock",
        out / "shards" / ".00001.safetensors.depure-lock",
        out / ".checks-4.json.elsewhere-1-00000000.tmp",
        out / "shards" / ".00001.safetensors.elsewhere-1-00000000.tmp",
        out / "shards" / "00001.journal",
    ]
    for file in left:
        file.touch()
        os.utime(file, (0, 0))
    again(images, out)
    assert not [file for file in left if file.exists()]


@pytest.fixture
def read_only(monkeypatch):
    """No file can be made or removed, as on a read-only file system."""
    really = os.open

    def refuse_new(path, flags, *args, **kwargs):
        return refuse() if flags & os.O_CREAT else really(path, flags, *args, **kwargs)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    def freeze():
        monkeypatch.setattr("depure.files.os.open", refuse_new)
        for name in ("touch", "unlink"):
            monkeypatch.setattr(Path, name, refuse)

    return freeze


def test_a_finished_run_may_be_read_only_an_unfinished_one_says_so(
    images, whole, tmp_path, read_only
):
    out = shutil.copytree(whole / "0", tmp_path / "run")
    part = shutil.copytree(whole / "0", tmp_path / "part")
    (part / "shards" / "00001.safetensors").unlink()
    card = json.loads((out / "card.json").read_text())
    read_only()
    assert again(images, out).card["run"] == card["run"]
    with (
        pytest.warns(UserWarning, match="journal"),
        pytest.raises(
            OSError, match=r"cannot write .*00001\.safetensors \(Read-only file system\)"
        ),
    ):
        again(images, part)
    with pytest.raises(OSError, match=r"cannot write .*new/config\.json"):
        again(images, tmp_path / "new")


def test_files_have_the_ordinary_mode(images, tmp_path):
    before = os.umask(0o027)
    try:
        again(images, tmp_path / "run")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run").rglob("*.*")}
    assert set(modes.values()) == {0o640}, modes


def test_mixed_noise_at_its_ends_is_dw_box_and_the_white_box(images):
    def of(**knowledge):
        threat = Threat(Linf(0.1), **knowledge)
        return evaluate(MODEL, images, ATTACK, threat, draws=5, check_images=0).shard

    known = ("forward", "reverse")
    for ends in (of(knows=known), of(knows=known, mix=0.0)), (of(), of(knows=known, mix=1.0)):
        assert torch.equal(ends[0].x_adv, ends[1].x_adv)
        assert torch.equal(ends[0].adversarial, ends[1].adversarial)
    assert of(knows=known, pool=3).adversarial.shape == (22, 5)  # no longer one draw


def test_interrupted_and_continued(images, tmp_path):
    whole = evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "whole", **SETTINGS)

    def kill(done, total):
        if done > 7:  # inside the second shard
            raise Killed

    with pytest.raises(Killed):
        evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "run", progress=kill, **SETTINGS)
    left = sorted(p.name for p in (tmp_path / "run" / "shards").iterdir())
    assert left == ["00000.safetensors", "00001.journal"]
    again = evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "run", **SETTINGS)
    assert stable(again.card) == stable(whole.card)


def test_parts_merge_into_the_same_card(images, tmp_path):
    whole = evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "whole", **SETTINGS)

    def part(folder, which):
        run = Evaluation(MODEL, images, ATTACK, THREAT, tmp_path / folder, **SETTINGS)
        run.prepare()
        run.compute(which)
        return run

    first, second = part("a", (0, 2)), part("b", (1, 2))
    assert first.missing() == [1, 3]
    with pytest.raises(ValueError, match="2 of 5 shards"):
        first.finish()
    first.join([second.folder])
    assert stable(first.finish().card) == stable(whole.card)


def test_a_folder_of_another_configuration_is_refused(images, tmp_path):
    out = tmp_path / "run"
    evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    before = (out / "card.json").read_bytes()
    stronger = dataclasses.replace(ATTACK, steps=4)
    with pytest.raises(ValueError, match=r"attack\.steps: 3, now 4.*choose another folder"):
        evaluate(MODEL, images, stronger, THREAT, out=out, **SETTINGS)
    other = Defended(Jitter(), Head())
    with torch.no_grad():
        other.classifier.w += 1
    with pytest.raises(ValueError, match=r"model\.weights"):
        evaluate(other, images, ATTACK, THREAT, out=out, **SETTINGS)
    assert (out / "card.json").read_bytes() == before


def test_a_truncated_shard_is_named_and_the_rest_is_kept(images, tmp_path):
    out = tmp_path / "run"
    whole = evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    shard = out / "shards" / "00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00002\.safetensors is damaged.*delete this file"):
        evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    shard.unlink()
    again = evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    assert stable(again.card) == stable(whole.card)


def test_broken_gradients_are_refused_unless_bpda_is_asked_for(images, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be evaluated.*Straight\(\) \(BPDA\)"):
        evaluate(Defended(Cut(), Head()), images, ATTACK, THREAT, out=tmp_path / "run")
    result = evaluate(Defended(BPDA(Cut()), Head()), images, ATTACK, THREAT, **SETTINGS)
    gradient = next(c for c in result.card["checks"] if c["name"] == "gradient")
    assert gradient["verdict"] == "warn"


def test_undefended(images):
    result = evaluate(Defended(Identity(), Head()), images, ATTACK, THREAT, **SETTINGS)
    assert result.clean.value == 1.0
    assert result.shard.clean.shape == (22, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": Threat(Linf(0.1), ("revers",))}, "knows names the stage 'revers'"),
        ({"draws": 0}, "draws, shard_size and chunk must be at least 1"),
    ],
)
def test_bad_settings(images, change, message):
    settings = {"threat": THREAT, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL, images, ATTACK, **settings)


def test_labels_the_classifier_does_not_know(images):
    more = Images(images.x, images.y, images.index, ("a", "b", "c", "d"), "toy")
    odd = dataclasses.replace(more, y=torch.full_like(more.y, 3))
    with pytest.raises(ValueError, match="label"):
        evaluate(MODEL, odd, ATTACK, THREAT, **SETTINGS)


class Scaled(Jitter):
    """A setting that no weight and no repr tells."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return self.scale * super().purify(x, noise)


def test_a_setting_outside_weights_and_repr_is_another_configuration(images, tmp_path):
    out = tmp_path / "run"
    evaluate(Defended(Scaled(1.0), Head()), images, ATTACK, THREAT, out=out, **SETTINGS)
    with pytest.raises(ValueError, match=r"model\.settings"):
        evaluate(Defended(Scaled(0.5), Head()), images, ATTACK, THREAT, out=out, **SETTINGS)


def test_shards_without_a_configuration_are_taken_over_by_their_own_run_alone(images, tmp_path):
    out = tmp_path / "run"
    whole = evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match=r"shards but no config\.json .* part of another run"):
        evaluate(MODEL, images, dataclasses.replace(ATTACK, steps=4), THREAT, out=out, **SETTINGS)
    assert not (out / "config.json").exists()
    assert evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS).card == whole.card


def test_bpda_of_an_undifferentiable_purifier_has_nothing_to_compare_with(images):
    result = evaluate(Defended(BPDA(Cut()), Head()), images, ATTACK, THREAT, **SETTINGS)
    row = result.card["gradient_check"]["rows"][0]
    assert row["cosine"] is None
    gradient = next(c for c in result.card["checks"] if c["name"] == "gradient")
    assert "no exact gradient to compare with" in gradient["text"]


def test_a_gradient_check_of_another_key_is_made_anew(images, tmp_path):
    out = tmp_path / "run"
    evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    path = out / "gradient_check.json"
    made = path.read_text()
    sealed = json.loads(made)
    pieces = Pieces(out, read_config(out / "config.json")[1])
    pieces.write_json(path.name, {**pieces.read_json(path.name), "key": "another"})
    assert path.read_text() != made
    evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    assert json.loads(path.read_text()) == sealed
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"gradient_check\.json does not say which run"):
        evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)


def test_runs_of_the_same_defence_share_a_gradient_check(images, tmp_path, monkeypatch):
    made = []

    def counted(*args, **settings):
        made.append(settings["short"])
        return verify_gradient(*args, **settings)

    monkeypatch.setattr("depure.evaluation.run.verify_gradient", counted)
    first = evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "a", **SETTINGS)
    other = dataclasses.replace(ATTACK, loss="margin")
    second = evaluate(MODEL, images, other, THREAT, out=tmp_path / "b", **SETTINGS)
    assert len(made) == 1
    assert second.card["gradient_check"] == first.card["gradient_check"]
    assert (tmp_path / "b" / "gradient_check.json").exists()
    evaluate(MODEL, images, ATTACK, Threat(Linf(0.05)), out=tmp_path / "c", **SETTINGS)
    evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "d", **{**SETTINGS, "seed": 5})
    assert len(made) == 3  # another ball, another seed
    before = len(made)
    evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS)  # a temporary folder trusts no neighbour
    assert len(made) == before + 1
    made.pop()
    for name in "abcd":  # what is not whole is passed over
        (tmp_path / name / "gradient_check.json").write_text("{}")
    evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path / "e", **SETTINGS)
    assert len(made) == 4


def test_the_gradient_is_looked_at_where_the_attack_ended(images):
    """Right about the images, of the wrong sign for whatever is brighter than they are."""

    class Flips(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            turned = torch.where(z > 0.9, 2 * z.detach() - z, z)
            return torch.stack([turned.sum(1), turned.sin().sum(1), (turned**2).sum(1)], 1)

    model = Defended(Identity(), Flips())
    dark = dataclasses.replace(images, x=images.x / 2)
    y = torch.zeros(len(dark), dtype=torch.int64)

    def at(x):
        noise = Noise.of(0, range(len(x)))
        return check_at_proposals(model, x, y, noise, chunk=8)

    assert at(dark.x).passed
    assert not at((dark.x + 0.47).clamp(0.95, 1)).passed
    named = {
        c["name"]: c for c in evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS).card["checks"]
    }
    assert named["gradient at proposals"]["verdict"] == "pass"
    square = evaluate(MODEL, images, Square(steps=2, eot=1), THREAT, **SETTINGS)
    assert "gradient at proposals" not in {c["name"] for c in square.card["checks"]}


def test_one_draw_of_fresh_noise_is_not_called_known(images):
    result = evaluate(MODEL, images, ATTACK, THREAT, **{**SETTINGS, "draws": 1})
    checks = {c["name"]: c["text"] for c in result.card["checks"]}
    assert "random" in checks["randomness"]
    assert "more EoT draws" in checks


def test_checks_double_what_an_attack_is_made_of():
    bare = nn.Identity().eval()
    assert _doubled(PGD(7, eot=3), "steps") == PGD(14, eot=3)
    assert _doubled(Transfer(PGD(7), bare), "steps").attack == PGD(14)
    assert _doubled(SubstituteAttack(PGD(7, eot=3), bare), "eot").attack == PGD(7, eot=6)
    found = _doubled(autoattack("stochastic", eot=4), "eot")
    assert [m.eot for m in found.members] == [8] * 4
    assert [type(m) for m in found.members] == [type(m) for m in autoattack().members]
    assert isinstance(found.members[2], FAB)
    lone = Transfer(PGD(7), bare)
    assert _doubled(lone, "nonsense") is lone


def test_an_attack_on_something_simpler_is_checked_on_the_bare_classifier(images, tmp_path):
    attack = SubstituteAttack(ATTACK, Defended(BPDA(Jitter()), MODEL.classifier), judge_draws=2)
    evaluate(MODEL, images, attack, THREAT, out=tmp_path / "run", **SETTINGS)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert {"transfer", "more steps", "more EoT draws"} <= {c["name"] for c in card["checks"]}


def test_an_attack_with_a_start_is_traced_and_checked(images):
    """The trace has its own iterations alone."""
    attack = PGD(steps=4, eot=4, start=Transfer(PGD(steps=5), Head().eval()))
    assert evaluate(MODEL, images, attack, THREAT, **SETTINGS).shard.loss.shape[1] == 4
    # The transfer from the bare classifier leaves out a start that needs the defence.
    past = PGD(
        steps=3, eot=2, start=SubstituteAttack(PGD(steps=2), Defended(BPDA(Jitter()), Head()))
    )
    for one in (past, Ensemble((past, PGD(steps=2)), judge_draws=3)):
        named = [c["name"] for c in evaluate(MODEL, images, one, THREAT, **SETTINGS).card["checks"]]
        assert "transfer" in named


@pytest.mark.parametrize(
    ("attack", "rises", "fresh"),
    [
        (ATTACK, True, True),
        (Ensemble((FAB(2, steps=2),), judge_draws=3), True, True),
        (DiffHammer(steps=2, eot=2), True, True),
        (FAB(2, steps=2, eot=2), False, False),
        (Transfer(ATTACK, Head().eval()), True, False),
        (Transfer(FAB(2, steps=2, eot=2), Head().eval()), False, False),
        (SubstituteAttack(ATTACK, Defended(BPDA(Jitter()), Head())), True, False),
        (LowFrequency(steps=2, eot=2, kernels=()), True, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_trace_is_asked_only_what_it_can_answer(images, attack, rises, fresh):
    """Its last words may be of another aim, another model or points outside the bound."""
    card = evaluate(MODEL, images, attack, THREAT, **{**SETTINGS, "check_images": 0}).card
    names = {c["name"] for c in card["checks"]}
    assert ("loss rises" in names) == rises
    assert ("fresh draws" in names) == fresh


def test_an_ensemble_accounts_for_its_calls(images, tmp_path):
    """After the images and each member: the calls made, kills or not, and what is left."""
    battery = Ensemble((PGD(steps=2, eot=2), PGD(steps=5, eot=4)), judge_draws=3)
    settings = {**SETTINGS, "check_images": 0}
    card = evaluate(MODEL, images, battery, THREAT, out=tmp_path / "whole", **settings).card
    calls, accuracy = card["calls"]["calls"], card["calls"]["accuracy"]
    assert calls == [3, 3 + 4 + 3, 10 + 20 + 3]
    assert card["cost"]["classifier_calls"] == 22 * (33 + 2 * 6)
    assert 1.0 >= accuracy[0] >= accuracy[1] >= accuracy[2] > 0.0
    assert accuracy[2] < accuracy[0]

    def kill(*args):
        raise KeyboardInterrupt

    kills = type("PGD", (PGD,), {"propose": kill})  # its record is that of the other
    object.__setattr__(battery, "members", (battery.members[0], kills(steps=5, eot=4)))
    with pytest.raises(KeyboardInterrupt):
        evaluate(MODEL, images, battery, THREAT, out=tmp_path / "killed", **settings)
    plain = Ensemble((PGD(steps=2, eot=2), PGD(steps=5, eot=4)), judge_draws=3)
    assert list((tmp_path / "killed").rglob("*.journal"))
    again = evaluate(MODEL, images, plain, THREAT, out=tmp_path / "killed", **settings).card
    assert again["calls"] == card["calls"]
    single = evaluate(MODEL, images, ATTACK, THREAT, **settings).card
    assert single["calls"] == {"calls": [], "accuracy": []}


def test_what_is_heard_of_targeted_attacks():
    one, two = (APGD(loss="dlr", targets=n) for n in (1, 2))
    assert one.trace_of == "defence"
    assert two.trace_of == DiffAttack(two).trace_of == "several targets"


def test_journals_that_are_left_over_are_deleted(images, tmp_path):
    def run():
        return evaluate(MODEL, images, ATTACK, THREAT, out=tmp_path, **SETTINGS).card

    card = run()
    for name in ("shards/00002.journal", "check-eot.journal"):
        (tmp_path / name).write_bytes(b"left over")
    assert stable(run()) == stable(card)
    assert not list(tmp_path.rglob("*.journal"))


def test_a_run_without_a_folder_keeps_no_journal(images, monkeypatch):
    def refuse(*args):
        raise AssertionError

    monkeypatch.setattr("depure.evaluation.shards.journal", refuse)
    monkeypatch.setattr("depure.evaluation.checks.journal", refuse)
    evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS)


def test_a_source_with_another_gradient_is_another_run(images, tmp_path):
    """Its answers must not be taken for those of the first."""
    one = SubstituteAttack(PGD(steps=2), Defended(BPDA(Jitter()), Head()))
    evaluate(MODEL, images, one, THREAT, out=tmp_path, **SETTINGS)
    other = SubstituteAttack(PGD(steps=2), Defended(Jitter(), Head()))
    with pytest.raises(ValueError, match=r"attack\.source"):
        evaluate(MODEL, images, other, THREAT, out=tmp_path, **SETTINGS)


def test_clean_accuracy_at_chance_is_a_warning():
    some = digits("test").sample(20)
    moved = Images(some.x, (some.y + 1) % 10, some.index, some.classes, some.name)
    model = Defended(Identity(), load_classifier("digits"))
    names = []
    for images in (some, moved):
        result = evaluate(
            model, images, PGD(steps=1, eot=1), Threat(Linf(0.1)), draws=1, check_images=0
        )
        names.append({c["name"]: c["verdict"] for c in result.card["checks"]})
    assert "labels" not in names[0]
    assert names[1]["labels"] == "warn"


def test_assumed_labels_are_a_warning_or_refused(images):
    some = dataclasses.replace(images[slice(0, 4)], assumed="the order is assumed")
    settings = {"draws": 1, "check_images": 0, "gradient_check": "none"}
    card = evaluate(MODEL, some, ATTACK, THREAT, **settings).card
    (found,) = [c for c in card["checks"] if c["name"] == "classes"]
    assert (found["verdict"], found["text"]) == ("warn", "the order is assumed")
    two = dataclasses.replace(some, y=some.y.clamp(max=1), classes=("a", "b"))
    with pytest.raises(ValueError, match="2 classes and the classifier 3 outputs"):
        evaluate(MODEL, two, ATTACK, THREAT, **settings)


def test_numbers_of_numpy_are_numbers(images):
    settings = {**SETTINGS, "draws": np.int64(3), "seed": np.int32(1)}
    result = evaluate(MODEL, images, ATTACK, Threat(Linf(np.float32(0.1))), **settings)
    json.dumps(result.card["setting"])
    assert result.card["setting"]["draws"] == 3
    with pytest.raises(ValueError, match=r"draws must be a whole number; got 2\.5"):
        evaluate(MODEL, images, ATTACK, THREAT, **{**SETTINGS, "draws": 2.5})


def test_the_mode_of_the_caller_does_not_matter(images):
    expected = evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS).shard
    with torch.no_grad():
        found = evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS).shard
    assert torch.equal(found.x_adv, expected.x_adv)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        evaluate(MODEL, images, ATTACK, THREAT, **SETTINGS)
