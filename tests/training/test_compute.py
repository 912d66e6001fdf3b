"""How the machine computes: what it lacks is said, and float32 is float32."""

from collections.abc import Iterator

import pytest
import torch

from tripletkd.errors import UserError
from tripletkd.training.compute import PRECISIONS, Compute, are_resident, memory_bytes, select_compute, set_up_process

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a CUDA device")
def test_what_the_machine_lacks_is_said() -> None:
    for device, precision, message in (("cuda", "float32", "run.device: cuda"), ("auto", "tf32", "precision: tf32")):
        with pytest.raises(UserError, match=message):
            select_compute(device, precision, "auto", True, 32)


def test_images_are_resident_where_they_take_a_small_share_of_the_memory() -> None:
    quarter = memory_bytes(CPU) // 4
    assert are_resident("auto", quarter, CPU) and not are_resident("auto", quarter + 1, CPU)
    assert are_resident("device", 2 * quarter, CPU) and not are_resident("host", 1, CPU)


@pytest.fixture
def process() -> Iterator[None]:
    """As PyTorch sets itself up; put back afterwards."""
    cudnn, matmul, mode = torch.backends.cudnn, torch.backends.cuda.matmul, torch.get_deterministic_debug_mode()
    before, threads = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark), torch.get_num_threads()
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    torch.set_deterministic_debug_mode("default")
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
    torch.set_deterministic_debug_mode(mode)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("deterministic", [True, False])
def test_float32_is_float32(deterministic: bool, process: None) -> None:
    """On a GPU, PyTorch's convolutions use TF32 and any algorithm unless told not to."""
    for precision in PRECISIONS:
        set_up_process(Compute(CPU), precision, deterministic, 8)
        allowed = {torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32}
        assert allowed == {precision == "tf32"}
    assert torch.get_deterministic_debug_mode() == (2 if deterministic else 0)
    assert torch.backends.cudnn.benchmark is not deterministic
