"""Costs: errors, gradients compared with finite differences, and the accumulated mean error."""

import numpy as np
import pytest

from puzzlelib_rmsprop import gpuarray
from puzzlelib_rmsprop.errors import CostError
from puzzlelib_rmsprop.nets import MSE, CrossEntropy
from tests.nets.numbers import differences, random

# every test runs on each available backend
pytestmark = pytest.mark.usefixtures("backend")


def test_gradient_of_cross_entropy():
    scores, labels = random(7, 4), gpuarray.to_gpu(np.array([0, 3, 2, 1, 1, 0, 3], np.int32))
    cost = CrossEntropy()
    error, grad = cost(scores, labels)
    softmax = np.exp(scores.get()) / np.exp(scores.get()).sum(axis=1, keepdims=True)
    assert error == pytest.approx(-np.log(softmax[np.arange(7), labels.get()]).mean(), rel=1e-12)
    assert np.allclose(grad.get(), -differences(lambda: cost(scores, labels)[0], scores), atol=1e-8)


def test_cross_entropy_of_huge_scores():
    scores = gpuarray.to_gpu(np.array([[1e4, 0], [0, 1e4]], np.float32))
    error, grad = CrossEntropy()(scores, gpuarray.to_gpu(np.array([0, 0], np.int32)))
    assert error == 5e3
    assert grad.get().tolist() == [[0, 0], [0.5, -0.5]]


def test_cost_bookkeeping():
    cost = MSE()
    with pytest.raises(CostError, match="no samples"):
        cost.getMeanError()
    ones, zeros = gpuarray.to_gpu(np.ones((2, 1), np.float32)), gpuarray.zeros((2, 1))
    error, grad = cost(ones, zeros)
    assert (error, cost.getError(), cost.error) == (0.5, 0.5, 0.5)
    assert cost.grad is grad
    assert grad.get().tolist() == [[-0.5], [-0.5]]
    only = cost(zeros[:1], zeros[:1], queryError=False)
    assert only.get().tolist() == [[0]]
    assert cost.getMeanError() == pytest.approx(1 / 3)
    assert cost.validate(ones, zeros) == cost.getValError() == 0.5
    cost.resetAccumulator()
    cost(ones, zeros)
    assert cost.getMeanError() == 0.5


def test_accuracy():
    scores = gpuarray.to_gpu(np.array([[1, 2, 0], [5, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32))
    labels = gpuarray.to_gpu(np.array([1, 0, 2, 0], np.int32))
    cost = CrossEntropy(maxlabels=3)
    assert cost.validate(scores, labels) == 0.25, "PuzzleLib's: the share that is wrong"
    assert cost.accuracy(scores, labels) == 0.75
    assert cost.mostProb.get().tolist() == [1, 0, 2, 1]
