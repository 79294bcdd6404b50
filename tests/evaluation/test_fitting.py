"""A run keeps its chunk, and goes on with fewer rows where memory runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from depure import PGD, Defended, Identity, Linf, Threat, digits, evaluate, load_classifier
from depure.evaluation.fitting import Fitting, out_of_memory
from depure.rows import Chunk, current_chunk


def rows() -> int:
    chunk = current_chunk()
    assert chunk is not None
    return chunk.rows


def fitting(path: Path, planned: int = 8) -> Fitting:
    return Fitting.of(path / "chunk.json", lambda: Chunk(planned, 5))


def test_the_first_plan_is_kept(tmp_path: Path) -> None:
    assert fitting(tmp_path).chunk == Chunk(8, 5)
    assert fitting(tmp_path, planned=3).chunk == Chunk(8, 5)


@pytest.mark.parametrize("text", ["{}", '{"rows": 0, "reserve": 0, "planned": 1}', "[]", "{"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "chunk.json").write_text(text)
    with pytest.raises(ValueError, match=r"chunk\.json"):
        fitting(tmp_path)


def test_where_memory_runs_out_half_of_the_rows_are_tried(tmp_path: Path) -> None:
    tried = []

    def work() -> str:
        tried.append(rows())
        if rows() > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return "done"

    with pytest.warns(UserWarning, match="memory ran out with 8 rows at once"):
        assert fitting(tmp_path).run(work) == "done"
    assert tried == [8, 4, 2]
    again = fitting(tmp_path)
    assert (again.chunk.rows, again.planned) == (2, 8)


def test_one_row_that_is_too_much_ends_in_a_sentence(tmp_path: Path) -> None:
    def work() -> None:
        raise MemoryError

    with pytest.raises(MemoryError, match="one row at a time"), pytest.warns(match="ran out"):
        fitting(tmp_path, 2).run(work)


def test_other_errors_are_not_mistaken_for_it(tmp_path: Path) -> None:
    def work() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        fitting(tmp_path).run(work)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


class Hungry(nn.Module):
    """Fails as an allocator does on more than `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.net, self.most = load_classifier("digits"), most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
        out: Tensor = self.net(x)
        return out


def test_a_run_goes_on_with_fewer_rows_and_says_so(tmp_path: Path) -> None:
    images = digits("test").sample(8)
    calm = evaluate(
        Defended(Identity(), load_classifier("digits")), images, PGD(steps=3, eot=1),
        Threat(Linf(0.2)), draws=1, check_images=4,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="memory ran out"):
        tight = evaluate(
            Defended(Identity(), Hungry(3)), images, PGD(steps=3, eot=1), Threat(Linf(0.2)),
            draws=1, check_images=4, out=tmp_path,
        )  # fmt: skip
    assert tight.card["run"]["rows_at_once"] <= 3 < tight.card["run"]["rows_planned"]
    assert torch.equal(tight.shard.adversarial, calm.shard.adversarial)
    assert any(c["name"] == "memory" and c["verdict"] == "warn" for c in tight.card["checks"])
    assert json.loads((tmp_path / "chunk.json").read_text())["rows"] <= 3


_LIMITED = """
import resource, sys, torch
torch.set_num_threads(1)
from depure import *
from depure.diffusion import Checkpoint
from torch.nn import functional as F
from torch import nn
class Wide(nn.Module):  # a hundred MiB a row, so that the allocator decides and not the small print
    def __init__(self):
        super().__init__()
        self.net = load_classifier("digits")
    def forward(self, x):
        big = F.interpolate(x, scale_factor=float(sys.argv[2]))
        return self.net(x + 1e-6 * F.interpolate(big.tanh(), size=x.shape[-2:]))
model, images = Defended(Identity(), Wide()), digits("test").sample(16)
model(images.x[:1])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(float(sys.argv[1]) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
result = evaluate(model, images, PGD(steps=2, eot=1), Threat(Linf(0.2)), draws=1, check_images=0,
                  memory_limit=2**40)
print(result.card["run"]["rows_at_once"], result.card["run"]["rows_planned"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_an_allocator_that_refuses_does_not_end_a_run() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _LIMITED, "300", "200"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    now, planned = (int(n) for n in found.stdout.split())
    assert now < planned
    assert "memory ran out" in found.stderr
