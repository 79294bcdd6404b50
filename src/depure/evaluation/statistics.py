"""Accuracies of a stochastic defence, with intervals that respect draws nested in images.

The draws of one image are not independent evidence: every interval is built from one number
per image, and speaks of new images of the same kind under new draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, comb

from depure.answers import NOBODY

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MAX_VOTES = 1000  # C(1000, 500) still fits a double; C(1030, 515) does not
_ROWS = 512  # vote tables are worked in blocks that stay in the cache


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval, `low <= value <= high`.

    In [0, 1] for an accuracy, in [-1, 1] for a difference of accuracies.
    """

    value: float
    low: float
    high: float


def mean_accuracy(correct: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Chance that one fresh draw classifies an image rightly, averaged over images.

    `correct` is bool (n_images, n_draws). The interval is that of `limits`: of Clopper and Pearson
    (1934, Biometrika 26:404) for one draw or where the draws of every image agree, else as narrow
    as the spread between images allows.

    Raises ValueError for a table that is empty, not 2-D or not boolean, and for a confidence
    outside (0, 1).

    >>> mean_accuracy([[True, True], [True, False]]).value
    0.75
    """
    table = _table("correct", correct)
    right, images = np.unique(table.sum(axis=1), return_counts=True)
    return _estimates(right[:, None] / table.shape[1], images, confidence)[0]


def any_of_n(
    correct: npt.ArrayLike, confidence: float = 0.95, most: int | None = None
) -> list[Interval]:
    """Accuracy against an attacker with N tries: an image must be right in all N draws.

    `correct` is bool (n_images, n_draws); item N - 1 of the answer is for N = 1..n_draws, or up
    to `most`. An image right in k of R draws counts C(k, N) / C(R, N), the share of its N-subsets
    that are all right: the unbiased estimate (a U-statistic, Hoeffding 1948; the form of pass@k in
    arXiv:2107.03374, eq. 1). Intervals and errors as in `mean_accuracy`, and for `most` below 1.

    >>> [e.value for e in any_of_n([[True, True], [True, False]])]
    [0.75, 0.5]
    """
    table = _table("correct", correct)
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1 try; got {most}: pass None for all draws")
    draws = table.shape[1]
    right, images = np.unique(table.sum(axis=1), return_counts=True)
    tries = np.arange(draws if most is None else min(draws, most))
    share = np.maximum(right[:, None] - tries, 0) / (draws - tries)
    np.cumprod(share, axis=1, out=share)  # [k, N - 1], of the k that occur
    return _estimates(share, images, confidence)


def majority_of_k(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, confidence: float = 0.95
) -> list[Interval]:
    """Accuracy of the plurality vote over k fresh draws; a tie for first place counts as wrong.

    `predictions` is int (n_images, n_draws), n_draws <= 1000, `labels` int (n_images,); a
    prediction of -1 (no finite answer) is a vote for nobody. Item
    k - 1 of the answer is for k = 1..n_draws. An image counts the share of its k-subsets of
    draws whose vote is won by the label: exact (multivariate hypergeometric), not resampled,
    and unbiased. At k = n_draws it is the plain vote over all draws. Between two classes only
    an even k can tie: compare curves at odd k. Intervals as in `mean_accuracy`.

    Raises ValueError for arrays that are empty, of the wrong shape or not integers, and for a
    confidence outside (0, 1).

    >>> [e.value for e in majority_of_k([[7, 7, 1]], [7])]  # k = 2: two of three pairs tie
    [0.6666666666666666, 0.3333333333333333, 1.0]
    """
    votes = _array("predictions", predictions, 2, "integer", "pass logits.argmax(-1)")
    truth = _array("labels", labels, 1, "integer", "pass class indices")
    if len(truth) != len(votes):
        raise ValueError(
            f"labels must have one entry per row of predictions; got {len(truth)} for "
            f"{len(votes)} rows: pass the labels of the same images, in the same order"
        )
    draws = votes.shape[1]
    if draws > _MAX_VOTES:
        cure = f"pass predictions[:, :{_MAX_VOTES}]"
        raise ValueError(f"predictions may have {_MAX_VOTES} draws at most; got {draws}: {cure}")
    profiles, place = np.unique(_profiles(votes, truth), axis=0, return_inverse=True)
    pascal = comb(np.arange(draws + 1)[:, None], np.arange(draws + 1))
    blocks = [profiles[i : i + _ROWS] for i in range(0, len(profiles), _ROWS)]
    won = np.concatenate([_votes_won(b[:, 0], b[:, 1:], pascal) for b in blocks])
    return _estimates(won, np.bincount(place.reshape(-1)), confidence)


def difference(
    correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Mean accuracy of `a` minus that of `b` over the same images, in [-1, 1].

    Both are bool (n_images, n_draws); the numbers of draws may differ. The interval is that of
    `limits` for the per-image differences, scaled from [-1, 1] to [0, 1]: paired, and never of
    zero width. `value` is the mean difference.

    Raises ValueError as `mean_accuracy` does, and for different numbers of images.

    >>> difference([[True], [True]], [[True], [False]]).value
    0.5
    """
    a, b = _table("correct_a", correct_a), _table("correct_b", correct_b)
    if len(a) != len(b):
        raise ValueError(
            f"correct_a and correct_b must have the same images; got {len(a)} and {len(b)} "
            "rows: evaluate both on the same images in the same order"
        )
    gap = a.mean(axis=1) - b.mean(axis=1)
    low, high = limits((gap[:, None] + 1) / 2, np.ones(len(gap)), confidence)
    value = float(gap.mean())
    return Interval(value, min(float(2 * low[0] - 1), value), max(float(2 * high[0] - 1), value))


def limits(
    values: Floats, images: npt.ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Confidence limits (m,), (m,) for m means of per-image `values` (rows, m) in [0, 1].

    Row i stands for `images[i]` images. For the upper limit one more image is imagined, with the
    value 1, and every image is given a random weight, uniform on the simplex: the distribution of
    the weighted mean bounds that of the true mean whatever that of the values (Gaffke 2005, Math.
    Meth. Stat. 14:451; arXiv:1905.06208 and 2106.03163), and is Clopper and Pearson's (1934) for
    values 0 and 1. Here the beta distribution of the same mean and variance stands for it, exactly
    so for 0 and 1. The lower limit mirrors it. What a sample of n images cannot show, a kind of
    image as rare as 1 in n, is thus allowed for: about 3/n towards the far end.

    `benchmarks/coverage.py` simulates it: 8 to 256 images, 1 to 20 draws, accuracies that follow a
    Beta (means 0.005 to 0.995), two points, or a rare kind of image, for all four statistics,
    10,000 repetitions a cell. The lowest coverage of a nominal 95 % was WORST %, the mean MEAN %:
    where events are rare it errs on the wide side.

    Raises ValueError for a confidence outside (0, 1).

    >>> low, high = limits(np.array([[0.0], [1.0]]), [3, 1])  # Clopper and Pearson for 1 of 4
    >>> round(float(low[0]), 4), round(float(high[0]), 4)
    (0.0063, 0.8059)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1); got {confidence}: pass 0.95 for 95 %")
    weights = np.asarray(images, dtype=np.float64)
    return 1.0 - _upper(1.0 - values, weights, confidence), _upper(values, weights, confidence)


def _upper(values: Floats, weights: Floats, confidence: float) -> Floats:
    total = weights.sum()
    mean = (weights @ values + 1.0) / (total + 1.0)
    spread = (weights @ (values - mean) ** 2 + (1.0 - mean) ** 2) / (total + 1.0)
    some = mean < 1.0 - 1e-12  # else every image is right, up to rounding: nothing lies above
    mean, spread = mean[some], spread[some]
    # A mean under uniform weights on n + 1 points has variance spread / (n + 2).
    size = (total + 2.0) * mean * (1.0 - mean) / spread - 1.0
    limit = np.ones(len(some))
    limit[some] = betaincinv(mean * size, (1.0 - mean) * size, 0.5 + confidence / 2)
    return limit


def _estimates(values: Floats, images: Ints, confidence: float) -> list[Interval]:
    """Means over images of `values` (rows, m), row i being that of `images[i]` of them."""
    mean = np.clip(images @ values / images.sum(), 0.0, 1.0)
    low, high = limits(values, images, confidence)
    table = np.stack([mean, np.minimum(low, mean), np.maximum(high, mean)], axis=1)
    return [Interval(*row) for row in table.tolist()]


def _profiles(votes: Ints, truth: Ints) -> Ints:
    """Votes for the label, then for each rival class, most first: (n_images, 1 + rivals)."""
    images, draws = votes.shape
    ordered = np.sort(votes, axis=1)
    group = np.zeros((images, draws), dtype=np.int64)
    group[:, 1:] = np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1)
    group += np.arange(images)[:, None] * draws
    own = (ordered == truth[:, None]).sum(axis=1)
    rival = (ordered != truth[:, None]) & (ordered != NOBODY)
    counts = np.bincount(group[rival], minlength=images * draws).reshape(images, draws)
    counts = -np.sort(-counts, axis=1)
    return np.concatenate([own[:, None], counts[:, counts.any(axis=0)]], axis=1)


