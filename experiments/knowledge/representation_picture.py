"""Pictures of features in the plane: principal components and t-SNE, alike for every model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from famr_jax.report import Drawing
from famr_jax.report.plot import axes, colour

TONES = ("blue", "green", "purple", "ink", "orange", "brown", "olive", "grey", "muted")
"""Of the classes that are kept; the forgotten one is vermillion."""
SIDE = 999
"""Places are whole numbers up to it."""


def projections(models: Mapping[str, np.ndarray], *, seed: int) -> list[dict[str, Any]]:
    """Places of the same images in every model's features, as columns of whole numbers.

    Both pictures begin with each model's own principal components, turned so that its images lie
    as near as they can to those of the first model: axes of components are arbitrary. t-SNE of
    every model starts from the first model's components, with one seed, so that whatever lies
    elsewhere is the model's doing.

    Args:
        models: Features `[n, dim]` by the name of the model, of the same images.
        seed: Of t-SNE.

    Returns:
        A row for each model: `model`, and `pca_x`, `pca_y`, `tsne_x`, `tsne_y` with n places.
    """
    from scipy.linalg import orthogonal_procrustes
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows, first = [], None
    for name, features in models.items():
        plane = PCA(2, svd_solver="full").fit_transform(np.asarray(features, np.float64))
        plane /= plane.std()
        if first is None:
            first = plane
        plane = plane @ orthogonal_procrustes(plane, first)[0]
        perplexity = min(30.0, (len(plane) - 1) / 3)
        mapper = TSNE(2, init=1e-4 * first, random_state=seed, perplexity=perplexity)
        spread = mapper.fit_transform(np.asarray(features, np.float64))
        columns = {"model": name}
        for kind, places in (("pca", plane), ("tsne", spread)):
            columns |= {f"{kind}_{axis}": _whole(places, i) for i, axis in enumerate("xy")}
        rows.append(columns)
    return rows


def _whole(places, axis):
    """One axis as whole numbers; both axes have one scale, so that distances stay in proportion."""
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places[:, axis] - (low + high)[axis] / 2) / (high - low).max()
    return np.round(SIDE * (scaled + 0.5)).astype(int).tolist()


def panel(
    row: Mapping[str, Any], kind: str, labels: Sequence[int], forgotten: int, *, title: str
) -> Drawing:
    """One model's images in the plane, a colour a class, its number at its middle.

    Args:
        row: Of `projections`.
        kind: "pca" or "tsne".
        labels: Of the images.
        forgotten: The class that is drawn on top, larger.
        title: Of the panel.
    """
    x, y = (np.asarray(row[f"{kind}_{axis}"]) for axis in "xy")
    labels = np.asarray(labels)
    figure, area = axes(title, "", width=300, height=300, margin=(4, 4, 28, 4))
    kept = [c for c in np.unique(labels) if c != forgotten]
    for i, c in enumerate([*kept, forgotten]):
        mine = labels == c
        gone = c == forgotten
        tone = "vermillion" if gone else TONES[i % len(TONES)]
        style = {"color": colour(tone), "s": 24 if gone else 9, "alpha": 0.9 if gone else 0.5}
        area.scatter(x[mine], y[mine], linewidth=0, zorder=3 + gone, **style)
    for c in [*kept, forgotten]:
        mine = labels == c
        text = {"size": 15 if c == forgotten else 11, "weight": "bold", "ha": "center"}
        middle = np.median(x[mine]), np.median(y[mine])
        area.text(*middle, str(c), va="center", zorder=6, color=colour("ink"), **text)
    area.set_xlim(-30, SIDE + 30)
    area.set_ylim(-30, SIDE + 30)
    area.set_xticks([])
    area.set_yticks([])
    area.spines["bottom"].set_visible(False)
    alt = f"{title}, {kind} of features: {len(labels)} test images, class {forgotten} marked"
    return Drawing(figure, alt)
