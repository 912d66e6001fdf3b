"""One training in two processes: the numbers of one process."""

from dataclasses import replace
from pathlib import Path

import divided
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from shrunk import command
from small_run import digits

from tripletkd.errors import UserError
from tripletkd.training.distributed import ParallelTrainer, Processes


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("divided") / "numbers.pt"
    words = ["torchrun", "--standalone", "--nproc-per-node=2", str(Path(divided.__file__)), str(path)]
    command(ROOT, *words, PYTHONPATH=f"{ROOT}:{ROOT}/tests", OMP_NUM_THREADS="1")
    found: dict[str, dict[str, torch.Tensor]] = torch.load(path)
    return found


@pytest.mark.parametrize("name", divided.CASES)
def test_two_processes_compute_what_one_does(name: str, in_two: dict[str, dict[str, torch.Tensor]]) -> None:
    seeds, small = divided.CASES[name]
    expected = divided.numbers(small.fit(seeds))
    torch.testing.assert_close(in_two[name], expected, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        processes, trainer = Processes(), divided.CASES["negatives"][1].trainer(digits(), [1])
        processes.count = 22
        with pytest.raises(UserError, match=r"recipe\.batch_size: found 33, .* a batch of 21 of 120 images for 22"):
            ParallelTrainer(trainer, processes)
        processes.count = 2
        trainer.students.single.add_module("norm", torch.nn.SyncBatchNorm(3))
        with pytest.raises(UserError, match=r"the network's norm is a SyncBatchNorm"):
            ParallelTrainer(trainer, processes)
        trainer.recipe = replace(trainer.recipe, mixup=0.2)
        with pytest.raises(UserError, match=r"recipe: found mixup or cutmix"):
            ParallelTrainer(trainer, processes)
    finally:
        dist.destroy_process_group()
