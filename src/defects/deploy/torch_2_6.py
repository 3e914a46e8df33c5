"""Operations that torch 2.6 writes to ONNX in a form that nothing loads, as others that it writes well."""

import torch


def _normalize_batch(
    images: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch normalisation, of which the exporter takes ONNX's operator to have three results."""
    factor = torch.rsqrt(variance + epsilon)
    if weight is not None:
        factor = factor * weight
    shift = -mean * factor
    if bias is not None:
        shift = shift + bias
    shape = [-1] + [1] * (images.ndim - 2)
    return images * factor.reshape(shape) + shift.reshape(shape), mean, variance


def _average_pool(images: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The mean of an image, which becomes a loop over sequences if its channels come last."""
    if list(size) != [1, 1]:
        return NotImplemented  # it stays as it is
    return images.mean((2, 3), keepdim=True)


# What stands for an operation, for torch.export.ExportedProgram.run_decompositions.
TORCH_2_6 = {
    torch.ops.aten._native_batch_norm_legit_no_training.default: _normalize_batch,
    torch.ops.aten.adaptive_avg_pool2d.default: _average_pool,
}
