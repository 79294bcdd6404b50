"""The generator against published vectors and a slow reference; then every promise of `Noise`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from depure.noise import Noise, _philox

MASK = 0xFFFFFFFF


def like(rows: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(rows, *(shape or (1, 4, 4)), dtype=dtype)


# --- a slow reference, written from the papers ------------------------------------------------


def philox(key: int, counter: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011) in plain integers."""
    k0, k1 = key & MASK, key >> 32 & MASK
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def word(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") // 2


def derived(key: int, name: str, number: int) -> int:
    w = philox(key, [number & MASK, number >> 32 & MASK, word(name), 0])
    return w[0] << 32 | w[1]


def units(key: int, stage: str, step: tuple[int, int], count: int) -> list[list[float]]:
    turn, label = step
    counters = ([b, label & MASK, turn & MASK, word(stage) + 2**31] for b in range(-(-count // 4)))
    return [[(w + 0.5) / 2**32 for w in philox(key, c)] for c in counters]


def slow_normal(key: int, stage: str, step: tuple[int, int], count: int) -> list[float]:
    numbers: list[float] = []
    for u0, u1, u2, u3 in units(key, stage, step, count):
        r0, r1 = math.sqrt(-2 * math.log(u0)), math.sqrt(-2 * math.log(u1))
        a0, a1 = 2 * math.pi * u2, 2 * math.pi * u3
        numbers += [r0 * math.cos(a0), r1 * math.cos(a1), r0 * math.sin(a0), r1 * math.sin(a1)]
    return numbers[:count]


KNOWN_ANSWERS = [  # Random123, examples/kat_vectors: philox4x32 10
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    joined = key[0] | key[1] << 32
    assert philox(joined, counter) == expected
    signed = torch.tensor([(joined + 2**63) % 2**64 - 2**63])
    words = _philox(signed, [torch.tensor([[c]]) for c in counter])
    assert words.flatten().tolist() == expected


def test_philox_equals_plain_integers() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (100, 6)).tolist()
    keys = torch.tensor([(w[4] | w[5] << 32) for w in words], dtype=torch.uint64).view(torch.int64)
    counter = [torch.tensor([[w[i]] for w in words]) for i in range(4)]
    ours = _philox(keys, counter)[:, :, 0].T.tolist()
    assert ours == [philox(w[4] | w[5] << 32, w[:4]) for w in words]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3, 2**64 - 1])
@pytest.mark.parametrize("step", [(0, 0), (0, 99), (2, 7), (0, 100_000)])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 4, 4), (3, 5, 7)])
def test_normal_equals_slow_reference(seed: int, step: tuple[int, int], shape: tuple) -> None:
    rows = [0, 5, 2**33 + 1]
    ours = Noise.of(seed, rows).normal("reverse", step, like(3, *shape))
    for row, numbers in zip(rows, ours, strict=True):
        key = derived(seed % 2**64, "\0of", row)
        slow = slow_normal(key, "reverse", step, math.prod(shape))
        np.testing.assert_allclose(numbers.flatten(), slow, rtol=0, atol=1e-14)


def test_uniform_equals_slow_reference() -> None:
    key = derived(3, "\0of", 4)
    slow = [u for block in units(key, "\0uniform start", (0, 2), 10) for u in block][:10]
    assert Noise.of(3, [4]).uniform("start", 2, like(1, 10)).flatten().tolist() == slow


def test_fold_and_draws_equal_slow_reference() -> None:
    key = derived(0, "\0of", 8)
    folded = derived(derived(derived(key, "pgd", 2), "pgd", 3), "pgd", 1)
    drawn = derived(key, "\0draws", 2)
    noise = Noise.of(0, [8])
    for ours, expected in ((noise.fold("pgd", 3, 1), folded), (noise.draws(3)[2:], drawn)):
        assert ours.keys.tolist() == [(expected + 2**63) % 2**64 - 2**63]


