"""Chapter 8: counts, margins by quadrature, the distances case by case, what a training may touch; mutants."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn
from toys import from_cells, holds, noise, on_meta, red_or_blue, small_network

from helpers import inspect, train
from helpers.chapters import chapter
from helpers.claims import family

DISTILLATION = chapter("08_feature_distillation")

# depth, k, classes -> parameters
WIDE = {
    (28, 4, 100): 5_872_180,
    (16, 4, 100): 2_772_020,
    (28, 2, 100): 1_479_220,
    (16, 2, 100): 703_284,
    (28, 2, 10): 1_467_610,
    (40, 4, 10): 8_949_210,
    (40, 4, 100): 8_972_340,
    (16, 8, 10): 10_961_370,
    (28, 10, 10): 36_479_194,
    (28, 10, 100): 36_536_884,
}


def shaken(code, k=1, seed=0):
    torch.manual_seed(seed)
    return chapter("02_resnet").shake_batch_norms(code.WideResNet(10, k), seed)


def pair(code):
    """A teacher, and a pupil in training."""
    teacher = shaken(code, 2, seed=1)
    return teacher, code.Pupil(shaken(code), teacher).train()


@holds(DISTILLATION, {"a convolution too few": ("range(n - 1)", "range(n - 2)")})
def test_counts(code):
    for (depth, k, classes), parameters in WIDE.items():
        assert inspect.count_parameters(on_meta(code.WideResNet, depth, k, classes)) == parameters
    macs = inspect.count_macs(on_meta(code.WideResNet, 28, 10), (3, 32, 32))
    assert round(macs / 1e9, 3) == 5.243


@holds(DISTILLATION)
def test_depth(code):
    """The name counts the convolutions, with those of the three shortcuts."""
    for depth, kernels in ((16, (3, 3)), (40, (3, 1, 3)), (40, (1, 3, 1))):
        model = on_meta(code.WideResNet, depth, 2, kernels=kernels)
        assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == depth


@holds(DISTILLATION, {"the shortcut takes x before the ReLU": ("self.shortcut(active)", "self.shortcut(x)")})
def test_block(code):
    """Two convolutions after batch normalisation and ReLU; the shortcut takes x, or what the first one takes."""
    x = noise(2, 4, 6, 6)
    for channels, stride in ((4, 1), (6, 2), (4, 2)):
        block = code.WideBlock(4, channels, stride)
        active = F.relu(F.batch_norm(x, None, None, training=True))
        y = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
        y = F.relu(F.batch_norm(y, None, None, training=True))
        (last,) = [m for m in block.rest if isinstance(m, nn.Conv2d)]
        around = x if channels == 4 and stride == 1 else F.conv2d(active, block.shortcut.weight, stride=stride)
        assert torch.allclose(block(x), F.conv2d(y, last.weight, padding=1) + around, atol=1e-5)


@holds(DISTILLATION, {"dropout at every place": ("dropout if not rest else 0.0", "dropout / 2")})
def test_dropout(code):
    block = code.WideBlock(4, 4, dropout=0.3)
    (drop,) = [m for m in block.rest if isinstance(m, nn.Dropout)]
    assert drop.p == 0.3 and torch.equal(block.eval()(x := noise(2, 4, 6, 6)), block(x))
    kinds = [type(m).__name__ for m in block.rest]
    assert kinds == ["BatchNorm2d", "ReLU", "Dropout", "Conv2d"]


@holds(
    DISTILLATION,
    {
        "no ReLU before the pooling": ("F.relu(self.bn(x)).mean", "self.bn(x).mean"),
        "maps before the batch normalisation": ("maps.append(made)", "maps.append(given[0])"),
        "the hooks stay": ("            handle.remove()", "            pass"),
    },
)
def test_positions(code):
    """The maps are the inputs of the next ReLU: recomputed layer by layer."""
    model, x = shaken(code).eval(), noise(2, 3, 16, 16)
    logits, maps = code.features(model, x)
    y, expected = model.conv1(x), []
    for group, norm in zip((model.group1, model.group2, model.group3), model.norms(), strict=True):
        y = group(y)
        expected.append(norm(y))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert all((m < 0).any() for m in maps)
    assert torch.allclose(model.fc(F.relu(maps[-1]).mean((2, 3))), logits)
    assert not any(norm._forward_hooks for norm in model.norms())


@holds(
    DISTILLATION,
    {
        "the margin with the wrong sign": ("mean - sd * density / below", "mean + sd * density / below"),
        "no exception for rare values": ("below > 1e-3", "below > 0"),
    },
)
def test_margin(code):
    """Against quadrature, over a grid that includes what is rare."""
    for mean in (-2.0, -0.5, 0.0, 0.3, 1.0, 2.5):
        for sd in (0.2, 1.0, 3.0):
            got = float(code.expected_negative(torch.tensor(mean), torch.tensor(sd)))
            normal = stats.norm(mean, sd)
            if normal.cdf(0) < 1e-3:
                assert got == pytest.approx(-3 * sd)
                continue
            low = min(mean, 0) - 12 * sd
            above, _ = integrate.quad(lambda x, normal=normal: x * normal.pdf(x), low, 0, epsabs=1e-12)
            assert got == pytest.approx(above / normal.cdf(0), rel=1e-5)


@holds(
    DISTILLATION,
    {
        "the scale with its sign": ("norm.weight.detach().abs()", "norm.weight.detach()"),
        "the margin as an upper bound": ("torch.maximum(features, margin)", "torch.minimum(features, margin)"),
    },
)
def test_margin_of(code):
    norm = nn.BatchNorm2d(4)
    norm.weight.data = torch.tensor([1.0, -0.5, 2.0, 0.0])
    norm.bias.data = torch.tensor([0.0, 0.5, -1.0, -0.7])
    margin = code.margin_of(norm)
    expected = [-0.7979, -0.2626, -2.0183, -0.7]
    assert margin.shape == (4, 1, 1) and (margin < 0).all() and not margin.requires_grad
    for value, wanted in zip(margin.flatten().tolist(), expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-4)
    x = noise(2, 4, 3, 3)
    clipped = code.margin_relu(x, margin)
    for c in range(4):
        assert torch.equal(clipped[:, c], x[:, c].clamp_min(float(margin[c])))


@holds(
    DISTILLATION,
    {
        "skips where the student is above": ("(student <= teacher) &", "(student >= teacher) &"),
        "skips whatever is negative": ("(student <= teacher) & (teacher <= 0)", "(teacher <= 0)"),
        "skips where the teacher is positive, too": ("& (teacher <= 0)", "& (teacher <= 1)"),
        "does not skip at zero": ("(teacher <= 0)", "(teacher < 0)"),
    },
)
def test_partial_l2(code):
    """Every case, on a grid with the borders."""
    grid = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
    for t in grid:
        for s in grid:
            student = torch.tensor([s], requires_grad=True)
            value = code.partial_l2(torch.tensor([t]), student)
            value.sum().backward()
            skip = s <= t <= 0
            assert float(value.detach()) == (0.0 if skip else (t - s) ** 2)
            assert float(student.grad) == (0.0 if skip else 2 * (s - t))
            assert bool(code.skipped(torch.tensor(t), torch.tensor(s))) == skip


@holds(
    DISTILLATION,
    {
        "groups 1 and 3 change places": (
            "[self.group2[0].bn1, self.group3[0].bn1, self.bn]",
            "[self.bn, self.group3[0].bn1, self.group2[0].bn1]",
        ),
        "a regressor without batch normalisation": (
            "convolution(before, after, 1), nn.BatchNorm2d(after)",
            "convolution(before, after, 1), nn.Identity()",
        ),
    },
)
def test_regressor(code):
    part = code.regressor(5, 7)
    assert [type(m) for m in part] == [nn.Conv2d, nn.BatchNorm2d]
    assert part[0].weight.shape == (7, 5, 1, 1) and part[0].bias is None
    assert part(noise(2, 5, 3, 4)).shape == (2, 7, 3, 4)
    _, pupil = pair(code)
    assert [part[0].weight.shape[:2] for part in pupil.regressors] == [(32, 16), (64, 32), (128, 64)]


@holds(
    DISTILLATION,
    {
        "early positions weigh more": ("2 ** (last - j)", "2**j"),
        "not per image": ("return logits, total / len(images)", "return logits, total"),
        "ten times the weight": ("targets) + distance / 1000", "targets) + distance / 100"),
        "after means before": ("ours = [values.relu() for values in ours]", "pass"),
        "margin 0 is no ReLU": ("torch.zeros_like(values)", "torch.full_like(values, -1e9)"),
    },
)
def test_loss(code):
    """The whole loss, written down with loops over the positions."""
    teacher, pupil = pair(code)
    images, labels = noise(6, 3, 16, 16), torch.arange(6)
    for position, margin in (("before", True), ("before", False), ("after", False)):
        loss = code.FeatureLoss(teacher, position=position, margin=margin)
        got = loss(pupil, images, labels)
        logits, ours = code.features(pupil.student, images)
        _, theirs = code.features(teacher, images)
        expected = F.cross_entropy(logits, labels)
        for factor, norm, t, s, part in zip(
            (0.25, 0.5, 1.0), teacher.norms(), theirs, ours, pupil.regressors, strict=True
        ):
            s = part(s.clamp_min(0) if position == "after" else s)
            t = torch.maximum(t, code.margin_of(norm)) if margin else t.clamp_min(0)
            counted = ~((s <= t) & (t <= 0))
            expected = expected + factor * (t - s)[counted].square().sum() / 6 / 1000
        assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@holds(
    DISTILLATION,
    {
        "a gradient for the teacher": (
            "        with torch.no_grad():\n            theirs = features(self.teacher, images)[1]\n"
            "        logits, ours = features(model.student, images)\n        if self",
            "        theirs = features(self.teacher, images)[1]\n"
            "        logits, ours = features(model.student, images)\n        if self",
        ),
        "the teacher always by its running statistics": ('train(mode == "batch")', "eval()"),
    },
)
def test_teacher_mode(code):
    """By the batch: means are beta, statistics move, no weight and no gradient does."""
    images, labels = noise(8, 3, 16, 16), torch.arange(8)
    for mode, moves in (("batch", True), ("running", False)):
        teacher, pupil = pair(code)
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        loss = code.FeatureLoss(teacher, mode=mode)
        assert teacher.training is moves
        loss(pupil, images, labels).backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert all(p.grad is not None for p in pupil.parameters())
        after = teacher.state_dict()
        assert all(torch.equal(before[name], after[name]) for name, _ in teacher.named_parameters())
        assert torch.equal(before["bn.running_mean"], after["bn.running_mean"]) is not moves
        assert int(after["bn.num_batches_tracked"] - before["bn.num_batches_tracked"]) == moves


@holds(
    DISTILLATION,
    {
        "no T²": ("temperature**2 * F.kl_div", "F.kl_div"),
        "the divergence the other way round": (
            'F.kl_div(student, soft_targets, reduction="batchmean")',
            'F.kl_div(soft_targets.log(), student.exp(), reduction="batchmean")',
        ),
        "sum over images": ('reduction="batchmean"', 'reduction="sum"'),
    },
)
def test_kd(code):
    """Against the definition, and T² keeps the size of the gradient."""
    ours, theirs = noise(5, 10, seed=2).double(), noise(5, 10, seed=3).double()
    for temperature in (1.0, 4.0):
        p, q = (theirs / temperature).softmax(1), (ours / temperature).softmax(1)
        expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
        assert code.kd_loss(ours, theirs, temperature) == pytest.approx(float(expected))
    assert float(code.kd_loss(ours, ours, 4.0)) == pytest.approx(0, abs=1e-12)
    sizes = []
    for temperature in (50.0, 100.0):
        z = ours.clone().requires_grad_()
        code.kd_loss(z, theirs, temperature).backward()
        sizes.append(float(z.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@holds(DISTILLATION, {"labels and soft targets swapped": ("(1 - self.share) * F", "self.share * F")})
def test_soft_targets(code):
    teacher, pupil = pair(code)
    images, labels = noise(6, 3, 16, 16), torch.arange(6)
    got = code.SoftTargets(teacher)(pupil, images, labels)
    assert not teacher.training
    logits = pupil(images)
    wanted = 0.1 * F.cross_entropy(logits, labels) + 0.9 * code.kd_loss(logits, teacher(images), 4.0)
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


@holds(
    DISTILLATION,
    {
        "attention with signs": ("maps.square().mean(1)", "maps.mean(1)"),
        "attention before the ReLU": ("attention(a.relu()) - ", "attention(a) - "),
    },
)
def test_attention(code):
    maps = noise(3, 4, 5, 6)
    got = code.attention(maps)
    assert got.shape == (3, 30) and torch.allclose(got.norm(dim=1), torch.ones(3))
    assert torch.allclose(got, code.attention(-2 * maps[:, [3, 1, 0, 2]]), atol=1e-6)
    teacher, pupil = pair(code)
    images, labels = noise(6, 3, 16, 16), torch.arange(6)
    value = code.AttentionLoss(teacher)(pupil, images, labels)
    logits, ours = code.features(pupil.student, images)
    gaps = [
        (code.attention(t.relu()) - code.attention(s.relu())).square().mean()
        for t, s in zip(code.features(teacher, images)[1], ours, strict=True)
    ]
    expected = F.cross_entropy(logits, labels) + 1000 * sum(gaps)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@holds(
    DISTILLATION,
    {
        "another student than the one given": (
            "        self.student = student\n",
            "        self.student = type(student)(10, 1)\n",
        )
    },
)
def test_pupil(code):
    """The student is drawn first, so that its weights do not depend on the teacher; images see only the student."""
    torch.manual_seed(0)
    alone = code.WideResNet(10, 1)
    torch.manual_seed(0)
    pupil = code.Pupil(code.WideResNet(10, 1), on_meta(code.WideResNet, 10, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), pupil.student.parameters(), strict=True))
    x = noise(2, 3, 16, 16)
    assert torch.equal(pupil.eval()(x), alone.eval()(x))


@holds(
    DISTILLATION,
    {
        "L2 and partial L2 swapped": (
            '{"partial L2": partial_l2, "L2": squared}',
            '{"L2": partial_l2, "partial L2": squared}',
        ),
        "margin 0 keeps its margin": (
            '{"method": "features", "margin": False}',
            '{"method": "features", "margin": True}',
        ),
    },
)
def test_arms(code):
    """Each arm's loss is the one that its name says."""
    made = {arm: code.make_loss(teacher=shaken(code, 2), **config) for arm, config in code.ARMS.items()}
    assert isinstance(made["scratch"], train.CrossEntropy)
    assert isinstance(made["KD"], code.SoftTargets) and isinstance(made["AT"], code.AttentionLoss)
    facts = {
        arm: (loss.position, bool(loss.margins[0].any()), loss.distance, loss.teacher.training)
        for arm, loss in made.items()
        if isinstance(loss, code.FeatureLoss)
    }
    assert facts == {
        "L2 after the ReLU": ("after", False, code.squared, True),
        "overhaul": ("before", True, code.partial_l2, True),
        "overhaul, margin 0": ("before", False, code.partial_l2, True),
        "overhaul, plain L2": ("before", True, code.squared, True),
        "overhaul, running statistics": ("before", True, code.partial_l2, False),
    }


