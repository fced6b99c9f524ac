"""AUC and recall at a precision, against values worked out by hand."""

import numpy as np
import pytest

from benchmarks.ranking import auc, recall_at


def test_auc_counts_pairs_in_order_and_ties_half():
    score, true = np.array([0.1, 0.4, 0.4, 0.9], dtype=np.float32), np.array([0.0, 1.0, 0.0, 1.0])
    assert auc(score, true) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auc(-score, true) == pytest.approx(1 - 3.5 / 4)


def test_recall_is_the_largest_that_has_the_precision():
    best_first = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    assert recall_at(best_first, 0.75) == 3 / 4
    assert recall_at(best_first, 0.6) == 1.0
    assert recall_at(best_first, 1.0) == 1 / 4
    assert recall_at(np.array([0.0, 1.0]), 0.9) == 0.0
