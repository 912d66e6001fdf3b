"""Batches on the device: order, negatives, crops and flips, against plain loops and against what chance allows."""

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tripletkd.data.batches import DeviceSplit, Inputs, Plan, Sampler, crop_and_flip, normalise
from tripletkd.data.dataset import Split

CPU = torch.device("cpu")
LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 2, 2, 0], dtype=np.int64)  # classes of 3, 3 and 5 images
PLAIN = Inputs()
AUGMENTED = Inputs(crop_padding=2, flip=True)


def plan_parts(plan: Plan) -> list[torch.Tensor]:
    return [part for part in (plan.index, plan.shift, plan.flip) if part is not None]


def assert_same(found: Plan, expected: Plan) -> None:
    assert len(plan_parts(found)) == len(plan_parts(expected))
    assert all(torch.equal(a, b) for a, b in zip(plan_parts(found), plan_parts(expected), strict=True))


# --- negatives --------------------------------------------------------------------------------------------------------


def test_negatives_are_of_another_class_and_uniform_over_all_images_of_those() -> None:
    sampler, rng, draws = Sampler(LABELS, PLAIN, negatives=True), np.random.default_rng(0), 20_000
    for anchor, label in enumerate(LABELS):
        drawn = sampler.other_class(np.full(draws, anchor), rng)
        count = np.bincount(drawn, minlength=len(LABELS))
        assert (count[label == LABELS] == 0).all()
        assert chisquare(count[label != LABELS]).pvalue > 1e-3


def test_negatives_stand_beside_their_images() -> None:
    order, negative = Sampler(LABELS, PLAIN, negatives=True).draw(seed=1, epoch=1).index
    assert sorted(order.tolist()) == list(range(len(LABELS)))
    assert (LABELS[order] != LABELS[negative]).all()


@pytest.mark.parametrize("contrasts", [4, 50])
def test_contrasts_are_uniform_over_images_of_other_classes(contrasts: int) -> None:
    """Each once at most where there are as many."""
    sampler, rng, draws = Sampler(LABELS, PLAIN, False, contrasts), np.random.default_rng(0), 3000
    for image, label in enumerate(LABELS):
        counts = np.stack([sampler.contrast(np.intp(image), rng) for _ in range(draws)])
        assert (counts.sum(1) == contrasts).all()
        assert (counts.max() == 1) == (contrasts < (label != LABELS).sum())
        assert (counts[:, label == LABELS] == 0).all()
        found = counts[:, label != LABELS].sum(0)
        assert chisquare(found).pvalue > 1e-3 and found.std() > 0


def test_contrasts_are_drawn_batch_by_batch_and_a_function_of_the_seed_and_the_epoch() -> None:
    sampler = Sampler(LABELS, AUGMENTED, negatives=False, contrasts=3)

    def drawn(seeds: Sequence[int], epoch: int) -> list[torch.Tensor]:
        plan = Plan.stack([sampler.draw(seed, epoch) for seed in seeds])
        assert plan.contrast is None
        return [batch.contrast for batch in plan.batches(4) if batch.contrast is not None]

    group, alone = drawn([1, 2], 3), drawn([2], 3)
    assert [tuple(contrast.shape) for contrast in group] == [(2, 4, 11), (2, 4, 11), (2, 3, 11)]
    assert all(torch.equal(a[1], b[0]) for a, b in zip(group, alone, strict=True))
    assert not torch.equal(group[0][0], group[0][1])
    assert not torch.equal(alone[0], alone[1]) and not torch.equal(alone[0], drawn([2], 4)[0])
    moved = next(sampler.draw(2, 3).map(lambda t: t.to("meta")).batches(4)).contrast
    assert moved is not None and moved.is_meta


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [PLAIN, AUGMENTED])
def test_a_plan_is_a_function_of_seed_and_epoch(inputs: Inputs) -> None:
    first, again = (Sampler(LABELS, inputs, negatives=True).draw(seed=1, epoch=3) for _ in range(2))
    assert_same(first, again)
    others = [Sampler(LABELS, inputs, negatives=True).draw(seed, epoch) for seed, epoch in ((2, 3), (1, 4), (3, 1))]
    assert not any(torch.equal(first.index, other.index) for other in others)


@pytest.mark.parametrize("inputs", [PLAIN, AUGMENTED])
def test_stacked_plans_are_the_single_ones(inputs: Inputs) -> None:
    plans = [Sampler(LABELS, inputs, negatives=True).draw(seed, epoch=1) for seed in (1, 2, 3)]
    stacked = Plan.stack(plans)
    for i, plan in enumerate(plans):
        assert_same(stacked.map(itemgetter(i)), plan)
    for batch, alone in zip(stacked.batches(4), plans[1].batches(4), strict=True):
        assert_same(batch.map(itemgetter(1)), alone)