@holds(
    DISTILLATION,
    {
        "a weight that does not reach the maps": ("weight * distance / 1000", "distance / 1000"),
        "soft targets without their nine": ("9 * weight / (9 * weight + 1)", "weight / (weight + 1)"),
        "attention at its usual weight": ("beta=1000 * weight", "beta=1000"),
    },
)
def test_weighted(code):
    """Weight 1 is the usual loss, 0 the labels alone; at 3 the distillation counts three times beside them."""
    images, labels = noise(6, 3, 16, 16), torch.arange(6)
    for arm in ("scratch", *code.SWEPT):
        found = {}
        for weight in (None, 0.0, 1.0, 3.0):
            teacher, pupil = pair(code)
            if weight is None:
                loss = code.make_loss(teacher=teacher, **code.ARMS[arm])
            else:
                loss = code.weighted_loss(teacher=teacher, weight=weight, **code.ARMS[arm])
            found[weight] = float(loss(pupil, images, labels).detach())
        assert found[1.0] == pytest.approx(found[None], rel=1e-5)
        labels_alone = float(F.cross_entropy(pupil.student(images), labels).detach())
        assert found[0.0] == pytest.approx(labels_alone, rel=1e-5)
        if (
            arm == "KD"
        ):  # labels and soft targets have shares of one whole, in the proportion of 1 to 9 times the weight
            soft = (found[1.0] - 0.1 * labels_alone) / 0.9
            assert found[3.0] == pytest.approx((labels_alone + 27 * soft) / 28, rel=1e-4)
        else:
            assert found[3.0] - labels_alone == pytest.approx(3 * (found[1.0] - labels_alone), rel=1e-4)


