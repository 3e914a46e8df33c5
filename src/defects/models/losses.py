"""What torch and torchvision lack: structural similarity, and the focal loss of two-channel maps."""

import torch
from torchvision.ops import sigmoid_focal_loss

from defects.messages import UserError
from defects.models.statistics import average_gaussian, gaussian_kernel

C1 = 0.01**2  # Wang et al. 2004, K1, for values from 0 to 1
C2 = 0.03**2  # and K2


def ssim(a: torch.Tensor, b: torch.Tensor, window: int = 11, sigma: float = 1.5) -> torch.Tensor:
    """Structural similarity of every pixel's neighbourhood, [B, C, H, W] in -1 to 1; 1: identical.

    Wang et al. 2004, equation 13, on `a` and `b` [B, C, H, W] in [0, 1], channel by channel, with a Gaussian
    window of `window` pixels and standard deviation `sigma`, weights summing to one. The paper leaves out
    the border; here the images are mirrored there, so that the map covers all of them (DRAEM's code pads
    with zeros, which look alike in both images and flatter the border). Computed in float32 whatever the
    precision of the run. Raises UserError for a window that is even or does not fit the images.
    """
    check_window(window, a.shape[2:])
    with torch.autocast(a.device.type, enabled=False):
        total = a.float() + b.float()
        difference = a.float() - b.float()
        # Variances are small differences of large squares, and keep their digits only near zero.
        shift = total.mean((2, 3), keepdim=True)
        values = torch.cat([total - shift, difference], 1)
        kernel = gaussian_kernel(sigma, window // 2, values.device)
        averages = average_gaussian(torch.cat([values, values**2], 1), kernel, "reflect")
        means, squares = averages.chunk(2, 1)
    # Equation 13 in terms of sum and difference: 2ab = (s^2 - d^2) / 2, a^2 + b^2 = (s^2 + d^2) / 2.
    mean_s, mean_d = means.chunk(2, 1)
    variance_s, variance_d = (squares - means**2).chunk(2, 1)
    luminance = 1 - mean_d**2 / (0.5 * ((mean_s + shift) ** 2 + mean_d**2) + C1)
    return luminance * (1 - variance_d / (0.5 * (variance_s + variance_d) + C2))


def focal(logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss (Lin et al. 2017) without alpha of the softmax over two channels; [B, 1, H, W], no mean.

    `logits` [B, 2, H, W]: normal, then defective; `target` [B, 1, H, W], 1: defective. A softmax over two
    channels is the sigmoid of their difference, so torchvision's loss does the rest, from logits and in
    float32: finite everywhere. DRAEM's code gets there by adding 1e-5 to the probability, which changes the
    loss by as little, but takes the gradient from pixels that are confidently wrong. For a single logit
    call torchvision.ops.sigmoid_focal_loss(..., alpha=-1).
    """
    difference = logits[:, 1:].float() - logits[:, :1].float()
    return sigmoid_focal_loss(difference, target.float(), alpha=-1, gamma=gamma)


def check_window(window: int, size: tuple[int, int]) -> None:
    """UserError unless `window` is odd and fits images of `size` (height, width)."""
    if window % 2 == 0:
        raise UserError(f"the SSIM window of {window} pixels in model.options has no centre: make it odd")
    if window > min(size):
        raise UserError(
            f"the SSIM window of {window} pixels in model.options does not fit images of "
            f"{' x '.join(map(str, size))}: lower it, or enlarge data.image_size"
        )
