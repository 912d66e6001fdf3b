"""Streams of random numbers: no two purposes and no two seeds share one."""

import pytest
import torch
from small_run import Small, digits

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.streams import PURPOSES, SEEDS, check_distinct, torch_seed


def test_no_two_of_many_seeds_and_purposes_share_a_stream() -> None:
    check_distinct(range(2000), "seeds")
    assert len({torch_seed(seed, purpose) for seed in range(2000) for purpose in PURPOSES}) == 2000 * len(PURPOSES)


def test_a_seed_that_begins_as_another_is_refused() -> None:
    first, second = (torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in (11, SEEDS + 11))
    assert torch.equal(first, second)  # which is why
    for seed in (SEEDS, SEEDS + 11):
        with pytest.raises(UserError, match=rf"suites.x.seeds: found {seed}, expected less than 2\^32"):
            check_distinct([11, seed], "suites.x.seeds")
    twin = torch_seed(11, "adapters")
    with pytest.raises(UserError, match=f"the network of seed {twin} would begin as the adapters of seed 11"):
        check_distinct([11, twin], "suites.x.seeds")


@pytest.mark.parametrize("method", ["fitnet", "vid"])
def test_adapters_do_not_begin_as_the_network(method: str) -> None:
    """As they did while 2^32 was added to the seed, of which PyTorch's generator keeps 32 bits."""
    small = Small(method, ("resnet14", "resnet8"))
    trainer = small.trainer(digits(), [11])
    network = models.build("resnet8", (8, 8, 1), 10, 11)
    own = torch.cat([p.flatten() for p in network.parameters() if p.dim() > 1])
    assert trainer.adapters is not None
    for parameter in trainer.adapters.parameters():
        if parameter.dim() > 1:
            numbers = min(len(own), parameter.numel())
            first, second = own[:numbers], parameter.detach().flatten()[:numbers].to(own.dtype)
            assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.2
