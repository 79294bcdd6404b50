"""Accuracies of a stochastic defence, with intervals that respect draws nested in images.

The draws of one image are not independent evidence: every interval is built from one number
per image, and speaks of new images of the same kind under new draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import comb, ndtri, stdtrit

from depure.answers import NOBODY

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MAX_VOTES = 1000  # C(1000, 500) still fits a double; C(1030, 515) does not
_ROWS = 512  # vote tables are worked in blocks that stay in the cache


@dataclass(frozen=True)
class Estimate:
    """A point estimate with its confidence interval, `low <= value <= high`.

    In [0, 1] for an accuracy, in [-1, 1] for a difference of accuracies.
    """

    value: float
    low: float
    high: float


def mean_accuracy(correct: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Chance that one fresh draw classifies an image rightly, averaged over images.

    `correct` is bool (n_images, n_draws). The interval is Wilson's (1927, JASA 22:209) at an
    effective number of images, as recommended for clustered data by Franco, Little, Louis and
    Slud (2019, J. Survey Stat. Methodol. 7:334); see `_effective_images`. With one draw, or
    where the draws of every image agree, it is the plain Wilson interval for n_images (which
    covers an accuracy of 0.97 in 92 % of samples of 16 images); else it errs on the wide side.

    Raises ValueError for a table that is empty, not 2-D or not boolean, and for a confidence
    outside (0, 1).

    >>> mean_accuracy([[True, True], [True, False]]).value
    0.75
    """
    table = _table("correct", correct)
    return _estimates(table.mean(axis=1)[:, None], table.shape[1], confidence)[0]


def any_of_n(correct: npt.ArrayLike, confidence: float = 0.95) -> list[Estimate]:
    """Accuracy against an attacker with N tries: an image must be right in all N draws.

    `correct` is bool (n_images, n_draws); item N - 1 of the answer is for N = 1..n_draws. An
    image right in k of R draws counts C(k, N) / C(R, N), the share of its N-subsets that are
    all right: the unbiased estimate (a U-statistic, Hoeffding 1948; the form of pass@k in
    arXiv:2107.03374, eq. 1). Intervals and errors as in `mean_accuracy`.

    >>> [e.value for e in any_of_n([[True, True], [True, False]])]
    [0.75, 0.5]
    """
    table = _table("correct", correct)
    draws = table.shape[1]
    right, tries = np.arange(draws + 1)[:, None], np.arange(draws)
    share = np.cumprod(np.maximum(right - tries, 0) / (draws - tries), axis=1)  # [k, N - 1]
    return _estimates(share[table.sum(axis=1)], draws, confidence)


def majority_of_k(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, confidence: float = 0.95
) -> list[Estimate]:
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
    return _estimates(won[place.reshape(-1)], draws, confidence)


def difference(
    correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, confidence: float = 0.95
) -> Estimate:
    """Mean accuracy of `a` minus that of `b` over the same images, in [-1, 1].

    Both are bool (n_images, n_draws); the numbers of draws may differ. A paired t interval on
    the per-image differences, to which half an image of difference +1, half of -1 and one of 0
    are added (Agresti and Min 2005, Stat. Med. 24:729, for one draw). The plain paired t has
    zero width where all differences are equal and misses an effect on few images: 0.28
    coverage with 16 images when 2 % of images change. `value` is the unadjusted difference.

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
    images = len(gap)
    centre = gap.sum() / (images + 2)
    spread = (gap @ gap + 1) / (images + 2) - centre**2
    # one image has no degree of freedom: t with one is wide enough to say so
    half = _quantile(confidence, max(images - 1, 1)) * np.sqrt(spread / (images + 2))
    low, value, high = np.clip([centre - half, gap.mean(), centre + half], -1, 1).tolist()
    return Estimate(value, min(low, value), max(high, value))


def _estimates(values: Floats, draws: int, confidence: float) -> list[Estimate]:
    """Means of `values` (n_images, m), in [0, 1], over images, each with a Wilson interval."""
    z = _quantile(confidence)
    p = np.clip(values.mean(axis=0), 0.0, 1.0)
    k = z**2 / _effective_images(values, p, draws, confidence)
    centre = (p + k / 2) / (1 + k)
    half = np.sqrt(k * p * (1 - p) + k**2 / 4) / (1 + k)
    low = np.clip(np.minimum(centre - half, p), 0.0, 1.0)
    high = np.clip(np.maximum(centre + half, p), 0.0, 1.0)
    return [Estimate(*row) for row in np.stack([p, low, high], axis=1).tolist()]


def _effective_images(values: Floats, p: Floats, draws: int, confidence: float) -> Floats:
    """How many one-draw images would tell as much about the mean `p` (m,) as `values` do.

    p(1 - p) is the largest variance values of mean p can have, so n images count as
    n p(1 - p) / s^2, times (z / t)^2 for the few degrees of freedom behind s^2 (Korn and
    Graubard 1998, Surv. Methodol. 24:193): never less than n, at most n * draws.
    Near 0 and 1 that ratio is itself noisy: 16 images, none of a rare kind, would count as
    16 * draws. So s^2 and p(1 - p) are taken as if two more images had been seen, one always
    right and one always wrong (as Agresti and Coull 1998, but in the variance only).
    """
    images = len(values)
    if images == 1:
        return np.ones_like(p)
    extra = p**2 + (1 - p) ** 2
    seen = ((values - p) ** 2).sum(axis=0) * images / (images - 1)
    most = images * p * (1 - p)
    caution = (_quantile(confidence) / _quantile(confidence, images - 1)) ** 2
    effective: Floats = images * caution * (most + extra) / (seen + extra)
    return np.clip(effective, images, images * draws)


def _quantile(confidence: float, freedom: float = inf) -> float:
    """Two-sided quantile of Student's t; of the normal for infinite `freedom`."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1); got {confidence}: pass 0.95 for 95 %")
    upper = 0.5 + confidence / 2
    return float(ndtri(upper) if freedom == inf else stdtrit(freedom, upper))


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
