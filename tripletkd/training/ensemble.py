"""One network for several seeds at once: parameters stacked in a leading seed dimension, no seed sees another."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tripletkd.types import Outputs

State = dict[str, Tensor]


def stack(modules: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> tuple[State, State]:
    """Parameters, which require gradients, and buffers of equal modules, [S, ...] each."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    params = {
        name: torch.stack([convert(m.get_parameter(name)) for m in modules])
        for name, _ in modules[0].named_parameters()
    }
    buffers = {
        name: torch.stack([convert(m.get_buffer(name)) for m in modules]) for name, _ in modules[0].named_buffers()
    }
    return {name: param.requires_grad_() for name, param in params.items()}, buffers


class FoldedLinear(nn.Module):
    """Linear layers of S seeds, [B, S * inputs] -> [B, S * outputs]; weight [S, outputs, inputs], bias [S, outputs]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        by_seed = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], by_seed, self.weight.mT).transpose(0, 1).flatten(1)


def fold(network: nn.Module, seeds: int) -> nn.Module:
    """The network of S seeds as one whose channels are all seeds' channels, seed by seed.

    Convolutions get S times as many groups; linear layers a matrix a seed; all else works on each channel as before.
    One large kernel then does what S small ones did. Only for networks that say they are `foldable`.
    """
    folded = copy.deepcopy(network)
    for name, module in list(folded.named_modules()):
        if isinstance(module, nn.Conv2d):
            module.groups *= seeds
        elif isinstance(module, nn.Linear):
            linear = FoldedLinear(*(t.detach().expand(seeds, *t.shape) for t in (module.weight, module.bias)))
            folded.set_submodule(name, linear)
    return folded


class Ensemble:
    """One network for several seeds.

    `folded` computes all seeds in each kernel (see `fold`), otherwise one seed after the other. Which is faster depends
    on the device and the size of the images; the results are the same but for rounding. features: whether its outputs
    have them, or the logits alone.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        device: torch.device,
        dtype: torch.dtype,
        folded: bool,
        features: bool = False,
    ) -> None:
        self.size, self.features = len(members), features
        self.folded = folded and self.size > 1 and getattr(members[0], "foldable", False)
        self.params, self.buffers = stack(members, device, dtype)
        self.single = copy.deepcopy(members[0]).to(device=device, dtype=dtype)
        self.template = fold(self.single, self.size) if self.folded else self.single

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs [S, B, ...] of images [S, B, C, H, W]; in training mode buffers are updated in place."""
        if not self.folded:
            return Outputs.stack([self._one(state, x) for state, x in zip(self.states(), images, strict=True)])
        together = images.movedim(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        outputs = self._one(self._folded_state(), together)
        return outputs.map(lambda t: t.unflatten(1, (self.size, -1)).movedim(1, 0))

    def _one(self, state: State | tuple[State, State], images: Tensor) -> Outputs:
        outputs: Outputs = functional_call(self.template, state, (images,))
        return outputs if self.features else Outputs(outputs.logits, {})

    def states(self) -> list[tuple[State, State]]:
        """Each seed's parameters and buffers, in the memory of the stacked ones."""
        split = [{name: tensor.unbind() for name, tensor in group.items()} for group in (self.params, self.buffers)]
        params, buffers = ([{k: v[index] for k, v in group.items()} for index in range(self.size)] for group in split)
        return list(zip(params, buffers, strict=True))

    def _folded_state(self) -> State:
        """What the folded template takes: channels of all seeds in one dimension, except where it keeps them apart."""
        apart = {
            f"{name}.{kind}"
            for name, m in self.template.named_modules()
            if isinstance(m, FoldedLinear)
            for kind in ("weight", "bias")
        }
        state = self.params | self.buffers
        return {name: t if name in apart or t.dim() < 2 else t.flatten(0, 1) for name, t in state.items()}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits [S, B, classes] of the same images [B, C, H, W] for every seed, in eval mode."""
        self.template.eval()
        logits = self(images.expand(self.size, *images.shape)).logits
        self.template.train()
        return logits

    def member(self, index: int) -> nn.Module:
        """A copy of one member as an ordinary module."""
        network = copy.deepcopy(self.single)
        params, buffers = self.states()[index]
        with torch.no_grad():
            for name, tensor in (params | buffers).items():
                (network.get_parameter(name) if name in params else network.get_buffer(name)).copy_(tensor)
        return network