@holds(
    DISTILLATION,
    {
        "the weight is chosen on the seed itself": ("sum(row) - row[i]", "row[i]"),
        "the weight of another method": ("== method]", '!= ""]'),
    },
)
def test_best_weight(code):
    """For each seed the weight that is best on the others: a lucky seed does not choose for itself."""
    rows = {"a, weight 0.1": [9, 1, 0], "a, weight 1": [5, 5, 5], "b, weight 1": [7, 7, 7], "scratch": [2, 3, 4]}
    study = SimpleNamespace(arms=rows, seeds=(0, 1, 2), values=lambda arm, metric, seeds: rows[arm])
    # without seed 0 the weight 1 is ahead, without seed 1 too (10 to 9), without seed 2 they tie and the first stands
    assert code.at_best_weight(study, "a, weight 1")[:2] == [5, 5]
    assert code.at_best_weight(study, "b, weight 1") == [7, 7, 7]
    assert code.at_best_weight(study, "scratch") == [2, 3, 4]


# ------------------------------------------------------------------------------------------------------ the rest


def test_depth_is_checked():
    for depth in (4, 12, 29):
        with pytest.raises(ValueError, match="is not 6n"):
            DISTILLATION.WideResNet(depth, 1)
    with pytest.raises(ValueError, match="is not 9n"):
        DISTILLATION.WideResNet(28, 1, kernels=(1, 3, 1))


