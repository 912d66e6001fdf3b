"""Images per second of distillation epochs in one process, and in several that torchrun starts.

OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=1 -m benchmarks.several paper 2000
OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 -m benchmarks.several paper 2000
"""

import statistics
import sys
import time

import torch

from benchmarks.step import CASES, How, made_up, our_trainer
from tripletkd.training.distributed import ParallelTrainer, joined, on_own_device
from tripletkd.training.loop import fit

EPOCHS = 4  # the first one is not counted


def main(case: str, images: int) -> None:
    """Time the epochs of one seed, with evaluation; the median counts. What is computed once a training is not."""
    how = How(torch.device("cuda" if torch.cuda.is_available() else "cpu"), seeds=1)
    seconds, busy = [], []  # the second is what counts on a machine that others use too
    with joined(on_own_device(how.compute(32)).device) as processes:
        for _ in range(EPOCHS):
            trainer = our_trainer(CASES[case], how, made_up(CASES[case], images, 32))
            teacher = trainer.objective.teacher
            assert teacher is not None
            teacher.train_logits, teacher.test_logits  # noqa: B018
            started, worked = time.perf_counter(), time.process_time()
            fit(ParallelTrainer(trainer, processes) if processes.count > 1 else trainer)
            seconds.append(time.perf_counter() - started)
            busy.append(time.process_time() - worked)
    if processes.rank == 0:
        rate, worked = images / statistics.median(seconds[1:]), statistics.median(busy[1:])
        print(f"{processes.count} processes of {torch.get_num_threads()} threads: {rate:.0f} images/s, {worked:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