@pytest.mark.parametrize("inputs", [PLAIN, AUGMENTED, replace(AUGMENTED, flip=False)])
def test_methods_with_and_without_negatives_see_the_same_images(inputs: Inputs) -> None:
    with_negatives, without = (Sampler(LABELS, inputs, negatives).draw(seed=1, epoch=1) for negatives in (True, False))
    assert_same(with_negatives.map(itemgetter(slice(1))), without)


@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_batches_cover_each_image_once(size: int) -> None:
    plan = Plan.stack([Sampler(LABELS, AUGMENTED, negatives=True).draw(seed, epoch=1) for seed in (1, 2)])
    batches = list(plan.batches(size))
    assert len(batches) == -(-len(LABELS) // size)
    assert all(batch.index.shape[-1] == size for batch in batches[:-1])
    for i in range(2):
        images = torch.cat([batch.index[i, 0] for batch in batches])
        assert sorted(images.tolist()) == list(range(len(LABELS)))
    shifts = [batch.shift for batch in batches if batch.shift is not None]
    assert plan.shift is not None and torch.equal(torch.cat(shifts, dim=-2), plan.shift)


def test_shifts_and_flips_are_uniform() -> None:
    plan = Sampler(np.arange(20_000) % 10, AUGMENTED, negatives=False).draw(seed=1, epoch=1)
    assert plan.shift is not None and plan.flip is not None
    for axis in range(2):
        assert chisquare(torch.bincount(plan.shift[..., axis].flatten(), minlength=5)).pvalue > 1e-3
    assert chisquare(torch.bincount(plan.flip.flatten().long(), minlength=2)).pvalue > 1e-3


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "shape"), [(0, (3, 4, 4, 1)), (2, (2, 3, 5, 6, 3))])
def test_crop_and_flip_is_what_plain_loops_do(padding: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    shift = torch.randint(2 * padding + 1, (*shape[:-3], 2), generator=generator)
    flip = torch.randint(2, shape[:-3], generator=generator).bool()
    found, (height, width) = crop_and_flip(images, shift, flip, padding), shape[-3:-1]
    for place in np.ndindex(shape[:-3]):
        for row, column in np.ndindex(height, width):
            r = row + int(shift[place][0]) - padding
            c = (width - 1 - column if flip[place] else column) + int(shift[place][1]) - padding
            inside = 0 <= r < height and 0 <= c < width
            expected = images[place][r, c] if inside else torch.zeros(shape[-1], dtype=torch.uint8)
            assert torch.equal(found[place][row, column], expected), (place, row, column)


@pytest.mark.parametrize("inputs", [Inputs((0.5,), (0.25,)), Inputs((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
def test_normalise_is_a_channel_s_mean_and_deviation(inputs: Inputs) -> None:
    pixels = torch.randint(256, (2, 5, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = normalise(pixels, *inputs.statistics(CPU, torch.float64))
    assert found.shape == (2, 3, 5, 4)
    for image, row, column, channel in np.ndindex(2, 5, 4, 3):
        mean, std = (values[channel % len(values)] for values in (inputs.mean, inputs.std))
        expected = (pixels[image, row, column, channel].item() / 255 - mean) / std
        assert found[image, channel, row, column].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("inputs", [replace(PLAIN, mean=(0.3,)), replace(AUGMENTED, std=(0.5,))])
def test_device_split_gives_the_planned_images(inputs: Inputs, resident: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (len(LABELS), 6, 6, 1), dtype=np.uint8)
    split = DeviceSplit(Split(pixels, LABELS), inputs, torch.device("cpu"), torch.float64, resident)
    plan = Plan.stack([Sampler(LABELS, inputs, negatives=True).draw(seed, epoch=1) for seed in (1, 2)])
    images = torch.from_numpy(pixels)[plan.index]
    if plan.shift is not None and plan.flip is not None:
        images = crop_and_flip(images, plan.shift, plan.flip, inputs.crop_padding)
    batches = list(split.batches(plan, 4))
    assert [batch.images is None for batch in batches] == [resident] * 3
    taken = torch.cat([split.take(batch) for batch in batches], dim=2)
    assert torch.equal(taken, normalise(images, *inputs.statistics(CPU, torch.float64)))
    chunks = list(split.chunks(4))
    assert torch.equal(torch.cat([labels for _, labels in chunks]), torch.from_numpy(LABELS))
    expected = normalise(torch.from_numpy(pixels), *inputs.statistics(CPU, torch.float64))
    assert torch.equal(torch.cat([chunk for chunk, _ in chunks]), expected)