def test_a_frozen_channel_has_its_shift_as_margin():
    """A scale of zero makes every value equal to the shift."""
    got = DISTILLATION.expected_negative(torch.tensor([-0.4, 0.4]), torch.zeros(2))
    assert got.tolist() == pytest.approx([-0.4, 0.0], abs=1e-6)


def test_the_stored_teacher_loads():
    teacher = DISTILLATION.TEACHER.load()
    assert inspect.count_parameters(teacher) == 303_706 and not teacher.training
    assert DISTILLATION.TEACHER.record["metrics"]["test_accuracy"] > 0.7
    assert all(torch.isfinite(tensor).all() for tensor in teacher.state_dict().values())
    assert torch.isfinite(teacher(noise(2, 3, 16, 16))).all()


def test_primary_claims_are_those_of_the_sweep():
    claims = family("08_feature_distillation")
    assert {block.study.stem for block, _ in claims.values()} == {"08_feature_distillation_weights"} and len(
        claims
    ) == 3
    assert all(block.metric is DISTILLATION.at_best_weight for block, _ in claims.values())
    assert len(DISTILLATION.SWEEP.seeds) == 6
    found = {name: [] for name in DISTILLATION.SWEPT}
    for arm, config in DISTILLATION.SWEEP_ARMS.items():
        name, given, weight = arm.partition(", weight ")
        if given:
            assert float(weight) == config["weight"]
            found[name].append(config["weight"])
    usual, larger = [0.1, 0.3, 1, 3, 10], [30, 100]
    assert found == {"KD": usual, "AT": [0.01, 0.03, *usual]} | {
        name: usual + larger for name in DISTILLATION.SWEPT[2:]
    }


