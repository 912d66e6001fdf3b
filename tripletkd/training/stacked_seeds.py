"""One network for several seeds at once: parameters stacked in a leading seed dimension, no seed sees another."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from tripletkd.training.compute import Compute
from tripletkd.types import Outputs

State = dict[str, Tensor]


def stack(modules: Sequence[nn.Module], compute: Compute) -> tuple[State, State]:
    """Stack the parameters, which then require gradients, and the buffers of equal modules: [S, ...] each, by name."""
    return stack_module_state([copy.deepcopy(m).to(device=compute.device, dtype=compute.dtype) for m in modules])


class FusedLinear(nn.Module):
    """Apply the linear layers of S seeds: [B, S * inputs] -> [B, S * outputs].

    weight: [S, outputs, inputs]; bias: [S, outputs].
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, S * inputs]."""
        by_seed = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], by_seed, self.weight.mT).transpose(0, 1).flatten(1)


def fuse(network: nn.Module, seeds: int) -> nn.Module:
    """Make one network of S seeds, whose channels are all seeds' channels, seed by seed.

    Convolutions get S times as many groups; linear layers a matrix a seed; all else works on each channel as before.
    One large kernel then does what S small ones did. Only for networks that say they are `fusible`.
    """
    fused = copy.deepcopy(network)
    for name, module in list(fused.named_modules()):
        if isinstance(module, nn.Conv2d):
            module.groups *= seeds
        elif isinstance(module, nn.Linear):
            linear = FusedLinear(*(t.detach().expand(seeds, *t.shape) for t in (module.weight, module.bias)))
            fused.set_submodule(name, linear)
    return fused


class Ensemble:
    """Computes one network for several seeds, together in each kernel (see `fuse`) or one seed after the other.

    Which is faster depends on the device and the size of the images; the results are the same but for rounding.
    """

    def __init__(self, members: Sequence[nn.Module], compute: Compute, features: bool = False) -> None:
        """Copy the members to the device of `compute`; features: whether outputs have them, or the logits alone."""
        self.size, self.features = len(members), features
        self.fused = compute.fuse_seeds and self.size > 1 and getattr(members[0], "fusible", False)
        self.params, self.buffers = stack(members, compute)
        self.single = copy.deepcopy(members[0]).to(device=compute.device, dtype=compute.dtype)
        self.template = fuse(self.single, self.size) if self.fused else self.single

    def __call__(self, images: Tensor) -> Outputs:
        """Compute outputs [S, B, ...] of images [S, B, C, H, W]; in training mode buffers are updated in place."""
        if not self.fused:
            return Outputs.stack([self._one(state, x) for state, x in zip(self.states(), images, strict=True)])
        together = images.movedim(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        outputs = self._one(self._fused_state(), together)
        return outputs.map(lambda t: t.unflatten(1, (self.size, -1)).movedim(1, 0))

    def _one(self, state: State | tuple[State, State], images: Tensor) -> Outputs:
        outputs: Outputs = functional_call(self.template, state, (images,))
        return outputs if self.features else Outputs(outputs.logits, {})

    def linear(self) -> list[Tensor]:
        """List the parameters of linear layers."""
        layers = [name for name, module in self.single.named_modules() if isinstance(module, nn.Linear)]
        return [param for name, param in self.params.items() if name.rpartition(".")[0] in layers]

    def states(self) -> list[tuple[State, State]]:
        """View each seed's parameters and buffers, in the memory of the stacked ones."""
        split = [{name: tensor.unbind() for name, tensor in group.items()} for group in (self.params, self.buffers)]
        params, buffers = ([{k: v[index] for k, v in group.items()} for index in range(self.size)] for group in split)
        return list(zip(params, buffers, strict=True))

    def _fused_state(self) -> State:
        """View what the fused template takes: channels of all seeds in one dimension, but where it keeps them apart."""
        apart = {
            f"{name}.{kind}"
            for name, m in self.template.named_modules()
            if isinstance(m, FusedLinear)
            for kind in ("weight", "bias")
        }
        state = self.params | self.buffers
        return {name: t if name in apart or t.dim() < 2 else t.flatten(0, 1) for name, t in state.items()}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Compute logits [S, B, classes] of the same images [B, C, H, W] for every seed, in eval mode."""
        self.template.eval()
        logits = self(images.expand(self.size, *images.shape)).logits
        self.template.train()
        return logits

    def member(self, index: int) -> nn.Module:
        """Copy one member as an ordinary module."""
        network = copy.deepcopy(self.single)
        params, buffers = self.states()[index]
        with torch.no_grad():
            for name, tensor in (params | buffers).items():
                (network.get_parameter(name) if name in params else network.get_buffer(name)).copy_(tensor)
        return network