# Numbers that must never change: a published result names a seed.
GOLDEN = {
    "plain": (
        lambda n: n,
        [1.781745488597901, 0.801163510460664, 0.085340718689008],
        [-1.619917720643863, -1.697034155408900, 1.153686746363089],
    ),
    "draws": (
        lambda n: n.draws(2)[1::2],
        [0.635233515635480, -1.587977148215787, 0.724410740184746],
        [-0.882657169643366, 0.316673938788402, 0.822511890897243],
    ),
    "lock": (
        lambda n: n.lock("forward").fold("x"),
        [0.614202915624938, -0.598120676390503, -0.251892491394857],
        [-0.550173403114907, 0.332858710394467, -0.495532146190360],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str) -> None:
    act, *expected = GOLDEN[name]
    z = act(Noise.of(2024, [0, 49_999])).normal("forward", 0, like(2, 3))
    np.testing.assert_allclose(z, expected, rtol=0, atol=2e-15)


# --- rows --------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_batch_order_or_slicing() -> None:
    noise = Noise.of(0, range(10))
    whole = noise.normal("forward", 3, like(10))
    order = [7, 2, 2, 9, 0]
    for part, rows in (
        (noise[4:7], [4, 5, 6]),
        (noise[torch.tensor(order)], order),
        (noise[order], order),
        (noise[torch.arange(10) % 2 == 0], [0, 2, 4, 6, 8]),
        (Noise.of(0, order), order),
        (Noise.of(0, torch.tensor(order, dtype=torch.int32)), order),
        (Noise.of(0, (i for i in order)), order),
        (Noise.of(2**64, np.array(order)), order),
    ):
        assert torch.equal(part.normal("forward", 3, like(len(rows))), whole[rows])


def test_order_and_repetition_of_requests_do_not_matter() -> None:
    noise = Noise.of(1, range(3))
    first = {s: noise.normal("reverse", s, like(3)) for s in (5, 1, (2, 1))}
    for step in ((2, 1), 1, 5, 5):
        assert torch.equal(noise.normal("reverse", step, like(3)), first[step])
    assert torch.equal(noise.normal("reverse", (0, 5), like(3)), first[5])


def test_larger_images_begin_with_the_numbers_of_smaller_ones() -> None:
    noise = Noise.of(1, range(2))
    long, short = (noise.normal("forward", 0, like(2, n)) for n in (37, 10))
    assert torch.equal(long[:, :10], short)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_are_rounded_float64(kind: str, dtype: torch.dtype) -> None:
    draw: Callable[..., Tensor] = getattr(Noise.of(0, range(4)), kind)
    rounded = draw("forward", 0, like(4, dtype=dtype))
    assert rounded.dtype == dtype
    assert torch.equal(rounded, draw("forward", 0, like(4)).to(dtype))


def test_no_global_generator_is_read_or_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    noise = Noise.of(0, range(4)).lock("forward").draws(3).fold("x", 1)
    noise.normal("reverse", 0, like(12))
    noise.uniform("reverse", 0, like(12))
    assert torch.equal(torch.get_rng_state(), before)


def test_len_and_repr() -> None:
    noise = Noise.of(0, range(4)).lock("forward").mix(0.5, "reverse")
    assert len(noise) == 4
    assert len(noise.draws(3)) == 12
    assert repr(noise) == "Noise(rows=4, held=[forward(pool=1, mix=0), reverse(pool=1, mix=0.5)])"
    assert noise.held == ("forward", "reverse")
    assert noise.is_locked("forward")
    assert not noise.is_locked("reverse")
    assert not noise.is_locked("nowhere")


# --- folds and draws ---------------------------------------------------------------------------


def test_first_draws_do_not_depend_on_their_number() -> None:
    noise = Noise.of(0, range(3))
    many = noise.draws(7).normal("reverse", 1, like(21)).view(3, 7, -1)
    few = noise.draws(2).normal("reverse", 1, like(6)).view(3, 2, -1)
    assert torch.equal(many[:, :2], few)
    assert len(many.view(21, -1).unique(dim=0)) == 21
    alone = noise[1:2].draws(7).normal("reverse", 1, like(7)).view(7, -1)
    assert torch.equal(alone, many[1])


def test_everything_derived_is_different() -> None:
    noise = Noise.of(0, range(2))
    others = {
        "itself": noise,
        "seed": Noise.of(1, range(2)),
        "fold": noise.fold("pgd"),
        "fold 0": noise.fold("pgd", 0),
        "fold 1": noise.fold("pgd", 1),
        "fold 0 1": noise.fold("pgd", 0, 1),
        "fold 1 0": noise.fold("pgd", 1, 0),
        "fold name": noise.fold("judge"),
        "fold of fold": noise.fold("pgd").fold("judge"),
        "negative": noise.fold("pgd", -1),
        "large": noise.fold("pgd", 2**32),
        "draw": noise.draws(1),
        "fold then draw": noise.fold("pgd").draws(1),
        "lock": noise.lock("forward"),
    }
    rows = torch.cat([n.normal("forward", 0, like(2)).view(2, -1) for n in others.values()])
    assert len(rows.unique(dim=0)) == 2 * len(others)


def test_stages_and_steps_are_different() -> None:
    noise = Noise.of(0, range(2))
    cases = [
        (s, t) for s in ("forward", "reverse") for t in (0, 1, -1, 2**31, (1, 0), (0, 2), (1, 2))
    ]
    rows = torch.cat([noise.normal(s, t, like(2)).view(2, -1) for s, t in cases])
    assert len(rows.unique(dim=0)) == 2 * len(cases)


# --- held stages -------------------------------------------------------------------------------


def later(noise: Noise) -> list[Noise]:
    """One noise seen through many later folds and draws, with as many rows as before."""
    drawn = noise.draws(3)
    each = [drawn[torch.arange(len(noise)) * 3 + d] for d in range(3)]
    return [noise, noise.fold("pgd", 4), noise.fold("a").fold("b", 1, 2), *each, each[0].fold("c")]


def test_lock_ignores_later_folds_and_draws() -> None:
    noise = Noise.of(0, range(3)).fold("known").lock("forward")
    locked = noise.normal("forward", 0, like(3))
    free = []
    for n in later(noise):
        assert torch.equal(n.normal("forward", 0, like(3)), locked)
        assert torch.equal(n.uniform("forward", 0, like(3)), noise.uniform("forward", 0, like(3)))
        free.append(n.normal("reverse", 0, like(3)).view(3, -1))
    assert len(torch.cat(free).unique(dim=0)) == 3 * len(free)
    assert torch.equal(noise[1:].normal("forward", 0, like(2)), locked[1:])


def test_lock_depends_on_seed_image_stage_and_step() -> None:
    noise = Noise.of(0, range(3)).lock("a", "b")
    other = Noise.of(1, range(3)).lock("a")
    rows = [noise.normal(s, t, like(3)).view(3, -1) for s in "ab" for t in (0, 1)]
    rows.append(other.normal("a", 0, like(3)).view(3, -1))
    assert len(torch.cat(rows).unique(dim=0)) == 15


def test_locking_again_keeps_the_first_lock() -> None:
    noise = Noise.of(0, range(3)).lock("forward")
    again = noise.fold("later").lock("forward", "reverse")
    assert torch.equal(again.normal("forward", 0, like(3)), noise.normal("forward", 0, like(3)))
    assert again.is_locked("reverse")


@pytest.mark.parametrize("size", [2, 5, 16])
def test_pool_has_exactly_k_values_chosen_evenly(size: int) -> None:
    rows, draws = 3, 400 * size
    noise = Noise.of(0, range(rows)).pool(size, "forward").draws(draws)
    numbers = noise.normal("forward", 0, like(rows * draws, 4)).view(rows, draws, 4)
    seen = set()
    for image in numbers:
        values, counts = image.unique(dim=0, return_counts=True)
        assert len(values) == size
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
        seen |= {tuple(v) for v in values.tolist()}
    assert len(seen) == rows * size


@pytest.mark.parametrize("size", [2, 5])
def test_a_pool_over_several_stages_is_joint(size: int) -> None:
    """`size` draws in all: the stages of one draw come from the same place of the pool."""
    draws, stages = 400, ("forward", "reverse", "mask")
    noise = Noise.of(0, range(2)).pool(size, *stages).draws(draws)
    values = torch.cat([noise.normal(s, 0, like(2 * draws, 1)) for s in stages], 1)
    for image in values.view(2, draws, len(stages)):
        assert len(image.unique(dim=0)) == size


def test_a_joint_pool_does_not_hang_on_how_it_was_named() -> None:
    base = Noise.of(0, range(3))
    ways = [
        base.pool(4, "forward", "reverse"),
        base.pool(4, "reverse", "forward"),
        base.pool(4, "reverse").pool(4, "forward"),
        base.pool(4, "reverse", "forward").lock("mask"),
    ]
    for stage in ("forward", "reverse"):
        first, *others = [w.draws(30).normal(stage, 0, like(90, 1)) for w in ways]
        assert all(torch.equal(first, other) for other in others)


def test_joint_draws_are_those_that_each_stage_alone_has() -> None:
    """What a stage has in a pool does not change with the stages that join it, only which comes."""
    base = Noise.of(0, [0])
    alone = {s: base.pool(4, s).draws(60).normal(s, 0, like(60, 1)) for s in ("a", "b")}
    both = base.pool(4, "a", "b").draws(60)
    for stage, numbers in alone.items():
        assert torch.equal(both.normal(stage, 0, like(60, 1)).unique(), numbers.unique())
    assert torch.equal(both.normal("a", 0, like(60, 1)), alone["a"])


def test_pool_choices_of_two_images_and_of_pools_of_two_sizes_are_independent() -> None:
    draws = 2000
    noise = Noise.of(0, range(2)).pool(2, "forward").pool(4, "reverse").draws(draws)
    first = {s: noise.normal(s, 0, like(2 * draws, 1)).view(2, draws) for s in noise.held}
    picks = [row == row[0] for rows in first.values() for row in rows]
    agreement = np.corrcoef(np.stack([p.numpy() for p in picks]))
    assert abs(agreement - np.eye(4)).max() < 4 / math.sqrt(draws)


def test_pool_keeps_its_choice_over_a_whole_chain() -> None:
    """All steps of one draw come from one seed: two draws agree in every step or in none."""
    noise = Noise.of(0, [0]).pool(3, "reverse").draws(50)
    steps = torch.stack([noise.normal("reverse", t, like(50, 1)).view(-1) for t in range(6)], 1)
    assert len(steps.unique(dim=0)) == 3


def test_pool_of_one_is_lock() -> None:
    noise = Noise.of(0, range(3))
    for a, b in zip(later(noise.pool(1, "s")), later(noise.lock("s")), strict=True):
        assert torch.equal(a.normal("s", 1, like(3)), b.normal("s", 1, like(3)))
    assert noise.pool(1, "s").is_locked("s")


def test_pool_of_more_seeds_extends_a_smaller_pool() -> None:
    noise = Noise.of(0, [0])

    def values(size: int) -> set[float]:
        drawn = noise.pool(size, "s").draws(60).normal("s", 0, like(60, 1))
        return set(drawn.flatten().tolist())

    assert values(1) < values(2) < values(4)


@pytest.mark.parametrize(("level", "same"), [(0.0, "lock"), (1.0, "fresh")])
def test_mix_at_its_ends_is_exact(level: float, same: str) -> None:
    noise = Noise.of(0, range(3))
    mixed = noise.mix(level, "s")
    expected = noise.lock("s") if same == "lock" else noise
    for a, b in zip(later(mixed), later(expected), strict=True):
        assert torch.equal(a.normal("s", 1, like(3)), b.normal("s", 1, like(3)))
    assert mixed.is_locked("s") == (same == "lock")


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_mix_between_keeps_variance_and_has_the_right_correlation(level: float) -> None:
    noise, shape = Noise.of(0, range(4)), (25_000,)
    locked = noise.lock("s").normal("s", 0, like(4, *shape)).flatten()
    later_noise = noise.mix(level, "s").fold("later")
    mixed = later_noise.normal("s", 0, like(4, *shape)).flatten()
    fresh = noise.fold("later").normal("s", 0, like(4, *shape)).flatten()
    assert torch.allclose(mixed, math.sqrt(1 - level**2) * locked + level * fresh, atol=1e-14)
    n = mixed.numel()
    assert abs(mixed.var().item() - 1.0) < 4 * math.sqrt(2 / n)
    correlation = np.corrcoef(mixed, locked)[0, 1]
    assert abs(correlation - math.sqrt(1 - level**2)) < 4 / math.sqrt(n)


# --- the numbers' distribution -----------------------------------------------------------------


def test_normal_moments_and_distribution() -> None:
    z = Noise.of(5, range(20)).normal("forward", 0, like(20, 10_000)).flatten().numpy()
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(z)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(z)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert np.isfinite(z).all()
    for place in range(4):  # the four numbers of one Philox block
        assert stats.kstest(z[place::4], "norm").pvalue > 1e-3


def test_uniform_distribution() -> None:
    u = Noise.of(5, range(20)).uniform("start", 0, like(20, 10_000)).flatten().numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert u.min() > 0
    assert u.max() < 1


def test_nothing_is_correlated() -> None:
    """Neighbouring seeds, indices, draws, folds, steps, rounds, stages and pixels."""
    base, n = Noise.of(0, [0]), 4000

    def z(noise: Noise, stage: str = "reverse", step: int | tuple[int, int] = 5) -> np.ndarray:
        return noise.normal(stage, step, like(len(noise), n)).numpy()

    rows = [
        z(Noise.of(0, range(4))),
        *(z(Noise.of(s, [0])) for s in (1, 2, -1, 2**32)),
        z(base, step=4),
        z(base, step=6),
        z(base, step=(1, 5)),
        z(base, step=(5, 0)),
        z(base, stage="forward"),
        z(base, stage="reverse2"),
        z(base.draws(3)),
        *(z(base.fold("pgd", i)) for i in range(3)),
        z(base.lock("reverse")),
        np.roll(z(base), 1),
        np.roll(z(base), 2),
        np.roll(z(base), 4),
    ]
    matrix = np.concatenate(rows)
    for transformed in (matrix, matrix**2, np.abs(matrix)):
        correlation = np.corrcoef(transformed) - np.eye(len(matrix))
        assert np.abs(correlation).max() < 5 / math.sqrt(n)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda n: n.normal("s", 0, like(3)), "2 rows .* one row of noise per image"),
        (lambda n: n.uniform("s", 0, like(3)), "2 rows .* one row of noise per image"),
        (lambda n: n.normal("s", 0, torch.tensor(1.0)), "2 rows"),
        (lambda n: n.draws(0), "n must be at least 1 draw; got 0"),
        (lambda n: n.pool(0, "s"), "size must be at least 1 seed; got 0"),
        (lambda n: n.mix(1.5, "s"), r"level must lie in \[0, 1\]; got 1.5"),
        (lambda n: n.mix(-0.1, "s"), r"level must lie in \[0, 1\]"),
        (lambda n: n.mix(float("nan"), "s"), r"level must lie in \[0, 1\]"),
        (lambda n: n.lock("s").pool(2, "s"), "'s' is held already"),
        (lambda n: n.mix(0.5, "s").lock("s"), "'s' is held already"),
        (lambda n: n.pool(2, "s").pool(3, "s"), "'s' is held already"),
        (lambda n: Noise.of(0, [0.0, 1.0]), "index must be a flat list of integers"),
        (lambda n: Noise.of(0, torch.zeros(2)), "index must be a flat list of integers"),
        (lambda n: Noise.of(0, torch.zeros(2, 2, dtype=torch.int64)), "flat list of integers"),
        (lambda n: Noise.of(0, torch.tensor(3)), "flat list of integers"),
    ],
)
def test_errors(act: Callable[[Noise], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(Noise.of(0, range(2)))


def test_failed_holds_leave_the_noise_as_it_was() -> None:
    noise = Noise.of(0, range(2)).lock("s")
    with pytest.raises(ValueError, match="held already"):
        noise.pool(2, "other", "s")
    assert noise.held == ("s",)


# --- purposes and edges ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda n: n.fold("pgd", 0), lambda n: n.fold("pgd").fold("pgd")),
        (lambda n: n.fold("a", 0, 0, 1), lambda n: n.fold("a", 0).fold("a", 1)),
        (lambda n: n.fold("draws"), lambda n: n.draws(1)),
        (lambda n: n.fold("pool"), lambda n: n.lock("forward")),
    ],
    ids=["name twice", "numbers", "draws", "pool"],
)
def test_different_purposes_never_share_numbers(
    a: Callable[[Noise], Noise], b: Callable[[Noise], Noise]
) -> None:
    noise = Noise.of(0, range(2))
    first, second = (act(noise).normal("forward", 0, like(2)) for act in (a, b))
    assert not torch.equal(first, second)


