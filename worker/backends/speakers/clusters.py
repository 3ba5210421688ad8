"""Embeddings of windows → which windows have the same speaker. Pure functions, the same result every time.

    embeddings ── similar ones are joined, the most similar first ──▶ clusters ── small ones dissolve ──▶ labels

Clusters are joined by average linkage on the cosine similarity. How similar two windows of one speaker are depends on
the recording: on the noise, the language and the voices. Windows that follow each other mostly have one speaker, so
their similarity sets the threshold. A tree of n windows takes n² / 2 distances, so a long
recording is first reduced to at most LARGEST groups of windows that are next to each other and alike.
"""

from __future__ import annotations

import numpy as np

OF_NEXT = 0.85  # two clusters are one speaker above this share of the similarity of windows that follow each other
LOWEST, HIGHEST = 0.35, 0.6  # the bounds of that threshold
USUAL = 0.65  # the similarity of windows of one speaker, if the recording is too short to show it
SAME = 0.8  # two clusters are one speaker if their means are more similar than this
CERTAIN = 0.75  # the similarity above which two windows have the same speaker for sure
LARGEST = 4000  # groups in the tree
MOST_CUTS = 300  # clusters at which the search for a given number of speakers ends
LEAST = 4  # windows of a speaker, if there are others


def cluster(
    vectors: np.ndarray, similar: float = USUAL, count: int | None = None, at_most: int | None = None
) -> np.ndarray:
    """Return the label of each vector, from 0.

    vectors: float32 of shape (n, width), in the order of time.
    similar: the cosine similarity of windows of one speaker in this recording.
    count: the number of speakers, if it is known. at_most: the most speakers.
    """
    units = normalized(vectors)
    if len(units) == 0:
        return np.zeros(0, int)
    if count == 1 or at_most == 1 or len(units) == 1:
        return np.zeros(len(units), int)
    groups = _groups(units)
    sizes = np.bincount(groups)
    means = normalized(np.stack([np.bincount(groups, weights=column) for column in units.T], axis=1))
    threshold = float(np.clip(OF_NEXT * similar, LOWEST, HIGHEST))
    labels: np.ndarray = _labels(means, sizes, threshold, count, at_most)[groups]
    return labels


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors with length 1."""
    units: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return units


def centers(units: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean direction of each label's vectors, of shape (labels, width)."""
    return normalized(np.stack([units[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)]))


def _groups(units: np.ndarray) -> np.ndarray:
    """Return the group of each vector: itself, or vectors next to it if there are more than LARGEST."""
    groups, certain = np.arange(len(units)), CERTAIN
    while groups[-1] >= LARGEST:
        similar = np.einsum("ij,ij->i", units[1:], units[:-1]) > certain
        groups = np.concatenate(([0], np.cumsum(~similar)))
        certain -= 0.05
    return groups


def _labels(
    means: np.ndarray, sizes: np.ndarray, threshold: float, count: int | None, at_most: int | None
) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(means) == 1:
        return np.zeros(1, int)
    tree = linkage(np.maximum(_distances(means), 0.0), "average")
    labels = _joined(means, _dissolve(means, sizes, fcluster(tree, 1.0 - threshold, "distance")))
    found = int(labels.max()) + 1
    wanted = count or min(at_most or found, found)
    if wanted == found:
        return labels
    return _of_count(means, sizes, tree, wanted)


def _of_count(means: np.ndarray, sizes: np.ndarray, tree: np.ndarray, wanted: int) -> np.ndarray:
    """Return labels of so many speakers, or of the next lower number that the tree has."""
    from scipy.cluster.hierarchy import fcluster

    best = np.zeros(len(means), int)
    for clusters in range(2, min(len(means), MOST_CUTS) + 1):
        labels = _dissolve(means, sizes, fcluster(tree, clusters, "maxclust"))
        if best.max() < labels.max() < wanted:
            best = labels
        if best.max() + 1 == wanted:
            break
    return best


def _distances(units: np.ndarray) -> np.ndarray:
    """Return one minus the cosine similarity of all pairs, in the order that scipy's linkage takes."""
    distances: np.ndarray = (1.0 - units @ units.T)[np.triu_indices(len(units), 1)]
    return distances


def _joined(units: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return labels from 0 in which clusters with similar means are one."""
    while labels.max() > 0:
        middles = centers(units, labels)
        alike = np.triu(middles @ middles.T, 1)
        first, second = np.unravel_index(alike.argmax(), alike.shape)
        if alike[first, second] <= SAME:
            break
        labels = np.unique(np.where(labels == second, first, labels), return_inverse=True)[1]
    return labels


def _dissolve(units: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return labels from 0 without those of fewer than LEAST windows, whose vectors go to the most similar speaker."""
    names, labels = np.unique(labels, return_inverse=True)
    totals = np.bincount(labels, weights=sizes)
    kept = np.flatnonzero(totals >= min(LEAST, totals.max()))
    if len(kept) == len(names):
        return labels
    middles = centers(units, labels)[kept]
    nearest = (units @ middles.T).argmax(axis=1)
    place = {label: number for number, label in enumerate(kept)}
    return np.array([place.get(label, other) for label, other in zip(labels, nearest, strict=True)])