def _votes_won(own: Ints, rivals: Ints, pascal: Floats) -> Floats:
    """Share of k-subsets in which the label beats every rival: (rows, n_draws), k = 1..n_draws.

    `own` (rows,) is ascending, `rivals` (rows, classes) descending along each row. The subsets
    with t votes for the label and fewer than t for each rival number C(own, t) times the
    coefficient of x^(k - t) in the product over rivals of sum_{s < t} C(rival, s) x^s.
    All terms are positive: nothing cancels.
    """
    draws = len(pascal) - 1
    won: Floats = np.zeros((len(own), draws))
    for t in range(1, int(own.max()) + 1):
        first = int(np.searchsorted(own, t))  # rows from here on have t votes to give
        strong = rivals[first:] >= t
        # those that never reach t, and draws without an answer: one binomial
        weak = draws - own[first:] - np.where(strong, rivals[first:], 0).sum(axis=1)
        ways = pascal[weak]
        for j in range(int(strong.sum(axis=1).max(initial=0))):
            rows = np.flatnonzero(strong[:, j])
            ways[rows] = _times(ways[rows], pascal[rivals[first + rows, j], :t])
        won[first:, t - 1 :] += pascal[own[first:], t][:, None] * ways[:, : draws + 1 - t]
    won /= pascal[draws, 1:]
    return won