def test_mix_of_level_one_leaves_uniform_fresh() -> None:
    noise = Noise.of(0, range(2))
    mixed = noise.mix(1.0, "s").fold("later").uniform("s", 0, like(2))
    assert torch.equal(mixed, noise.fold("later").uniform("s", 0, like(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uniform_stays_below_one_in_every_dtype(dtype: torch.dtype) -> None:
    u = Noise.of(5, range(20)).uniform("start", 0, like(20, 10_000, dtype=dtype))
    assert u.max() < 1


def test_no_rows() -> None:
    empty = like(0, 1, 2, 2)
    assert Noise.of(0, []).normal("forward", 0, empty).shape == empty.shape


@pytest.mark.parametrize(
    "act", [lambda: Noise.of(0.5, range(2)), lambda: Noise.of(0, range(2)).fold("level", 0.5)]
)
def test_seeds_and_folds_are_integers(act: Callable[[], Noise]) -> None:
    with pytest.raises((TypeError, ValueError)):
        act()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_gives_the_cpu_numbers(dtype: torch.dtype) -> None:
    noise = Noise.of(0, range(16)).pool(3, "forward").draws(4).fold("pgd", 1)
    for held in (noise, Noise.of(0, torch.arange(64, device="cuda"))):
        on_cpu = Noise(held.keys.cpu(), held._held) if held.keys.is_cuda else held
        images = like(64, 3, 32, 32, dtype=dtype)
        cpu, cuda = (
            n.normal("forward", 3, i).cpu() for n, i in ((on_cpu, images), (held, images.cuda()))
        )
        last_place = torch.nextafter(cpu.abs(), torch.full_like(cpu, math.inf)) - cpu.abs()
        assert ((cpu - cuda).abs() <= 2 * last_place).all()
        assert torch.equal(
            on_cpu.uniform("forward", 3, images), held.uniform("forward", 3, images.cuda()).cpu()
        )
