"""Scores of dense predictions: mean intersection over union, and the usual three of depth."""

import numpy as np

IGNORED = 255


class MeanIoU:
    """Mean intersection over union, from one confusion matrix over all images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion = np.zeros((classes, classes), dtype=np.int64)  # truth x prediction

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds an image: classes predicted and true (H, W); the truth's `IGNORED` pixels do not count."""
        kept = truth != IGNORED
        pairs = truth[kept].astype(np.int64) * self.classes + prediction[kept]
        self.confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def result(self) -> dict[str, float]:
        """The mean over the classes that are there or predicted, and the share of pixels that are right."""
        right = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - right
        seen = union > 0
        return {
            "mIoU %": 100 * float((right[seen] / union[seen]).mean()),
            "pixels right %": 100 * float(right.sum() / self.confusion.sum()),
        }


class DepthError:
    """RMSE in metres, the share of pixels within a factor of 1.25, and the relative error: means over images."""

    def __init__(self, nearest: float = 1e-3, farthest: float = 10.0) -> None:
        self.nearest, self.farthest = nearest, farthest
        self.images: list[tuple[float, float, float]] = []

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds an image: depths (H, W) in metres; pixels whose truth is not within the limits do not count."""
        kept = (truth > self.nearest) & (truth < self.farthest)
        if not kept.any():
            return
        d = np.clip(prediction[kept].astype(np.float64), self.nearest, self.farthest)
        t = truth[kept].astype(np.float64)
        close = np.maximum(d / t, t / d) < 1.25
        self.images.append(
            (float(np.sqrt(np.mean((d - t) ** 2))), float(close.mean()), float(np.mean(np.abs(d - t) / t)))
        )

    def result(self) -> dict[str, float]:
        rmse, close, relative = np.mean(self.images, axis=0)
        return {"RMSE m": float(rmse), "δ1 %": 100 * float(close), "AbsRel": float(relative)}
