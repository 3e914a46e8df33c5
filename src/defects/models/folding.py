"""Networks that only score: batch normalisations are folded into the convolutions before them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Exactly these: a subclass may do more to its weights than it shows, such as standardise them.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@contextmanager
def folded_norms(network: nn.Module, size: tuple[int, int]) -> Iterator[None]:
    """While it lasts `network` is as `fold_norms` makes it, and then what it was, weights and all."""
    replaced = fold_norms(network, size)
    try:
        yield
    finally:
        _put_back(network, replaced)


@torch.no_grad()  # no inference mode: a checkpoint could not be loaded into tensors made in it
def fold_norms(network: nn.Module, size: tuple[int, int]) -> dict[str, nn.Module]:
    """Fold, in place, every normalisation that takes a convolution's output alone; what it replaced, by name.

    The same outputs in evaluation mode but for rounding, in about half the time on a CPU. `network`, on the
    CPU, is run on a random image of `size` (height, width), to see which modules follow one another. It stays
    as it is where there is nothing to fold, or where the outputs would not stay the same.
    """
    network.eval()
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    pairs, outputs = _find_pairs(network, images)
    replaced = {}
    for names in pairs:
        convolution, norm = (network.get_submodule(name) for name in names)
        replaced |= dict(zip(names, (convolution, norm), strict=True))
        network.set_submodule(names[0], fuse_conv_bn_eval(convolution, norm).requires_grad_(False))
        # timm's normalisations hold the activation that follows them.
        network.set_submodule(names[1], getattr(norm, "act", nn.Identity()))
    if replaced and not _are_close(outputs, network(images)):
        _put_back(network, replaced)  # such as one that adds the convolution's own output to a later one
        return {}
    return replaced


def _put_back(network: nn.Module, replaced: dict[str, nn.Module]) -> None:
    for name, module in replaced.items():
        network.set_submodule(name, module)


def _find_pairs(network: nn.Module, images: torch.Tensor) -> tuple[list[tuple[str, str]], tuple]:
    """Names of convolutions and of the normalisations of their outputs, which run once; the outputs."""
    made_by: dict[int, str] = {}
    kept_alive = []  # so that no two tensors have the same id
    pairs = []
    runs = Counter()

    def note_convolution(name: str):
        def hook(module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
            runs[name] += 1
            made_by[id(output)] = name
            kept_alive.append(output)

        return hook

    def note_norm(name: str):
        def hook(module: nn.Module, arguments: tuple) -> None:
            runs[name] += 1
            convolution = made_by.get(id(arguments[0]))
            if convolution is not None:
                pairs.append((convolution, name))

        return hook

    handles = []
    for name, module in network.named_modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(note_convolution(name)))
        elif type(module) in NORMS:
            handles.append(module.register_forward_pre_hook(note_norm(name)))
    try:
        outputs = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if runs[pair[0]] == runs[pair[1]] == 1], outputs


def _are_close(outputs: tuple | list, others: tuple | list) -> bool:
    for tensor, other in zip(outputs, others, strict=True):
        if tensor is None:
            continue
        tolerance = 1e-3 * float(tensor.abs().max()) + 1e-5
        if not torch.allclose(tensor, other, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True