def _times(ways: Floats, factor: Floats) -> Floats:
    """Row-wise product of polynomials (rows, degrees), cut off at the degree of `ways`."""
    out = ways * factor[:, :1]
    for s in range(1, factor.shape[1]):
        out[:, s:] += factor[:, s : s + 1] * ways[:, :-s]
    return out


def _table(name: str, given: npt.ArrayLike) -> Bools:
    return _array(name, given, 2, "boolean", "pass predictions == labels[:, None]")


def _array(name: str, given: npt.ArrayLike, ndim: int, kind: str, cure: str) -> npt.NDArray[Any]:
    """`given` as a non-empty array of that many dimensions and kind, or a ValueError."""
    shape = "(n_images, n_draws)" if ndim == 2 else "(n_images,)"
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:  # ragged rows; a tensor on a GPU
        raise ValueError(
            f"{name} must be an array {shape}; got {type(given).__name__}, which numpy cannot "
            f"read ({error}): pass rows of equal length, on the CPU"
        ) from error
    if array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"{name} must be a non-empty array {shape}; got shape {array.shape}: pass one row "
            "per image" + (" and one column per draw, even for one draw" if ndim == 2 else "")
        )
    if array.dtype.kind not in {"boolean": "b", "integer": "iu"}[kind]:
        nan = " with NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise ValueError(f"{name} must be {kind}; got {array.dtype}{nan}: {cure}")
    return array
