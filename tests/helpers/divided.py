"""Short trainings in the processes that torchrun starts; the first one writes what came of them.

torchrun --standalone --nproc-per-node=2 tests/helpers/divided.py FILE
"""

import sys
from dataclasses import replace

import torch
from small_run import SHORT, Small, digits

from tripletkd.training.distributed import ParallelTrainer, joined
from tripletkd.training.loop import TrainResult, fit
from tripletkd.training.optim import SGD, AdamW

UNEVEN = replace(SHORT, epochs=2, batch_size=33)  # four steps an epoch, the last of 21 images
DECAYED = replace(UNEVEN, optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=1e-3, linear_weight_decay=0.01))
ADAM = replace(UNEVEN, optimizer=AdamW(lr=1e-3, weight_decay=0.1))
WITH_NORM = ("paper_student_quarter", "paper_teacher_quarter")  # batch norm and dropout in the student
CASES = {
    "negatives": ([1], Small("triplet", recipe=DECAYED)),
    "batch norm, dropout, negatives": ([1], Small("kd_triplet", WITH_NORM, UNEVEN)),
    "the same, two seeds together": ([1, 2], Small("kd_triplet", WITH_NORM, UNEVEN)),
    "batch norm in an adapter": ([1], Small("fitnet", ("resnet8", "resnet8"), UNEVEN)),
    "relations between images": ([1], Small("rkd", recipe=UNEVEN)),
    "a memory, and images on the host": ([1], Small("crd", recipe=ADAM, resident=False)),
}


def numbers(result: TrainResult) -> dict[str, torch.Tensor]:
    """The weights, the statistics of batch norm, and the history."""
    networks = {f"{seed} {k}": v for seed, net in result.networks.items() for k, v in net.state_dict().items()}
    rows = [list(row.values()) for row in result.history]
    return {**networks, "history": torch.tensor(rows, dtype=torch.float64)}


def main() -> None:
    found = {}
    with joined(torch.device("cpu")) as processes:
        for name, (seeds, small) in CASES.items():
            found[name] = numbers(fit(ParallelTrainer(small.trainer(digits(), seeds), processes)))
    if processes.rank == 0:
        torch.save(found, sys.argv[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
