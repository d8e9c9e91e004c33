"""Measures of a probability map against a mask, as camouflage, saliency and shadow detection report them.

Each is that of PySODMetrics where no pixel is ignored. Ignored pixels are left out of every sum and mean, and give no
neighbour an error to share. All take arrays with at least one known pixel.
"""

import numpy as np


EPS = np.spacing(1)


def mean_absolute_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean of |p - g| over float64 and bool (pixels,)."""
    return float(np.abs(prediction - truth).mean())


def s_measure(prediction: np.ndarray, truth: np.ndarray, known: np.ndarray, alpha: float = 0.5) -> float:
    """Structure measure (Fan et al. 2017): `alpha` of the objects' similarity, the rest of the regions'.

    Args:
        prediction: float64 (H, W), 0..1.
        truth: bool (H, W), False where unknown.
        known: bool (H, W).
    """
    share = truth.sum() / known.sum()
    if share in (0, 1):
        mean = float(prediction[known].mean())
        return mean if share else 1 - mean
    objects = share * _object(prediction[truth]) + (1 - share) * _object(1 - prediction[known & ~truth])
    return max(0.0, float(alpha * objects + (1 - alpha) * _regions(prediction, truth, known)))


def _object(values: np.ndarray) -> float:
    """Similarity of values (pixels,) to all ones."""
    deviation = values.std(ddof=1) if values.size > 1 else 0.0
    return 2 * values.mean() / (values.mean() ** 2 + 1 + deviation + EPS)


def _regions(prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
    """Structural similarity of the four quadrants around the truth's centroid, weighted by their pixels."""
    row, column = (int(place) + 1 for place in np.argwhere(truth).mean(axis=0).round())
    score = 0.0
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            part = known[rows, columns]
            if part.any():
                score += part.sum() * _similarity(prediction[rows, columns][part], truth[rows, columns][part])
    return score / known.sum()


def _similarity(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM without its constants, of float64 and bool (pixels,)."""
    mean_x, mean_y = x.mean(), y.mean()
    scale = x.size - 1 + EPS
    spread = (((x - mean_x) ** 2).sum() + ((y - mean_y) ** 2).sum()) / scale
    joint = 4 * mean_x * mean_y * ((x - mean_x) * (y - mean_y)).sum() / scale
    total = (mean_x**2 + mean_y**2) * spread
    if joint != 0:
        return joint / (total + EPS)
    return 1.0 if total == 0 else 0.0


def threshold_counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at the thresholds 255, 254, …, 0 of 255, and at twice the mean; int64 (257,) each.

    Args:
        prediction: float64 (pixels,), 0..1.
        truth: bool (pixels,).
    """
    levels = (prediction * 255).astype(np.uint8)
    adaptive = prediction >= min(2 * prediction.mean(), 1)
    counts = [np.bincount(levels[part], minlength=256)[::-1].cumsum() for part in (truth, ~truth)]
    hits, alarms = (np.append(count, (adaptive & part).sum()) for count, part in zip(counts, (truth, ~truth)))
    return hits, alarms


def f_measure(prediction: np.ndarray, truth: np.ndarray, beta2: float = 0.3) -> np.ndarray:
    """Precision, recall and F-measure (Achanta et al. 2009) at the thresholds of `threshold_counts`.

    Args:
        prediction: float64 (pixels,), 0..1.
        truth: bool (pixels,).
        beta2: weight β² of precision.

    Returns:
        float64 (3, 257); 0 where there is nothing to divide by.
    """
    hits, alarms = threshold_counts(prediction, truth)
    precision, recall = hits / np.maximum(hits + alarms, 1), hits / max(truth.sum(), 1)
    weighted = beta2 * precision + recall
    return np.stack([precision, recall, (1 + beta2) * precision * recall / np.where(hits > 0, weighted, 1)])


def e_measure(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Enhanced alignment measure (Fan et al. 2018) at the thresholds 255, 254, …, 0 of 255, and at twice the mean.

    Args:
        prediction: float64 (pixels,), 0..1.
        truth: bool (pixels,).

    Returns:
        float64 (257,).
    """
    hits, alarms = threshold_counts(prediction, truth)
    size, foreground = truth.size, int(truth.sum())
    predicted = hits + alarms
    if foreground == 0:
        total = (size - predicted).astype(np.float64)
    elif foreground == size:
        total = predicted.astype(np.float64)
    else:
        misses = foreground - hits
        mean_p, mean_g = predicted / size, foreground / size
        parts = (
            (hits, 1 - mean_p, 1 - mean_g),
            (alarms, 1 - mean_p, -mean_g),
            (misses, -mean_p, 1 - mean_g),
            (size - predicted - misses, -mean_p, -mean_g),
        )
        total = sum(n * (2 * p * g / (p**2 + g**2 + EPS) + 1) ** 2 / 4 for n, p, g in parts)
    return total / max(size - 1, 1)


def weighted_f(prediction: np.ndarray, truth: np.ndarray, known: np.ndarray, beta2: float = 1.0) -> float:
    """Weighted F-measure (Margolin et al. 2014): errors beside right pixels weigh less, far from the object more.

    Args:
        prediction: float64 (H, W), 0..1.
        truth: bool (H, W), False where unknown.
        known: bool (H, W).
        beta2: weight β² of precision.
    """
    from scipy import ndimage

    if not truth.any():
        return 0.0
    distance, (rows, columns) = ndimage.distance_transform_edt(~truth, return_indices=True)
    error = np.where(known, np.abs(prediction - truth), 0.0)
    # Background pixels take the error of the nearest true one, so that the border's errors are shared inwards only.
    shared = np.where(known, error[rows, columns], 0.0)
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        shared = ndimage.convolve1d(shared, kernel, axis=axis, mode="constant")
    background = known & ~truth
    inside = np.minimum(error, shared)[truth]
    outside = (error * (2 - np.exp(np.log(0.5) / 5 * distance)))[background].sum()
    hits = truth.sum() - inside.sum()
    recall, precision = 1 - inside.mean(), hits / (hits + outside + EPS)
    return float((1 + beta2) * recall * precision / (recall + beta2 * precision + EPS))
