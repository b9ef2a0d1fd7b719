import pytest
import torch

from helpers import metrics

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(200, 7, generator=GENERATOR)
LABELS = torch.randint(7, (200,), generator=GENERATOR)


def test_accuracy():
    right = sum(
        max(range(7), key=lambda c: row[c]) == label for row, label in zip(LOGITS, LABELS.tolist(), strict=True)
    )
    assert metrics.accuracy(LOGITS, LABELS) == pytest.approx(right / 200)


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_top_k_error(k):
    missed = 0
    for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        missed += label not in sorted(range(7), key=lambda c: -row[c])[:k]
    assert metrics.top_k_error(LOGITS, LABELS, k) == pytest.approx(missed / 200, abs=1e-6)
    if k == 1:
        assert metrics.top_k_error(LOGITS, LABELS, 1) == pytest.approx(1 - metrics.accuracy(LOGITS, LABELS))


@pytest.mark.parametrize("k", [0, 8, -1])
def test_top_k_error_of_too_many(k):
    with pytest.raises(ValueError, match=rf"k={k} is outside 1\.\.7"):
        metrics.top_k_error(LOGITS, LABELS, k)


def test_confusion():
    logits, labels = LOGITS[:, :5], LABELS.clamp(max=3)  # class 4 never occurs, and still has its row
    counts = [[0] * 5 for _ in range(5)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        counts[label][row.index(max(row))] += 1
    assert metrics.confusion(logits, labels).tolist() == counts


def test_pixel_confusion_and_iou_against_loops():
    draw = torch.Generator().manual_seed(1)
    predicted = torch.randint(4, (3, 6, 7), generator=draw)
    masks = torch.randint(3, (3, 6, 7), generator=draw).to(torch.uint8)  # class 3 is predicted and never true
    masks[:, 0] = 255
    counts = [[0] * 5 for _ in range(5)]  # class 4 never occurs at all
    for said, true in zip(predicted.flatten().tolist(), masks.flatten().tolist(), strict=True):
        if true != 255:
            counts[true][said] += 1
    ours = metrics.pixel_confusion(predicted, masks, 5)
    assert ours.tolist() == counts and ours.sum() == 3 * 5 * 7
    scores = metrics.iou(ours).tolist()
    for c in range(4):
        union = sum(counts[c]) + sum(row[c] for row in counts) - counts[c][c]
        assert scores[c] == pytest.approx(counts[c][c] / union)
    assert scores[3] == 0 and scores[4] != scores[4]


def test_iou_is_that_of_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    draw = torch.Generator().manual_seed(2)
    predicted, masks = (torch.randint(6, (4, 9, 9), generator=draw) for _ in range(2))
    masks[0, :3] = 255
    theirs = MulticlassJaccardIndex(6, average="none", ignore_index=255)(predicted, masks)
    ours = metrics.iou(metrics.pixel_confusion(predicted, masks, 6))
    assert torch.allclose(ours.float(), theirs)


def test_through_stride_keeps_whole_squares_and_rounds_the_rest():
    masks = torch.zeros(1, 32, 32, dtype=torch.uint8)
    masks[0, 8:24, 8:24] = 3
    masks[0, 0, 0] = 255  # void is no class, so the square is background
    squares = metrics.through_stride(masks, 8, 6, smooth=False)
    assert torch.equal(squares[0, 1:], masks[0, 1:]) and squares[0, 0, 0] == 0
    masks[0, 8, 8:24] = 0  # a row of 8 less: the majority stays
    squares, smooth = (metrics.through_stride(masks, 8, 6, smooth=s) for s in (False, True))
    assert (squares[0, 8, 8:24] == 3).all()
    assert smooth.shape == masks.shape and smooth.dtype == torch.uint8 and smooth[0, 16, 16] == 3
    assert not torch.equal(smooth, squares)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [3, 16, 17, 20, 100])
def test_counts_do_not_depend_on_the_integer_type(dtype, classes):
    labels = torch.arange(classes).repeat(3)
    counts = metrics.confusion(torch.eye(classes)[labels.roll(1)], labels.to(dtype))
    assert torch.equal(counts, _by_hand(labels, classes))
    pixels = metrics.pixel_confusion(labels.roll(1).to(dtype)[None, None], labels.to(dtype)[None, None], classes)
    assert torch.equal(pixels, counts)


def _by_hand(labels, classes):
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for true, said in zip(labels.tolist(), labels.roll(1).tolist(), strict=True):
        counts[true, said] += 1
    return counts


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_out_of_range_is_named(label):
    logits, labels = torch.eye(3), torch.tensor([0, 1, label])
    with pytest.raises(ValueError, match=rf"true class {label} is outside 0\.\.2"):
        metrics.confusion(logits, labels)
    masks, predicted = torch.tensor([[[0, 1, 2]]]), labels[None, None]
    with pytest.raises(ValueError, match=rf"predicted class {label} is outside 0\.\.2"):
        metrics.pixel_confusion(predicted, masks, 3)
    with pytest.raises(ValueError, match=rf"true class {label} is outside 0\.\.2"):
        metrics.pixel_confusion(masks, predicted, 3)


def test_what_is_predicted_at_void_pixels_does_not_matter():
    masks = torch.tensor([[[0, 255, 2]]], dtype=torch.uint8)
    counts = metrics.pixel_confusion(torch.tensor([[[0, 9, 1]]]), masks, 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
