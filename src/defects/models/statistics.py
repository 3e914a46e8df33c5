"""Statistics of features and maps: moments, principal components, quantiles and Gaussian averages."""

import torch
from torch import nn
from torch.nn import functional

from defects.messages import UserError
from defects.numerics import as_double, double_device
from defects.processes import add_up

FLOAT64_VECTORS = 4096  # vectors converted to float64 at a time


class StreamingCovariance:
    """Mean [C] and covariance [C, C] of vectors that pass by once, in float64 (see precision); memory C * C.

    Blocks are centred on their own mean and merged by the pairwise formulas of Chan, Golub and LeVeque
    (1979), so that a mean far from zero costs no digits, as it does where squares are summed.
    """

    def __init__(self, channels: int, device: torch.device):
        self.count = 0
        device = double_device(device)
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def update(self, vectors: torch.Tensor) -> None:
        """Take in `vectors` [N, C]."""
        if not len(vectors):
            return
        for block in vectors.split(FLOAT64_VECTORS):
            block = as_double(block)
            mean = block.mean(0)
            centred = block - mean
            step = mean - self.mean
            total = self.count + len(block)
            self.scatter.addmm_(centred.T, centred)
            self.scatter.addr_(step, step, alpha=self.count * len(block) / total)
            self.mean += step * (len(block) / total)
            self.count = total

    def join_processes(self) -> "StreamingCovariance":
        """The statistics of the vectors of all processes together."""
        joined = StreamingCovariance(len(self.mean), self.mean.device)
        count = add_up(self.mean.new_tensor([self.count]))
        joined.count = int(count)
        joined.mean = add_up(self.mean * self.count) / count
        step = self.mean - joined.mean
        joined.scatter = add_up(self.scatter + self.count * torch.outer(step, step))
        return joined

    @property
    def covariance(self) -> torch.Tensor:
        return self.scatter / max(self.count - 1, 1)


class Whitening(nn.Module):
    """Features [B, C, h, w] -> the same without correlations, of variance one: a linear layer.

    `shrinkage` moves the covariance towards a multiple of the identity (as Ledoit and Wolf 2004 do), so that
    directions in which normal images hardly differ are not blown up. Symmetric: channels keep their places.
    """

    def __init__(self, channels: int, shrinkage: float):
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("weight", torch.eye(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def fit(self, statistics: StreamingCovariance) -> None:
        """Raises UserError where the features do not vary, and so cannot be scaled."""
        covariance = statistics.covariance.cpu()
        channels = len(covariance)
        variance = float(covariance.trace()) / channels
        if not variance > 0:
            raise UserError(
                f"all {statistics.count} normal patches have the same features, such as those of one "
                "uniform image: add normal images that differ"
            )
        shrunk = (1 - self.shrinkage) * covariance
        shrunk.diagonal().add_(self.shrinkage * variance)
        variances, directions = torch.linalg.eigh(shrunk)
        weight = (directions / variances.sqrt()) @ directions.T
        self.weight.copy_(weight)
        self.bias.copy_(-weight @ statistics.mean.cpu())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # A matrix product, not a convolution: exports in 8 bits leave those as they are.
        whitened = self.weight @ features.flatten(2) + self.bias[:, None]
        return whitened.unflatten(2, features.shape[2:])


def explained_components(covariance: torch.Tensor, share: float) -> int:
    """How many principal components explain at least `share` of the variance; at least one."""
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).cumsum(0)
    return int(torch.searchsorted(variances, share * variances[-1:])) + 1


class ChannelMoments:
    """Mean and standard deviation of each channel over any number of maps [B, C, h, w], in one pass.

    Sums of float32 values in float64 keep more digits than the result has. Memory for one map in float64.
    """

    def __init__(self, channels: int):
        self.sums = torch.zeros(2, channels, dtype=torch.float64)  # of the values, of their squares
        self.count = 0

    def add(self, maps: torch.Tensor, inside: torch.Tensor | None = None) -> None:
        """Take in maps, or their cells `inside`, bool [B, 1, h, w]."""
        for place, values in enumerate(maps.flatten(2)):
            values = as_double(values if inside is None else values[:, inside[place].flatten()])
            self.sums += torch.stack([values.sum(1), values.square().sum(1)]).cpu()
            self.count += values.shape[1]

    @property
    def mean(self) -> torch.Tensor:
        """float64 [C]"""
        return self.sums[0] / self.count

    @property
    def std(self) -> torch.Tensor:
        """float64 [C], of the whole population; may be 0."""
        return (self.sums[1] / self.count - self.mean**2).clamp(min=0).sqrt()

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation, float32 [1, C, 1, 1]; no deviation is zero."""
        std = self.std.clamp(min=1e-6)
        return self.mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def raise_small_deviations(std: torch.Tensor) -> torch.Tensor:
    """Deviations [C] to divide channels by, none below a hundredth of their mean.

    A channel that is next to constant on normal images would otherwise outweigh all others on the first image
    that it responds to.
    """
    return std.clamp(min=0.01 * std.mean().item() + 1e-12)


def exact_quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The smallest of `values` [N] that at least a share q of them does not exceed.

    torch.quantile refuses more than 2^24 values, and interpolates.
    """
    rank = min(max(1, -int(-q * len(values) // 1)), len(values))
    return values.kthvalue(rank).values


def gaussian_kernel(sigma: float, radius: int, device: torch.device | None = None) -> torch.Tensor:
    """Weights float32 [2 radius + 1] of a Gaussian of deviation `sigma`, which sum to one."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    return kernel / kernel.sum()


def average_gaussian(maps: torch.Tensor, kernel: torch.Tensor, border: str) -> torch.Tensor:
    """Averages of maps [B, C, h, w] with the weights of `kernel` along rows, then along columns.

    Beyond the border maps are continued as torch's padding mode `border` says.
    """
    channels = maps.shape[1]
    radius = len(kernel) // 2
    rows = kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    columns = kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    maps = functional.pad(maps, (radius, radius, 0, 0), mode=border)
    maps = functional.conv2d(maps, rows, groups=channels)
    maps = functional.pad(maps, (0, 0, radius, radius), mode=border)
    return functional.conv2d(maps, columns, groups=channels)


class GaussianSmoothing(nn.Module):
    """Smooths maps [B, C, h, w] with repeated borders; `sigma` in pixels of the map."""

    def __init__(self, sigma: float):
        super().__init__()
        self.register_buffer("kernel", gaussian_kernel(sigma, max(1, round(4 * sigma))), persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return average_gaussian(maps, self.kernel, "replicate")
