import math

import pytest
import torch

from galvanic.studies.metrics import drop, expected_calibration_error, nll, relative_auc, retention, top_k

SCORES = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 2.0, 3.0], [2.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2, 2, 2])


def test_top_k_counts_labels_among_the_k_largest():
    assert [top_k(SCORES, LABELS, k) for k in (1, 2, 3)] == [0.5, 0.75, 1.0]


def test_top_1_is_the_accuracy_of_argmax_ties_included():
    """Scores out of a coarse converter are often equal."""
    torch.manual_seed(0)
    scores, labels = torch.randint(0, 3, (500, 7)).float(), torch.randint(0, 7, (500,))
    assert top_k(scores, labels, 1) == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    assert top_k(torch.zeros(10, 5), torch.arange(10) % 5, 2) == pytest.approx(0.4)  # a constant is as good as chance


def test_nll_is_minus_the_mean_log_probability():
    scores = torch.tensor([[math.log(0.7), math.log(0.3)], [math.log(0.2), math.log(0.8)]])
    assert nll(scores, torch.tensor([0, 0])) == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2, rel=1e-6)
    assert nll(scores + 1e4, torch.tensor([0, 0])) == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2, rel=1e-3)


def of_confidence(*confidences: float) -> torch.Tensor:
    """Logits of two classes, the first of them predicted with these probabilities."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_the_calibration_error_by_hand():
    """Ten bins: 0.62 and 0.68 in one, one of them right; 0.91, 0.93 and 0.98 in another, all right."""
    scores, labels = of_confidence(0.62, 0.68, 0.91, 0.93, 0.98), torch.tensor([0, 1, 0, 0, 0])
    expected = 2 / 5 * abs(0.5 - 0.65) + 3 / 5 * abs(1 - (0.91 + 0.93 + 0.98) / 3)
    assert expected_calibration_error(scores, labels, bins=10) == pytest.approx(expected)
    assert expected_calibration_error(scores, labels, bins=1) == pytest.approx(abs(0.8 - 0.824))


def test_bins_are_closed_above():
    """Of two bins, confidence 0.5 is in the first: it does not make up for 0.6 in the second."""
    scores = torch.cat([torch.zeros(1, 2, dtype=torch.float64), of_confidence(0.6)])
    assert expected_calibration_error(scores, torch.tensor([1, 0]), bins=2) == pytest.approx((0.5 + 0.4) / 2)


def test_certainty_is_calibrated_only_where_it_is_right():
    certain = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    assert expected_calibration_error(certain, torch.tensor([0, 0])) == 0
    assert expected_calibration_error(certain, torch.tensor([1, 1])) == 1


def test_labels_drawn_from_the_probabilities_are_calibrated():
    torch.manual_seed(0)
    scores = 2 * torch.randn(200_000, 5)
    labels = torch.distributions.Categorical(logits=scores).sample()
    assert expected_calibration_error(scores, labels) < 0.005  # about 15 bins of sqrt(0.25 / 13,000) each
    assert expected_calibration_error(3 * scores, labels) > 0.1


def test_drop_and_retention_compare_with_the_digital_network():
    assert drop(0.8, 0.9) == pytest.approx(0.1)
    assert retention(0.45, 0.9) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="digital = 0"):
        retention(0.5, 0)
    with pytest.raises(ValueError, match="accuracy = nan"):
        drop(math.nan, 0.9)
    with pytest.raises(ValueError, match="digital = -1"):
        retention(0.5, -1)


def test_the_relative_area_by_hand_for_both_bounds():
    levels, accuracy = [0.0, 1.0, 3.0], [1.0, 0.6, 0.2]
    area = (1.0 + 0.6) / 2 + (0.6 + 0.2) / 2 * 2
    assert relative_auc(levels, accuracy, 0.8) == pytest.approx(area / 2.4)
    assert relative_auc(levels, accuracy, [1.0, 0.8, 0.4]) == pytest.approx(area / (0.9 + 1.2))
    assert relative_auc(levels, accuracy, accuracy) == 1.0
    assert relative_auc(levels, [100 * a for a in accuracy], [100.0, 80.0, 40.0]) == pytest.approx(area / 2.1)  # in percent


@pytest.mark.parametrize(
    ("levels", "accuracy", "bound", "message"),
    [
        ([0.0], [1.0], 1.0, "1 levels, 1 accuracies, 1 of the bound"),
        ([0.0, 1.0], [1.0], 1.0, "2 levels, 1 accuracies"),
        ([0.0, 1.0], [1.0, 0.5], [1.0], "2 levels, 2 accuracies, 1 of the bound"),
        ([1.0, 0.0], [1.0, 0.5], 1.0, "ascending"),
        ([0.0, 0.0], [1.0, 0.5], 1.0, "ascending"),
        ([0.0, 1.0], [1.0, math.nan], 1.0, "accuracy = .* finite"),
        ([0.0, 1.0], [1.0, 0.5], math.nan, "bound = .* finite"),
        ([0.0, 1.0], [1.0, -0.5], 1.0, "nowhere negative"),
        ([0.0, 1.0], [1.0, 0.5], 0.0, "somewhere above 0"),
        ([], [], 1.0, "0 levels"),
    ],
)
def test_curves_without_a_relative_area_are_refused(levels, accuracy, bound, message):
    with pytest.raises(ValueError, match=message):
        relative_auc(levels, accuracy, bound)


@pytest.mark.parametrize("metric", [top_k, nll, expected_calibration_error])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (SCORES[0], LABELS, "scores are torch.float32 .3,."),
        (torch.zeros(0, 3), torch.zeros(0).long(), "not empty"),
        (SCORES.long(), LABELS, "floating point"),
        (SCORES, LABELS[:3], "labels are torch.int64 .3,."),
        (SCORES, LABELS.float(), "labels are torch.float32"),
        (SCORES, LABELS[:, None], "labels are"),
        (SCORES, LABELS + 1, "labels run from 1 to 3: from 0 to 2"),
        (SCORES, LABELS - 1, "labels run from -1"),
        (SCORES.index_fill(0, torch.tensor(2), math.nan), LABELS, "scores of sample 2 are not finite"),
    ],
)
def test_scores_and_labels_that_do_not_fit_are_refused(metric, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(scores, labels)


def test_numbers_out_of_range_are_refused():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k = {k}: from 1 to 3"):
            top_k(SCORES, LABELS, k)
    with pytest.raises(ValueError, match="bins = 0"):
        expected_calibration_error(SCORES, LABELS, bins=0)
