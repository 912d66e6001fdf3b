"""Batches on the device: order, negatives, crops and flips, against plain loops and against what chance allows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from tripletkd.data.batches import ByClass, DeviceSplit, Drawing, Inputs, Plan, Sampler, crop_and_flip, normalise
from tripletkd.data.dataset import Split
from tripletkd.methods import crd

CPU = torch.device("cpu")
LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 2, 2, 0], dtype=np.int64)  # classes of 3, 3 and 5 images
PLAIN = Inputs()
AUGMENTED = Inputs(crop_padding=2, flip=True)


def assert_same(found: Plan, expected: Plan) -> None:
    assert found.tensors().keys() == expected.tensors().keys()
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in found.tensors().items())


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_negatives_are_of_another_class_and_uniform_over_all_images_of_those() -> None:
    sampler, rng, draws = Sampler(LABELS, PLAIN, negatives=True), np.random.default_rng(0), 20_000
    for anchor, label in enumerate(LABELS):
        count = np.bincount(sampler.other_class(np.full(draws, anchor), rng), minlength=len(LABELS))
        assert (count[label == LABELS] == 0).all()
        assert chisquare(count[label != LABELS]).pvalue > 1e-3
    order, negative = sampler.draw(seed=1, epoch=1).index
    assert sorted(order.tolist()) == list(range(len(LABELS)))
    assert (LABELS[order] != LABELS[negative]).all()


def contrast(negatives: int) -> partial[Tensor]:
    """The negatives of CRD: of the methods here, the one that draws for itself."""
    params = crd.Params(1, 1, ["embedding"], dimensions=8, negatives=negatives, temperature=0.1, momentum=0.5)
    return partial(crd.draw, params=params)


@pytest.mark.parametrize("negatives", [4, 50])
def test_crd_s_negatives_are_uniform_over_images_of_other_classes(negatives: int) -> None:
    """Each once at most where there are as many."""
    split, rng, draws = ByClass(LABELS), np.random.default_rng(0), 3000
    for image, label in enumerate(LABELS):
        counts = contrast(negatives)(Drawing(np.full(draws, image), split, rng)).numpy()
        assert (counts.sum(1) == negatives).all()
        assert (counts.max() == 1) == (negatives < (label != LABELS).sum())
        assert (counts[:, label == LABELS] == 0).all()
        found = counts[:, label != LABELS].sum(0)
        assert chisquare(found).pvalue > 1e-3 and found.std() > 0


def test_what_a_method_draws_is_of_its_batch_and_a_function_of_the_seed_and_the_epoch() -> None:
    sampler = Sampler(LABELS, AUGMENTED, negatives=False, draw=contrast(3))
    split = DeviceSplit(Split(np.zeros((11, 4, 4, 1), np.uint8), LABELS), AUGMENTED, CPU, torch.float32)

    def drawn(seeds: Sequence[int], epoch: int) -> list[Tensor]:
        plan = Plan.stack([sampler.draw(seed, epoch) for seed in seeds])
        return [batch.drawn for batch in split.batches(plan, 4) if batch.drawn is not None]

    group, alone = drawn([1, 2], 3), drawn([2], 3)
    assert [tuple(part.shape) for part in group] == [(2, 4, 11), (2, 4, 11), (2, 3, 11)]
    assert all(torch.equal(a[1], b[0]) for a, b in zip(group, alone, strict=True))
    assert not torch.equal(group[0][0], group[0][1])
    assert not torch.equal(alone[0], alone[1]) and not torch.equal(alone[0], drawn([2], 4)[0])


@pytest.mark.parametrize("inputs", [PLAIN, AUGMENTED, replace(AUGMENTED, flip=False)])
def test_a_plan_is_a_function_of_seed_and_epoch_and_its_images_the_same_without_negatives(inputs: Inputs) -> None:
    sampler = Sampler(LABELS, inputs, negatives=True)
    first = sampler.draw(seed=1, epoch=3)
    assert_same(sampler.draw(seed=1, epoch=3), first)
    assert_same(first.map(itemgetter(slice(1))), Sampler(LABELS, inputs, negatives=False).draw(seed=1, epoch=3))
    for seed, epoch in ((2, 3), (1, 4), (3, 1)):
        assert not torch.equal(first.index, sampler.draw(seed, epoch).index)


@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_batches_of_several_seeds_are_those_of_each_and_cover_each_image_once(size: int) -> None:
    plans = [Sampler(LABELS, AUGMENTED, negatives=True).draw(seed, epoch=1) for seed in (1, 2, 3)]
    batches = list(Plan.stack(plans).batches(size))
    assert len(batches) == -(-len(LABELS) // size)
    for i, plan in enumerate(plans):
        of_seed = [batch.map(itemgetter(i)) for batch in batches]
        for batch, alone in zip(of_seed, plan.batches(size), strict=True):
            assert_same(batch, alone)
        for name, tensor in plan.tensors().items():
            assert torch.equal(torch.cat([batch.tensors()[name] for batch in of_seed], dim=-1), tensor)
        assert sorted(plan.index[0].tolist()) == list(range(len(LABELS)))


def test_crops_and_flips_are_uniform() -> None:
    plan = Sampler(np.arange(20_000) % 10, AUGMENTED, negatives=False).draw(seed=1, epoch=1)
    for drawn, values in ((plan.row, 5), (plan.column, 5), (plan.flip, 2)):
        assert drawn is not None
        assert chisquare(torch.bincount(drawn.flatten().long(), minlength=values)).pvalue > 1e-3


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "shape"), [(0, (3, 4, 4, 1)), (2, (2, 3, 5, 6, 3))])
def test_crop_and_flip_is_what_plain_loops_do(padding: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    first_row, first_column = torch.randint(2 * padding + 1, (2, *shape[:-3]), generator=generator)
    flip = torch.randint(2, shape[:-3], generator=generator).bool()
    found, (height, width) = crop_and_flip(images, (first_row, first_column), flip, padding), shape[-3:-1]
    for place in np.ndindex(shape[:-3]):
        for row, column in np.ndindex(height, width):
            r = row + int(first_row[place]) - padding
            c = (width - 1 - column if flip[place] else column) + int(first_column[place]) - padding
            inside = 0 <= r < height and 0 <= c < width
            expected = images[place][r, c] if inside else torch.zeros(shape[-1], dtype=torch.uint8)
            assert torch.equal(found[place][row, column], expected), (place, row, column)


@pytest.mark.parametrize("inputs", [Inputs((0.5,), (0.25,)), Inputs((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
def test_normalise_is_a_channel_s_mean_and_deviation(inputs: Inputs) -> None:
    pixels = torch.randint(256, (2, 5, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = normalise(pixels, *inputs.statistics(CPU, torch.float64))
    for image, row, column, channel in np.ndindex(2, 5, 4, 3):
        mean, std = (values[channel % len(values)] for values in (inputs.mean, inputs.std))
        expected = (pixels[image, row, column, channel].item() / 255 - mean) / std
        assert found[image, channel, row, column].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("inputs", [replace(PLAIN, mean=(0.3,)), replace(AUGMENTED, std=(0.5,))])
def test_device_split_gives_the_planned_images(inputs: Inputs, resident: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (len(LABELS), 6, 6, 1), dtype=np.uint8)
    split = DeviceSplit(Split(pixels, LABELS), inputs, CPU, torch.float64, resident)
    plan = Plan.stack([Sampler(LABELS, inputs, negatives=True).draw(seed, epoch=1) for seed in (1, 2)])
    images = torch.from_numpy(pixels)[plan.index]
    if plan.row is not None and plan.column is not None and plan.flip is not None:
        images = crop_and_flip(images, (plan.row, plan.column), plan.flip, inputs.crop_padding)
    taken = torch.cat([split.take(batch) for batch in split.batches(plan, 4)], dim=2)
    assert torch.equal(taken, normalise(images, *inputs.statistics(CPU, torch.float64)))
    chunks = list(split.chunks(4))
    assert torch.equal(torch.cat([labels for _, labels in chunks]), torch.from_numpy(LABELS))
    expected = normalise(torch.from_numpy(pixels), *inputs.statistics(CPU, torch.float64))
    assert torch.equal(torch.cat([chunk for chunk, _ in chunks]), expected)
