"""The losses and their gradients against reference values of public code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import fill, golden
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from tripletkd import methods
from tripletkd.methods import at, cc, crd, fitnet, logit_mse, nst, pair, pkt, rkd, sp, vid
from tripletkd.methods.functional import kl_divergence, same_size
from tripletkd.types import Batch, Outputs, total

Inputs = dict[str, Tensor]


def labels_of(logits: Tensor) -> Tensor:
    """(3 i + 1) mod C, as in the reference values."""
    return (3 * torch.arange(len(logits)) + 1) % logits.shape[1]


def total_of(name: str, inputs: Inputs, **params: float) -> Tensor:
    """A method's whole loss, through its `loss`."""
    module = methods.load(name)
    settings = module.Params(**params)
    needs: Any = {key: Outputs(inputs[key], {}) for key in ("student", *methods.needs(module, settings))}
    return total(module.loss(Batch(labels_of(inputs["student"]), **needs), settings))


def vid_with_identity(student: Tensor, teacher: Tensor, hyper: dict[str, Any]) -> Tensor:
    """The student's map itself as the mean, one variance for all channels."""
    assert vid.initial_log_scale(hyper["init_pred_var"], hyper["eps"]) == pytest.approx(hyper["log_scale"], rel=1e-12)
    log_scale = torch.full_like(student[0, :, 0, 0], hyper["log_scale"])
    return vid.information((student, log_scale), teacher, hyper["eps"])


# family of the golden files' cases -> the project's function of (inputs, hyper-parameters)
FAMILIES: dict[str, Callable[[Inputs, dict[str, Any]], Tensor]] = {
    "CE": lambda x, h: total_of("scratch", x, ce=1),
    "KD": lambda x, h: kl_divergence(x["student"], x["teacher"], h["T"]),
    "LSKD": lambda x, h: kl_divergence(x["student"], x["teacher"], h["T"], standardize=True),
    "LogitMSE": lambda x, h: logit_mse.logit_mse(x["student"], x["teacher"]),
    "Triplet": lambda x, h: total_of("triplet", x, ce=0, triplet=1, margin=h["margin"]),
    "AuthorsTotalOld": lambda x, h: total_of("triplet", x, ce=1, triplet=2, margin=5),
    "AuthorsKLDiv": lambda x, h: kl_divergence(x["student"], x["teacher"], h["T"]),
    "AuthorsTotalNew": lambda x, h: total_of("kd_triplet", x, ce=1, kl=1, temperature=1, triplet=2, margin=5),
    "Contrastive": lambda x, h: pair.contrastive(
        x["teacher"], x["student"], (torch.arange(len(x["student"])) % 2 == 0).to(x["student"]), h["margin"]
    ),
    "FitNet": lambda x, h: fitnet.hint(x["student"], x["teacher"]),
    "AT": lambda x, h: at.attention(*same_size(x["student"], x["teacher"]), power=h["p"]),
    "SP": lambda x, h: sp.similarity(x["student"], x["teacher"]),
    "PKT": lambda x, h: pkt.divergence(x["student"], x["teacher"], h["eps"]),
    "CC": lambda x, h: cc.correlation(x["student"], x["teacher"]),
    "NST": lambda x, h: nst.mmd(*same_size(x["student"], x["teacher"])),
    "VID_identity": lambda x, h: vid_with_identity(*same_size(x["student"], x["teacher"]), h),
    "DKD": lambda x, h: total_of("dkd", x, ce=0, tckd=h["alpha"], nckd=h["beta"], temperature=h["T"], warmup=0),
    "DIST": lambda x, h: total_of("dist", x, ce=0, inter=h["beta"], intra=h["gamma"], temperature=h["tau"]),
}
FAMILIES |= dict.fromkeys(
    ["RKD_distance", "RKD_angle", "RKD_25_50", "RKD_distance_squared"],
    lambda x, h: (
        h["w_d"] * rkd.distance(x["student"], x["teacher"], h.get("squared", False))
        + h["w_a"] * rkd.angle(x["student"], x["teacher"])
    ),
)

