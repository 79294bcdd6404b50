"""Keyed noise: every random number is a pure function of (row key, stage, step, position)."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# Philox4x32-10 multipliers and key increments: Salmon et al., "Parallel random numbers:
# as easy as 1, 2, 3" (SC 2011), section 3.3.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

StepKey = int | tuple[int, int]


@dataclass(frozen=True)
class _Held:
    """A stage whose numbers come from `keys` (known to the attacker), not from the fresh keys."""

    keys: Tensor
    pool: int = 1
    mix: float = 0.0

    def rows(self, keys: Tensor) -> _Held:
        return replace(self, keys=keys)


@dataclass(frozen=True, eq=False)
class Noise:
    """Immutable source of random numbers with one 64-bit key per row (image).

    `normal` and `uniform` are pure functions: the same numbers however often, in whatever
    order, on whatever device and beside whatever other rows they are asked for. Numbers are
    made by the counter-based generator Philox4x32-10 (Salmon et al., SC 2011) and, for
    normals, the Box-Muller transform in float64, so that CPU and CUDA agree to within one
    unit in the last place of the result's type.

    Example:
        >>> noise = Noise.of(seed=0, index=range(4))
        >>> noise.normal("forward", 0, torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    keys: Tensor
    _held: dict[str, _Held] = field(default_factory=dict)

    @staticmethod
    def of(seed: int, index: Iterable[int] | Tensor) -> Noise:
        """Keys from a seed (any integer, taken modulo 2**64) and the data-set index of each image.

        Raises:
            ValueError: if `index` is not a flat list of integers.
        """
        rows = torch.as_tensor(index if isinstance(index, Tensor) else list(index))
        if rows.ndim != 1 or (rows.is_floating_point() and rows.numel() > 0):
            raise ValueError(
                f"index must be a flat list of integers (one data-set index per image); "
                f"got shape {tuple(rows.shape)} and dtype {rows.dtype}"
            )
        rows = rows.to(torch.int64)
        signed = (_integer("seed", seed) + 2**63) % 2**64 - 2**63
        return Noise(_derive(torch.full_like(rows, signed), "\0of", rows))

    def __len__(self) -> int:
        return self.keys.shape[0]

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Noise:
        """The noise of some rows: `noise[2:4]` gives rows 2 and 3 the numbers they have here.

        Rows may lie on another device than the keys.
        """
        if isinstance(rows, int):
            raise ValueError(f"rows must be a slice or a list; got {rows}: use [{rows}:{rows + 1}]")
        rows = rows.to(self.keys.device) if isinstance(rows, Tensor) else rows
        select = rows if isinstance(rows, slice | Tensor) else list(rows)
        held = {stage: h.rows(h.keys[select]) for stage, h in self._held.items()}
        return Noise(self.keys[select], held)

    def __repr__(self) -> str:
        held = ", ".join(
            f"{stage}(pool={h.pool}, mix={h.mix:g})" for stage, h in self._held.items()
        )
        return f"Noise(rows={len(self)}, held=[{held}])"

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the stages that `lock`, `pool` or `mix` hold."""
        return tuple(self._held)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The keys of the rows and of every stage held: with `repr`, all that decides a number."""
        return (self.keys, *(h.keys for h in self._held.values()))

    def is_locked(self, stage: str) -> bool:
        """Whether the stage gives the same numbers whatever is folded or drawn."""
        held = self._held.get(stage)
        return held is not None and held.pool == 1 and held.mix == 0.0

    def fold(self, name: str, *numbers: int) -> Noise:
        """New, independent numbers for a named purpose: `noise.fold("pgd", iteration)`.

        Held stages keep theirs.
        """
        # The count comes first, so that no sequence of folds is the beginning of another.
        keys = self.keys
        for number in (len(numbers), *numbers):
            keys = _derive(keys, name, torch.full_like(keys, _integer("numbers", number)))
        return Noise(keys, self._held)

    def draws(self, n: int) -> Noise:
        """n rows for each row (rows 0..n-1 belong to row 0): independent draws for EoT or judging.

        The first n draws are the same whatever n. Held stages repeat their numbers.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1 draw; got {n}")
        keys = self.keys.repeat_interleave(n)
        draw = torch.arange(n, device=keys.device).repeat(len(self))
        held = {s: h.rows(h.keys.repeat_interleave(n)) for s, h in self._held.items()}
        return Noise(_derive(keys, "\0draws", draw), held)

    def lock(self, *stages: str) -> Noise:
        """Fix these stages: they ignore every later `fold` and `draws` (the DW-box setting)."""
        return self._hold(stages, pool=1, mix=0.0)

    def pool(self, size: int, *stages: str) -> Noise:
        """Restrict these stages to `size` fixed draws per row, chosen afresh by folds and draws.

        Stages pooled to the same size draw the same number: together they have `size` draws, not
        `size` each. `pool(1, ...)` is `lock(...)`.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1 seed; got {size}")
        return self._hold(stages, pool=size, mix=0.0)

    def mix(self, level: float, *stages: str) -> Noise:
        """Variance-preserving mix sqrt(1 - level**2) * locked + level * fresh for these stages.

        level 0 is `lock(...)` (DW-box), level 1 is fresh noise (ordinary white-box), exactly.
        """
        if not 0.0 <= level <= 1.0:
            raise ValueError(f"level must lie in [0, 1]; got {level}")
        return self._hold(stages, pool=1, mix=float(level))

    def _hold(self, stages: tuple[str, ...], pool: int, mix: float) -> Noise:
        held = dict(self._held)
        for stage in stages:
            new = _Held(self.keys, pool, mix)
            old = held.get(stage)
            if old is not None and (old.pool, old.mix) != (pool, mix):
                raise ValueError(
                    f"stage {stage!r} is held already (pool={old.pool}, mix={old.mix:g}); "
                    f"hold it once, on the noise before it was held"
                )
            held.setdefault(stage, new)
        return Noise(self.keys, held)

    def normal(self, stage: str, step: StepKey, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like`, shape (rows, ...).

        Args:
            stage: what the numbers are for ("forward", "reverse", ...); names are independent.
            step: the step's integer label, or (round, label).
            like: tensor with `len(noise)` rows; only its shape, dtype and device matter.

        Raises:
            ValueError: if `like` has another number of rows than the noise.
        """
        self._check_rows(like)
        held = self._held.get(stage)
        if held is None or held.mix == 1.0:
            return _normal(self.keys, stage, step, like)
        z = _normal(self._held_keys(held), stage, step, like)
        if held.mix == 0.0:
            return z
        fresh = _normal(self.keys, stage, step, like)
        return math.sqrt(1.0 - held.mix**2) * z + held.mix * fresh

    def uniform(self, stage: str, step: StepKey, like: Tensor) -> Tensor:
        """Uniform numbers in (0, 1), independent of `normal`'s; arguments and errors as there.

        Raises:
            ValueError: also for a stage mixed at a level inside (0, 1): a mix is not uniform.
        """
        self._check_rows(like)
        held = self._held.get(stage)
        if held is not None and 0.0 < held.mix < 1.0:
            raise ValueError(f"uniform numbers cannot be mixed; stage {stage!r} is at {held.mix}")
        fresh = held is None or held.mix == 1.0
        keys = self.keys if fresh or held is None else self._held_keys(held)
        values = _fit(_to_unit(_words(keys, "\0uniform " + stage, step, like)), like)
        return values.clamp_max(1.0 - torch.finfo(like.dtype).eps / 2)  # rounding may reach 1

    def _held_keys(self, held: _Held) -> Tensor:
        choice = torch.zeros_like(held.keys)
        if held.pool > 1:
            # one choice for all stages of the pool, whatever the order in which they were named
            name = min(stage for stage, other in self._held.items() if other.pool == held.pool)
            choice = (_derive(self.keys, "\0choice " + name, choice) & _MASK) % held.pool
        return _derive(held.keys, "\0pool", choice)

    def _check_rows(self, like: Tensor) -> None:
        if not like.is_floating_point():
            raise ValueError(f"noise is for floating-point images; got {like.dtype}")
        if like.ndim == 0 or like.shape[0] != len(self):
            raise ValueError(
                f"the noise has {len(self)} rows but the images have shape {tuple(like.shape)}: "
                f"pass one row of noise per image (noise.draws(n) goes with "
                f"x.repeat_interleave(n, 0))"
            )


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be integers; got {value!r}") from None


def _word(name: str) -> int:
    """31 bits of a name; the top bit is kept free to tell numbers from keys."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1


def _derive(keys: Tensor, name: str, number: Tensor) -> Tensor:
    """New keys (B,) from old ones, a name and an integer (B,) each."""
    low, high = number & _MASK, (number >> 32) & _MASK
    tag = torch.full_like(keys, _word(name))
    words = _philox(
        keys, [low[:, None], high[:, None], tag[:, None], torch.zeros_like(tag)[:, None]]
    )
    return (words[0, :, 0] << 32) | words[1, :, 0]


def _words(keys: Tensor, stage: str, step: StepKey, like: Tensor) -> Tensor:
    """Random 32-bit words (4, B, blocks), enough for every element of a row of `like`."""
    turn, label = step if isinstance(step, tuple) else (0, step)
    # A device without float64 (Apple's MPS) gets its numbers from the CPU.
    keys = keys.to("cpu" if like.device.type == "mps" else like.device)
    elements = math.prod(like.shape[1:])
    blocks = torch.arange(-(-elements // 4), device=keys.device).expand(len(keys), -1)
    constant = [torch.full_like(blocks, w) for w in (label & _MASK, turn & _MASK)]
    tag = torch.full_like(blocks, _word(stage) | 0x80000000)
    return _philox(keys, [blocks, constant[0], constant[1], tag])


def _philox(keys: Tensor, counter: list[Tensor]) -> Tensor:
    """Philox4x32-10 of int64 keys (B,) and four counter words (B, n): four words, (4, B, n)."""
    even = torch.stack([counter[0], counter[2]])
    odd = torch.stack([counter[1], counter[3]])
    multipliers = torch.tensor(_MULTIPLIERS, device=keys.device).view(2, 1, 1)
    increments = torch.tensor(_INCREMENTS, device=keys.device).view(1, 2, 1, 1)
    halves = torch.stack([keys & _MASK, (keys >> 32) & _MASK]).view(1, 2, -1, 1)
    turns = torch.arange(_ROUNDS, device=keys.device).view(-1, 1, 1, 1)
    schedule = (halves + turns * increments) & _MASK
    for turn in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which keeps the bits of the unsigned product.
        product = (even * multipliers).flip(0)
        even = (product >> 32).bitwise_and_(_MASK).bitwise_xor_(odd).bitwise_xor_(schedule[turn])
        odd = product.bitwise_and_(_MASK)
    return torch.stack([even[0], odd[0], even[1], odd[1]])


def _to_unit(words: Tensor) -> Tensor:
    return words.to(torch.float64).add_(0.5).mul_(2.0**-32)


def _normal(keys: Tensor, stage: str, step: StepKey, like: Tensor) -> Tensor:
    words = _words(keys, stage, step, like)
    radius = _to_unit(words[:2]).log_().mul_(-2.0).sqrt_()
    angle = _to_unit(words[2:]).mul_(2.0 * math.pi)
    return _fit(torch.cat([radius * angle.cos(), radius * angle.sin()]), like)


def _fit(values: Tensor, like: Tensor) -> Tensor:
    """(4, B, blocks) float64 to the shape, dtype and device of `like`."""
    rows = values.to(like.dtype).movedim(0, 2).flatten(1)
    return rows[:, : math.prod(like.shape[1:])].reshape(like.shape).to(like.device)
