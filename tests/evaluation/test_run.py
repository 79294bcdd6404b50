"""The evaluation: resumable, mergeable, independent of batch, chunk and shard sizes."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from depure.attacks import (
    APGD,
    FAB,
    PGD,
    DiffAttack,
    DiffHammer,
    Ensemble,
    LowFrequency,
    StandIn,
    Transfer,
    autoattack,
)
from depure.data import Images
from depure.evaluation import Evaluation, evaluate
from depure.evaluation.checks import _doubled
from depure.noise import Noise
from depure.purify import BPDA, Defended, Identity, Purifier
from depure.threat import Linf, Threat


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
    other_attack = dataclasses.replace(ATTACK, chunk=3)
    other = evaluate(
        MODEL, images, other_attack, THREAT, **{**SETTINGS, "shard_size": 22}, batch=7
    ).shard
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
        ({"draws": 0}, "draws, shard_size and batch must be at least 1"),
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


def test_shards_without_a_configuration_are_not_taken_over(images, tmp_path):
    out = tmp_path / "run"
    evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match=r"shards but no config\.json"):
        evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)


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
    path.write_text("{}")
    evaluate(MODEL, images, ATTACK, THREAT, out=out, **SETTINGS)
    assert path.read_text() == made


def test_one_draw_of_fresh_noise_is_not_called_known(images):
    result = evaluate(MODEL, images, ATTACK, THREAT, **{**SETTINGS, "draws": 1})
    checks = {c["name"]: c["text"] for c in result.card["checks"]}
    assert "random" in checks["randomness"]
    assert "more EoT draws" in checks


def test_checks_double_what_an_attack_is_made_of():
    bare = nn.Identity().eval()
    assert _doubled(PGD(7, eot=3), "steps") == PGD(14, eot=3)
    assert _doubled(Transfer(PGD(7), bare), "steps").attack == PGD(14)
    assert _doubled(StandIn(PGD(7, eot=3), bare), "eot").attack == PGD(7, eot=6)
    found = _doubled(autoattack("stochastic", eot=4), "eot")
    assert [m.eot for m in found.members] == [8] * 4
    assert [type(m) for m in found.members] == [type(m) for m in autoattack().members]
    assert isinstance(found.members[2], FAB)
    lone = Transfer(PGD(7), bare)
    assert _doubled(lone, "nonsense") is lone


def test_an_attack_on_something_simpler_is_checked_on_the_bare_classifier(images, tmp_path):
    attack = StandIn(ATTACK, Defended(BPDA(Jitter()), MODEL.classifier), judge_draws=2)
    evaluate(MODEL, images, attack, THREAT, out=tmp_path / "run", **SETTINGS)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert {"transfer", "more steps", "more EoT draws"} <= {c["name"] for c in card["checks"]}


def test_an_attack_with_a_start_is_traced_and_checked(images):
    """The trace has its own iterations alone."""
    attack = PGD(steps=4, eot=4, start=Transfer(PGD(steps=5), Head().eval()))
    assert evaluate(MODEL, images, attack, THREAT, **SETTINGS).shard.loss.shape[1] == 4
    # The transfer from the bare classifier leaves out a start that needs the defence.
    past = PGD(steps=3, eot=2, start=StandIn(PGD(steps=2), Defended(BPDA(Jitter()), Head())))
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
        (StandIn(ATTACK, Defended(BPDA(Jitter()), Head())), True, False),
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
    calls, accuracy = card["budget"]["calls"], card["budget"]["accuracy"]
    assert calls == [3, 3 + 4 + 3, 10 + 20 + 3]
    assert card["cost"]["classifier_calls"] == 22 * (33 + 2 * 6)
    assert 1.0 >= accuracy[0] >= accuracy[1] >= accuracy[2] > 0.0
    assert accuracy[2] < accuracy[0]

    class Kill(PGD):
        def __call__(self, *args):
            raise KeyboardInterrupt

    object.__setattr__(battery, "members", (battery.members[0], Kill(steps=5, eot=4)))
    with pytest.raises(KeyboardInterrupt):
        evaluate(MODEL, images, battery, THREAT, out=tmp_path / "killed", **settings)
    plain = Ensemble((PGD(steps=2, eot=2), PGD(steps=5, eot=4)), judge_draws=3)
    config = (tmp_path / "killed/config.json").read_text().replace('"Kill"', '"PGD"')
    (tmp_path / "killed/config.json").write_text(config)
    assert list((tmp_path / "killed").rglob("*.journal"))
    again = evaluate(MODEL, images, plain, THREAT, out=tmp_path / "killed", **settings).card
    assert again["budget"] == card["budget"]
    single = evaluate(MODEL, images, ATTACK, THREAT, **settings).card
    assert single["budget"] == {"calls": [], "accuracy": []}


def test_shards_of_an_earlier_version_are_read(images, tmp_path):
    battery = Ensemble((PGD(steps=2, eot=2),), judge_draws=3)
    result = evaluate(MODEL, images, battery, THREAT, out=tmp_path, **SETTINGS)
    path = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    with safe_open(path, "pt") as file:
        kept = {k: file.get_tensor(k) for k in file.keys() if k not in ("best", "spent")}  # noqa: SIM118
        metadata = file.metadata()
    save_file(kept, path, metadata)
    again = evaluate(MODEL, images, battery, THREAT, out=tmp_path, **SETTINGS)
    assert again.card["results"] == result.card["results"]
    assert again.card["budget"] == {"calls": [], "accuracy": []}


def test_what_is_heard_of_targeted_attacks():
    one, two = (APGD(loss="dlr", targets=n) for n in (1, 2))
    assert (one.heard, two.heard, DiffAttack(two).heard) == ("proposal", "aims", "aims")


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
    one = StandIn(PGD(steps=2), Defended(BPDA(Jitter()), Head()))
    evaluate(MODEL, images, one, THREAT, out=tmp_path, **SETTINGS)
    other = StandIn(PGD(steps=2), Defended(Jitter(), Head()))
    with pytest.raises(ValueError, match=r"attack\.source"):
        evaluate(MODEL, images, other, THREAT, out=tmp_path, **SETTINGS)