# ---------------------------------------------------------------------------------------------------- exercises

CHECK_MARGIN, CHECK_DERIVATIVES, MARGIN, DERIVATIVES = from_cells(
    DISTILLATION,
    *("negative_mean_summed", "check_margin", "check_derivatives", "margin_solution", "derivatives_solution"),
)[1:]


def margin_with(beta, gamma, limit=1e-3, rare=3.0, sign=1.0, absolute=True, two=2.0, per_sd=True):
    """The margin, or what a learner makes of it."""
    sd = abs(gamma) if absolute else gamma
    below = (1 + math.erf(-beta / sd / math.sqrt(two))) / 2
    if below <= limit:
        return -rare * sd if per_sd else -rare
    density = math.exp(-((beta / sd) ** 2) / 2) / math.sqrt(2 * math.pi)
    return beta - sign * sd * density / below


def by_the_tail(beta, gamma):
    """Another right answer: erfc, and the limit as a comparison of beta."""
    sd = abs(gamma)
    if beta > 3.0902323061678132 * sd:
        return -3 * sd
    u = beta / sd
    return beta - sd * math.exp(-u * u / 2) / math.sqrt(2 * math.pi) / (math.erfc(u / math.sqrt(2)) / 2)


@pytest.mark.parametrize("answer", [MARGIN, by_the_tail, margin_with])
def test_right_margins_pass(answer):
    CHECK_MARGIN(answer)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"limit": 0.05}, "mean of the negative"),
        ({"limit": 0.01}, "mean of the negative"),
        ({"limit": 0.0014}, "mean of the negative"),
        ({"limit": 5e-4}, "fewer than 0.1 %"),
        ({"limit": 1e-4}, "fewer than 0.1 %"),
        ({"limit": -1}, "fewer than 0.1 %"),
        ({"rare": 2.0}, "fewer than 0.1 %"),
        ({"per_sd": False}, "fewer than 0.1 %"),
        ({"sign": -1.0}, "minus the mean size"),
        ({"two": 1.0}, "mean of the negative"),
        ({"absolute": False}, "sign of γ"),
    ],
)
def test_wrong_margins_get_a_hint(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_MARGIN(lambda beta, gamma: margin_with(beta, gamma, **wrong))


def test_no_margin_is_wrong():
    for answer in (lambda beta, gamma: 0.0, lambda beta, gamma: -math.sqrt(2 / math.pi) * abs(gamma)):
        with pytest.raises(AssertionError):
            CHECK_MARGIN(answer)


def derivatives_with(T, S, relu=True, half=False, skip="both", turned=False, clamp=True):
    """Both derivatives, or what a learner makes of them."""
    factor = (1.0 if half else 2.0) * (-1 if turned else 1)
    own = S.clamp_min(0) if clamp else S
    after = factor * (own - T.clamp_min(0)) * ((S > 0) if relu else 1.0)
    skipped = {"both": (S <= T) & (T <= 0), "negative": T <= 0, "below": S <= T, "both negative": (S < 0) & (T < 0)}
    before = factor * (S - T)
    return after, before if skip is None else before.masked_fill(skipped[skip], 0.0)


@pytest.mark.parametrize("answer", [DERIVATIVES, derivatives_with])
def test_right_derivatives_pass(answer):
    CHECK_DERIVATIVES(answer)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"relu": False}, r"\(a\)"),
        ({"relu": False, "clamp": False}, r"\(a\)"),
        ({"half": True}, r"\(a\)"),
        ({"turned": True}, r"\(a\)"),
        ({"skip": None}, r"\(b\)"),
        ({"skip": "negative"}, r"\(b\)"),
        ({"skip": "below"}, r"\(b\)"),
        ({"skip": "both negative"}, r"\(b\)"),
    ],
)
def test_wrong_derivatives_get_a_hint(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_DERIVATIVES(lambda T, S: derivatives_with(T, S, **wrong))


def test_derivatives_in_the_wrong_order():
    with pytest.raises(AssertionError, match=r"\(a\)"):
        CHECK_DERIVATIVES(lambda T, S: DERIVATIVES(T, S)[::-1])


@holds(
    DISTILLATION,
    {
        "the student of another seed": ("    train.set_seed(seed)\n    model = Pupil", "    model = Pupil"),
        "the batches of another seed": ("data, loss, seed, epochs, label)", "data, loss, 0, epochs, label)"),
        "larger batches": ("batch_size=64,", "batch_size=128,"),
        "the sweep weighs nothing": ("weighted_loss(teacher=teacher, **arm)", "weighted_loss('soft targets', teacher)"),
    },
)
def test_one_run_of_each_study(code):
    data, teacher = red_or_blue(128, side=16), code.TEACHER.load()

    def trained(loss):
        train.set_seed(1)
        recipe = train.Recipe(batch_size=64, augment=train.Augment(shift=2), evaluate=code.with_training_error)
        return train.fit(code.Pupil(code.WideResNet(10, 1), teacher), data, recipe, epochs=2, loss=loss, seed=1)

    run, by_hand = code.train_arm(data, seed=1, epochs=2, method="labels"), trained(code.make_loss("labels", teacher))
    assert run.keys() == {"test_accuracy", "test_loss", "train_error", "seconds"}
    assert run["test_loss"] == by_hand.last("test_loss") and run["train_error"] == by_hand.last("train_error")
    run = code.train_weighted(data, seed=1, epochs=2, method="soft targets", weight=2.0)
    assert run["test_loss"] == trained(code.SoftTargets(teacher, share=18 / 19)).last("test_loss")


@holds(DISTILLATION, {"always eight epochs": ('"epochs": float(epochs)', '"epochs": 8.0')})
def test_what_the_teacher_learns(code):
    data, model = red_or_blue(64), small_network()
    found = code.train_teacher(model, data, epochs=2)
    assert found == {"test_accuracy": train.evaluate(model, data)["test_accuracy"], "epochs": 2}
