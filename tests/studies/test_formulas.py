"""The studies' formulas against ones that were written independently."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from llava_s2.studies.dense_metrics import DepthError, MeanIoU
from llava_s2.studies.depth import silog
from llava_s2.studies.feature_cache import Features
from llava_s2.studies.linear_probe import train_by_sgd, train_in_closed_form
from llava_s2.studies.reconstruct import Moments, constant, information, reconstruction, ridge
from llava_s2.studies.study_report import wilson_interval


def moments(x, y, parts=3):
    """Sums that were taken in several parts."""
    found = Moments.zeros(x.shape[1], y.shape[1])
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found.add(a, b)
    return found


@pytest.fixture(scope="module")
def vectors():
    torch.manual_seed(0)
    x = torch.randn(400, 6) @ torch.randn(6, 6) + 3
    return x, x @ torch.randn(6, 4) + 0.5 * torch.randn(400, 4) - 2


def test_linear_map_from_sums_is_least_squares(vectors):
    x, y = vectors
    fitted = ridge(moments(x, y), 0.0)
    design = np.concatenate([x.double().numpy(), np.ones((len(x), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, y.double().numpy(), rcond=None)
    np.testing.assert_allclose(fitted.weight.numpy(), solution[:-1], atol=1e-9)
    np.testing.assert_allclose(fitted.bias.numpy(), solution[-1], atol=1e-9)
    error = np.mean((design @ solution - y.double().numpy()) ** 2)
    assert fitted.loss(moments(x, y)) == pytest.approx(error, rel=1e-9)
    assert constant(moments(x, y)).loss(moments(x, y)) == pytest.approx(float(y.double().var(0, correction=0).mean()))


def test_ridge_is_where_gradient_descent_ends(vectors):
    x, y = (v.double() for v in vectors)
    strength = 0.3
    w, b = torch.zeros(6, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    w.requires_grad_(), b.requires_grad_()
    penalty = strength * float(x.var(0, correction=0).mean())
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = (x @ w + b - y).square().sum() / len(x) + penalty * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = ridge(moments(x, y), strength)
    torch.testing.assert_close(fitted.weight, w.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(fitted.bias, b.detach(), atol=1e-6, rtol=1e-6)


def test_information_is_in_bits():
    # The paper's table 2: losses .1100 and .1040 are .440 and .521, which differ by log2(.1100 / .1040).
    assert information(0.1040, 0.1492) - information(0.1100, 0.1492) == pytest.approx(0.521 - 0.440, abs=5e-4)
    # Of Gaussian channels whose noise has a quarter of the whole variance, 2 bits.
    torch.manual_seed(1)
    x = torch.randn(60_000, 3)
    y = x * 3**0.5 + torch.randn(60_000, 3)
    fit, held_out, test = (
        moments(x[part], y[part]) for part in (slice(20_000), slice(20_000, 40_000), slice(40_000, None))
    )
    row = reconstruction({"fit": fit, "held_out": held_out, "test": test})
    assert row["train info"] == pytest.approx(2, abs=0.02)
    assert row["test info"] == pytest.approx(2, abs=0.02)
    assert row["test l"] / row["test l0"] == pytest.approx(0.25, abs=0.005)


@pytest.fixture(scope="module")
def classes():
    torch.manual_seed(2)
    labels = torch.arange(240) % 3
    x = torch.randn(240, 5) + 1.2 * F.one_hot(labels, 5)
    return Features.of(x), x, labels


def test_probe_by_sgd_comes_to_the_minimum_of_the_cross_entropy(classes, tmp_path):
    features, x, labels = classes
    probe = train_by_sgd(features, labels, 3, epochs=200, rate=0.5, batch=240, seed=0, file=tmp_path / "checkpoint.pt")
    w, b = torch.zeros(5, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ w + b, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert probe.score(features, labels).loss == pytest.approx(float(closure().detach()), abs=1e-4)


def test_probe_in_closed_form_is_the_ridge_regression_of_the_classes(classes):
    features, x, labels = classes
    probe, strength = train_in_closed_form(features, labels, 3, seed=0)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    # With centred inputs, the ridge's weights come from the centred targets, its bias is their mean.
    y = F.one_hot(labels, 3).double()
    weights = np.linalg.solve((z.T @ z + strength * 240 * torch.eye(5)).numpy(), (z.T @ (y - y.mean(0))).numpy())
    weight = probe.linear.weight.detach().T.double().numpy()
    scale = weight[0, 0] / weights[0, 0]  # a power of two, by which the softmax is sharpened
    assert np.log2(scale) == pytest.approx(round(np.log2(scale)), abs=1e-4)
    np.testing.assert_allclose(weight, scale * weights, atol=1e-5)
    np.testing.assert_allclose(probe.linear.bias.detach().numpy(), scale * y.mean(0).numpy(), atol=1e-5)


def test_mean_iou_is_torchmetrics():
    rng = np.random.default_rng(0)
    ours, theirs = MeanIoU(5), MulticlassJaccardIndex(5, ignore_index=255, average="macro")
    for _ in range(3):
        truth = rng.choice([0, 1, 2, 4, 255], (17, 23)).astype(np.uint8)  # class 3 is nowhere
        prediction = rng.choice([0, 1, 2, 4], (17, 23))
        ours.update(prediction, truth)
        theirs.update(torch.from_numpy(prediction), torch.from_numpy(truth.astype(np.int64)))
    assert ours.result()["mIoU %"] == pytest.approx(100 * float(theirs.compute()), rel=1e-6)


def test_depth_errors_by_hand():
    error = DepthError()
    truth = np.array([[2.0, 4.0, 0.0, 12.0]])  # unknown, and farther than 10 m: not counted
    error.update(np.array([[2.2, 6.0, 5.0, 5.0]]), truth)
    found = error.result()
    assert found["RMSE m"] == pytest.approx(((0.2**2 + 2**2) / 2) ** 0.5)
    assert found["δ1 %"] == pytest.approx(50)
    assert found["AbsRel"] == pytest.approx((0.1 + 0.5) / 2)
    gaps = torch.tensor([2.2, 6.0]).log() - torch.tensor([2.0, 4.0]).log()
    expected = (gaps.square().mean() - 0.5 * gaps.mean() ** 2).sqrt()
    assert float(silog(torch.tensor([[[[2.2, 6.0, 5.0, 5.0]]]]), torch.tensor(truth[None]).float())) == pytest.approx(
        float(expected)
    )


def test_wilson_interval_solves_its_equation():
    for successes, trials in ((0, 16), (7, 16), (16, 16)):
        for bound in wilson_interval(successes, trials):
            if 0 < bound < 1:  # (rate - p)² = z² p (1 - p) / n
                gap = (successes / trials - bound) ** 2
                assert gap == pytest.approx(1.959964**2 * bound * (1 - bound) / trials, rel=1e-6)
