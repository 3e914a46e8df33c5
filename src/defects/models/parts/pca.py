"""Principal components of more vectors than fit into memory."""

import torch

from defects.precision import as_double, double_device

ROWS = 4096  # converted to float64 at a time


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
        for block in vectors.split(ROWS):
            block = as_double(block)
            mean, total = block.mean(0), self.count + len(block)
            centred, step = block - mean, mean - self.mean
            self.scatter.addmm_(centred.T, centred)
            self.scatter.addr_(step, step, alpha=self.count * len(block) / total)
            self.mean += step * (len(block) / total)
            self.count = total

    @property
    def covariance(self) -> torch.Tensor:
        return self.scatter / max(self.count - 1, 1)


def explained_components(covariance: torch.Tensor, share: float) -> int:
    """How many principal components explain at least `share` of the variance; at least one."""
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).cumsum(0)
    return int(torch.searchsorted(variances, share * variances[-1:])) + 1
