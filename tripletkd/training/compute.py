"""Where and how numbers are computed: the device, the precision, and what PyTorch keeps for the whole process."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass

import torch

from tripletkd.errors import UserError

# precision -> the type of weights, losses and measurements; that of the networks' passes in training, where it differs
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, None),
    "tf32": (torch.float32, None),
    "bfloat16": (torch.float32, torch.bfloat16),
}
SMALL_IMAGE = 16  # pixels of height up to which one seed's kernels leave a processor idle
RESIDENT_SHARE = 0.25  # of the device's memory up to which a data set's images are copied to it
CORES = torch.get_num_threads()  # what PyTorch takes unless told otherwise; OMP_NUM_THREADS limits it


@dataclass(frozen=True)
class Compute:
    """Names the device, the types of numbers on it, and how the seeds of a run share it."""

    device: torch.device
    dtype: torch.dtype = torch.float32  # of weights, losses and measurements
    autocast_dtype: torch.dtype | None = None  # of the networks' passes in training, where it is another
    fuse_seeds: bool = False  # all seeds in each kernel, or one seed after the other
    cuda_graph: bool = False  # training steps recorded once and replayed


def select_compute(device: str, precision: str, fuse_seeds: str, cuda_graph: bool, image_height: int) -> Compute:
    """Choose how to compute on this machine.

    Args:
        device: auto, cpu or cuda; auto takes a CUDA device where there is one.
        precision: a key of PRECISIONS.
        fuse_seeds: auto, always or never; auto fuses on a GPU and for images of at most SMALL_IMAGE pixels.
        cuda_graph: whether steps are recorded as CUDA graphs where the device is a GPU.
        image_height: pixels.

    Raises:
        UserError: if the device that is asked for is not here, or does not compute in that precision.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("run.device: cuda, but PyTorch finds no CUDA device here; expected cpu or auto")
    on = torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
    if precision == "tf32" and on.type == "cpu":
        raise UserError("precision: tf32 is computed by a CUDA device, this run is on a CPU; expected another one")
    dtype, autocast_dtype = PRECISIONS[precision]
    fuse = {"auto": image_height <= SMALL_IMAGE or on.type == "cuda", "always": True, "never": False}[fuse_seeds]
    return Compute(on, dtype, autocast_dtype, fuse, cuda_graph and on.type == "cuda")


def are_resident(residence: str, image_bytes: int, device: torch.device) -> bool:
    """Decide whether all images are copied to the device, or stay on the host, mapped from their file.

    Args:
        residence: auto, device or host; auto copies at most RESIDENT_SHARE of the device's memory.
        image_bytes: of both splits.
        device: a GPU has its own memory, a CPU the machine's.
    """
    return {"auto": image_bytes <= RESIDENT_SHARE * memory_bytes(device), "device": True, "host": False}[residence]


def memory_bytes(device: torch.device) -> int:
    """Return a GPU's memory, or the whole machine's; where a container has less of it, run.residence: host is safe."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def set_up_process(compute: Compute, precision: str, deterministic: bool, image_height: int) -> None:
    """Set what PyTorch and the C library keep for the whole process: determinism, TF32, threads, freed memory."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        # As use_deterministic_algorithms(True), which imports a compiler (3 s a process).
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs a pass
    torch.backends.cudnn.benchmark = not deterministic
    # PyTorch lets convolutions use TF32 unless told not to: float32 here means float32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if compute.device.type == "cpu":  # a second thread gains nothing on small kernels: it spins and waits
        torch.set_num_threads(1 if image_height <= SMALL_IMAGE else CORES)
    # What a step frees is kept for the next: glibc would give large blocks back to the system, which hands them out
    # again page by page, filled with zeros (a fifth of an epoch on CIFAR-10). Other C libraries have no mallopt.
    with suppress(AttributeError):
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)
