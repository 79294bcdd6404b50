"""Checkpoints: whose they are, whole or refused, the one before kept."""

import json

import pytest
import torch
from torch import nn

from depure.data import Images
from depure.training import CrossEntropy, Flip, Plan, description, remove_checkpoint, train
from depure.training import state as states
from depure.training.checkpoint import earlier, read_checkpoint, write_checkpoint

RECORD = {"plan": {"lr": 0.1}, "images": "a"}
PLAN = Plan(updates=6, batch=4, save_every=2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def write(path, update, record=RECORD):
    tensors = {"w": torch.full((64,), float(update))}
    write_checkpoint(path, tensors, {"record": record, "update": update})


def test_the_last_comes_back_and_the_one_before_stays(path):
    assert read_checkpoint(path, RECORD) is None
    for update in (1, 2, 3):
        write(path, update)
    tensors, facts = read_checkpoint(path, RECORD)
    assert (facts["update"], float(tensors["w"][0])) == (3, 3.0)
    path.unlink()  # killed between the two renamings
    assert read_checkpoint(path, RECORD)[1]["update"] == 2
    remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def places(file):
    text = file.read_bytes()
    return {
        "length": 0,
        "a weight": len(text) - 5,
        "the update": text.index(b'\\"update\\": ') + 12,
        "the record": text.index(b"lr"),
        "the checksum": text.index(b'"checksum":"') + 14,
        "a shape": text.index(b"64"),
    }


@pytest.mark.parametrize("what", ["length", "a weight", "the update", "the record",
                                  "the checksum", "a shape"])  # fmt: skip
def test_a_flipped_bit_is_found_and_the_one_before_is_taken(path, what):
    write(path, 4)
    flip(path, places(path)[what])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*: delete it and train again"):
        read_checkpoint(path, RECORD)
    path.unlink()
    write(path, 4)
    write(path, 5)
    flip(path, places(path)[what])
    with pytest.warns(UserWarning, match=r"checkpoint\.safetensors is damaged .* at update 4"):
        assert read_checkpoint(path, RECORD)[1]["update"] == 4


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100])
def test_what_is_no_checkpoint(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(path, RECORD)


def test_a_folder_in_its_place(path):
    path.mkdir()
    with pytest.raises(OSError, match=r"cannot read the checkpoint .*checkpoint\.safetensors"):
        read_checkpoint(path, RECORD)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.safetensors"):
        write(path, 1)


def test_another_run_s_is_refused_by_name(path):
    write(path, 1, {**RECORD, "images": "b"})
    with pytest.raises(ValueError, match=r"checkpoint.safetensors belongs to .*another images"):
        read_checkpoint(path, RECORD)
    with pytest.raises(ValueError, match="another more"):
        read_checkpoint(path, {**RECORD, "images": "b", "more": 1})


@pytest.fixture
def images():
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return Images(x, torch.arange(8) % 2, torch.arange(8), ("a", "b"), "toy")


def head(seed=0, width=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(16, width), nn.Dropout(0.1), nn.Linear(width, 2)
        return nn.Sequential(nn.Flatten(), *layers)


def test_everything_that_decides_a_training_is_in_its_description(images):
    def of(network=None, objective=None, data=images, plan=PLAN, augment=()):
        found = description(network or head(), objective or CrossEntropy(), data, plan, augment)
        return json.dumps(found)

    class Other(CrossEntropy):
        pass

    moved = Images(images.x.flip(0), images.y, images.index, images.classes, images.name)
    named = Images(images.x, 1 - images.y, images.index, images.classes, images.name)
    again = Images(images.x, images.y, images.index + 1, images.classes, images.name)
    active = head()
    active[2] = nn.Identity()
    found = [
        of(), of(network=head(1)), of(network=head(width=4)), of(network=active),
        of(objective=Other()), of(data=moved), of(data=named), of(data=again),
        of(augment=(Flip(),)),
        of(plan=Plan(updates=6, batch=4, save_every=2, seed=1)),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert of(plan=Plan(updates=6, batch=4, save_every=3)) == of()


def test_the_configuration_of_a_network_counts_and_its_order_does_not(images):
    def of(**config):
        network = head()
        network.config = config
        return description(network, CrossEntropy(), images, PLAN, ())

    assert of(a=1, b=(2,), _defaults=["a", "b"]) == of(_defaults=["b", "a"], b=(2,), a=1)
    assert of(a=1) != of(a=2)


def test_another_torch_goes_on_and_is_told(images, path, monkeypatch):
    def stop(update, *_):
        if update == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(head(), CrossEntropy(), images, PLAN, checkpoint=path, watch=stop)
    before = states._versions(head(), 1)
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    with pytest.warns(UserWarning, match=r"made with .*; this is .*torch 99\.0\.0.*at update 3"):
        made = train(head(), CrossEntropy(), images, PLAN, checkpoint=path)
    assert made == [(1, before), (3, states._versions(head(), 1))]
    monkeypatch.undo()
    assert train(head(), CrossEntropy(), images, PLAN, checkpoint=path) == made  # nothing to do


def test_weights_that_are_not_finite_are_no_checkpoint(images, path):
    def explode(update, *_):
        if update == 2:
            for p in network.parameters():
                p.register_hook(lambda g: g * float("inf"))

    network = head()
    with pytest.raises(FloatingPointError, match=r"not finite after update 4|loss is nan"):
        train(network, CrossEntropy(), images, PLAN, checkpoint=path, watch=explode)
    record = description(head(), CrossEntropy(), images, PLAN, ())
    assert read_checkpoint(path, record)[1]["update"] == 2
    alone = head()
    for p in alone.parameters():
        p.register_hook(lambda g: g * float("inf"))
    one = Plan(updates=1, batch=4)
    with pytest.raises(FloatingPointError, match="not finite after update 1"):
        train(alone, CrossEntropy(), images, one)


@pytest.mark.parametrize("facts", ["null", "[]", "{}", '{"record": 3}'])
def test_a_whole_file_that_is_no_checkpoint_of_ours_is_refused(path, facts, monkeypatch):
    monkeypatch.setattr("depure.training.checkpoint.json.dumps", lambda *args, **kwargs: facts)
    write(path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"is damaged .*delete it and train again"):
        read_checkpoint(path, RECORD)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(path, monkeypatch):
    for update in (1, 2):
        write(path, update)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("depure.training.checkpoint.save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, 3)
    monkeypatch.undo()
    assert read_checkpoint(path, RECORD)[1]["update"] == 2
    assert earlier(path).exists()