ALL = [case for content in golden("cases") for case in content["cases"]]
CASES = [case for case in ALL if case["family"] != "CRD"]
SEVERAL_STEPS = [case for case in ALL if case["family"] == "CRD"]
assert CASES and SEVERAL_STEPS  # pytest skips a test without parameters


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_loss_and_gradients_equal_the_reference(case: dict[str, Any]) -> None:
    family, specs = FAMILIES[case["family"]], case["inputs"]
    inputs = {name: fill(tuple(spec["shape"]), spec["seed"], spec["scale"]) for name, spec in specs.items()}
    for copied in case.get("copy_rows", []):
        inputs[copied["to"]][copied["rows"]] = inputs[copied["from"]][copied["from_rows"]].clone()
    for name, spec in specs.items():
        assert inputs[name].sum().item() == pytest.approx(spec["sum"], rel=1e-12)
    for tensor in inputs.values():
        tensor.requires_grad_()
    loss = family(inputs, case["hyper"])
    assert loss.item() == pytest.approx(case["loss_f64"], rel=1e-10, abs=1e-14)
    loss.backward()
    for name, expected in case["grad"].items():
        check_gradient(inputs[name], expected, f"gradient of {name}")


def check_gradient(leaf: Tensor, expected: dict[str, Any], what: str) -> None:
    assert leaf.grad is not None
    found = {
        "l2": leaf.grad.norm().item(),
        "sum": leaf.grad.sum().item(),
        "dot": (leaf.grad * fill(tuple(leaf.shape), 999, 1.0)).sum().item(),
        "first8": leaf.grad.flatten()[:8].tolist(),
    }
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=1e-8, abs=1e-8 * expected["l2"]), f"{what}: {key}"


def memory_of(case: dict[str, Any]) -> crd.Memory:
    """As it is before the first step: rows of length 1 in float64, rounded to float32."""
    hyper, (_, size) = case["hyper"], case["inputs"]["student"]["shape"]
    params = crd.Params(1, 1, ["embedding"], size, hyper["K"], hyper["T"], hyper["momentum"])
    memory = crd.Memory(size, size, params, hyper["n_data"]).double()
    for i, name in enumerate(("student", "teacher")):
        rows = fill((hyper["n_data"], size), hyper["seed"] + 100 + i, 1.0)
        memory.get_buffer(name).copy_(normalize(rows, dim=1).float())
    return memory


@pytest.mark.parametrize("case", SEVERAL_STEPS, ids=[case["name"] for case in SEVERAL_STEPS])
def test_losses_gradients_and_memories_follow_the_reference_step_by_step(case: dict[str, Any]) -> None:
    hyper, shape, memory = case["hyper"], tuple(case["inputs"]["student"]["shape"]), memory_of(case)
    i, j = torch.arange(shape[0]), torch.arange(hyper["K"])
    for step, expected in enumerate(case["loss_f64"]):
        leaves = {
            name: fill(shape, hyper["seed"] + 2 * step + n, 1.0).requires_grad_()
            for n, name in enumerate(("student", "teacher"))
        }
        index = (5 * i + 3 * step + hyper["seed"]) % hyper["n_data"]
        negatives = (7 * i[:, None] + 11 * j + 13 * step + hyper["seed"]) % hyper["n_data"]
        drawn = one_hot(negatives, hyper["n_data"]).sum(1)
        s, t = (normalize(leaf, dim=1) for leaf in leaves.values())
        scores = memory.compare(s, t, index, drawn)
        loss = torch.stack([crd.noise_contrastive(score, index, drawn, hyper["eps"]) for score in scores]).sum()
        assert loss.item() == pytest.approx(expected, rel=1e-10)
        loss.backward()
        for name, leaf in leaves.items():
            check_gradient(leaf, case["grad"][name][step], f"step {step}, gradient of {name}")
    for name, constant in case["Z"].items():
        assert memory.get_buffer(f"z_{name}").item() == pytest.approx(constant, rel=1e-10)
    for name, sums in case["memory_after"].items():
        rows = memory.get_buffer(name)
        assert {"sum": rows.sum().item(), "l2": rows.norm().item()} == pytest.approx(sums, rel=1e-10)
