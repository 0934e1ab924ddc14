"""Long series made small without losing what the eye looks for: extremes, ends, what is not finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BucketMeans:
    """What smoothing works on: one point a bucket, weighted by how many values stand behind it."""

    index: Indices
    """Place in the series of the bucket's middle value."""
    mean: Floats
    count: Indices


def extreme_points(values: Floats, buckets: int) -> Indices:
    """Which places of a series to draw so that its outline stays.

    Args:
        values: Shape [n]; NaN where absent, infinity where not finite.
        buckets: Runs of neighbouring values that keep two points each.

    Returns:
        Ascending places: every present one where they are few; else first, last, and of each bucket
        the smallest, the largest and the first that is not finite.
    """
    present = np.flatnonzero(~np.isnan(values))
    if len(present) <= 2 * buckets:
        return present
    kept = [present[0], present[-1]]
    for bucket in np.array_split(present, buckets):
        finite = np.isfinite(values[bucket])
        if not finite.all():
            kept.append(bucket[np.argmin(finite)])
        if finite.any():
            candidates = bucket[finite]
            kept += [candidates[np.argmin(values[candidates])], candidates[np.argmax(values[candidates])]]
    return np.unique(np.array(kept, dtype=np.int64))


def bucket_means(values: Floats, buckets: int, *, geometric: bool = False) -> BucketMeans:
    """Means of the finite values of each bucket; geometric ones for perplexity, which is an exponential.

    Args:
        values: Shape [n]; NaN where absent, infinity where not finite.
        buckets: Runs of neighbouring values; up to twice as many values pass through as they are.
        geometric: Take exp(mean(log)); values that are not positive count as absent.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(values) if geometric else values
    present = np.flatnonzero(np.isfinite(scaled))
    if len(present) <= 2 * buckets:
        return BucketMeans(index=present, mean=values[present], count=np.ones(len(present), dtype=np.int64))
    split = np.array_split(present, buckets)
    means = np.array([scaled[bucket].mean() for bucket in split])
    return BucketMeans(
        index=np.array([bucket[len(bucket) // 2] for bucket in split]),
        mean=np.exp(means) if geometric else means,
        count=np.array([len(bucket) for bucket in split]),
    )


def spread(count: int, limit: int, keep: set[int] | None = None) -> list[int]:
    """At most about `limit` of `count` places, evenly spread, the first, the last and `keep` among them."""
    if count <= limit:
        return list(range(count))
    return sorted(set(np.linspace(0, count - 1, limit).round().astype(int).tolist()) | (keep or set()))
