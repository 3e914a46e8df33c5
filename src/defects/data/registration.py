"""How well two pictures agree once one is warped on the other: a start, its refinement, a measure.

A start is a flip or quarter turn with a shift, or any rotation. OpenCV's findTransformECC refines it to an
affine map (Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient
maximization", 2008), which follows crops and small turns as well.
"""

from functools import lru_cache

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from defects.data.bounded_memory import in_threads

# How the second picture of a pair must be flipped to lie on the first: transposed or not, then mirrored
# along these axes of [N, S, S]. Half a turn more makes code ^ 3 of a code and leaves the power spectrum as
# it is. (The two quarter turns, 5 and 6, are also each other's inverse.)
MIRRORS = {"none": (), "horizontal": (2,), "vertical": (1,), "both": (1, 2)}
FLIPS = [*MIRRORS, *(f"transposed+{name}" for name in MIRRORS)]

# The band of texture compared, as Gaussian widths in parts of the thumbnail's side: its fine end makes
# shifts below a pixel harmless, its coarse end removes lighting.
FINE = 1 / 80
COARSE = 1 / 24
RINGS = np.arange(3, 12)  # cycles per side, of the power spectrum that rotations are read from
DIRECTION_COUNT = 180  # directions of half a turn; the other half of a real picture's spectrum is the same
PEAKS = 3  # rotations tried
PEAK_WIDTH = 6  # directions that they lie apart, at least
REFINEMENT_STEPS = 15  # of the refinement
MARGIN_SHARE = 0.05  # of the side, at each edge: not compared, since filters reach beyond the picture there
LEAST_OVERLAP = 0.3  # of the picture; with less in common there is nothing to compare
GRID_CELLS = 4  # the picture is compared as a whole, and in GRID_CELLS x GRID_CELLS parts
FLAT_ENERGY = 0.005  # mean square of a part's texture that counts as nothing to be seen
LARGEST_CORRELATION = 0.99999  # so that its Fisher transform is finite
FREQUENCIES = 11  # cycles per side that count of the power spectrum, in each direction
COARSE_NOISE = 1.0  # grey levels that count as flat, in details
NOISE = 2.0  # and in textures
ALIKE = 0.7  # agreement (correlation 0.6) from which on a refinement did not run away
SPECTRAL_CODES = [0, 1, 4, 5]  # half a turn leaves a power spectrum as it is: four of the eight suffice
LEAST_COARSE = 0.25  # correlation at the best shift; with less a pair is not registered
COARSE_MARGIN = 0.1  # other flips of a pair are registered too if they correlate within this of the best
PAIR_BLOCK = 1024  # pairs correlated at once: their transforms should stay near the processor
CACHED = 2048  # textures in memory, of 64 KB each


# --- what is compared of a picture ------------------------------------------------------------------------


def thumbnail(image: np.ndarray, size: int) -> np.ndarray:
    """RGB uint8 [H, W, 3] or grey uint8 [H, W] -> grey uint8 [size, size], whatever the aspect ratio."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)


def extract_texture(picture: np.ndarray, noise: float) -> np.ndarray:
    """Band-passed uint8 [S, S] at local contrast 1 (0 where flat): float32, its mean square below about 1.

    `noise` is the contrast in grey levels that counts as flat: sensor noise, compression.
    """
    side = len(picture)
    picture = picture.astype(np.float32)
    band = blur(picture, FINE * side) - blur(picture, COARSE * side)
    return band / np.sqrt(blur(band * band, COARSE * side) + noise**2)


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def extract_detail(picture: np.ndarray) -> np.ndarray:
    """The texture of uint8 [S, S] less what runs along rows or columns, fading towards the edges: float32."""
    side = len(picture)
    detail = extract_texture(picture, COARSE_NOISE)
    # Grinding marks, part edges and lamps give different objects of one line the same straight streaks.
    detail -= detail.mean(axis=0, keepdims=True)
    detail -= detail.mean(axis=1, keepdims=True)
    taper = np.minimum(1, 4 * np.hanning(side + 2)[1:-1]).astype(np.float32)  # no jump where shifts wrap
    return detail * np.outer(taper, taper)


def half_spectrum(detail: np.ndarray) -> np.ndarray:
    """Roots of low-frequency amplitudes of [S, S], less what is smooth (one material shares it): [H, F].

    Of unit length before the half-plane that a real picture's spectrum repeats is left out.
    """
    middle = len(detail) // 2
    low = slice(middle - FREQUENCIES, middle + FREQUENCIES + 1)
    amplitude = np.sqrt(np.abs(np.fft.fftshift(np.fft.fft2(detail)))[low, low]).astype(np.float32)
    return scale_to_unit(blur(amplitude, 0.5) - blur(amplitude, 2))[: FREQUENCIES + 1]


def scale_to_unit(array: np.ndarray) -> np.ndarray:
    return array / max(np.linalg.norm(array), np.finfo(np.float32).tiny)


# --- flips, shifts, rotations ------------------------------------------------------------------------------


def flip_pictures(pictures: torch.Tensor, code: int) -> torch.Tensor:
    """[N, S, S] flipped by a code, the position of its name in FLIPS."""
    transposed, mirror = divmod(code, len(MIRRORS))
    return (pictures.mT if transposed else pictures).flip(list(MIRRORS.values())[mirror])


def flip_image(image: np.ndarray, name: str) -> np.ndarray:
    """[H, W, ...] flipped by a name of FLIPS."""
    transposed, mirror = divmod(FLIPS.index(name), len(MIRRORS))
    image = image.swapaxes(0, 1) if transposed else image
    return np.flip(image, [axis - 1 for axis in list(MIRRORS.values())[mirror]])


def flip_matrix(code: int, side: int) -> np.ndarray:
    """float64 [3, 3]: from (x, y, 1) in a picture flipped by `code` to the same place before the flip."""
    transposed, mirror = divmod(code, len(MIRRORS))
    matrix = np.eye(3)
    if transposed:
        matrix = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    axes = list(MIRRORS.values())[mirror]
    mirror_x = np.array([[-1.0, 0, side - 1], [0, 1, 0], [0, 0, 1]])
    mirror_y = np.array([[1.0, 0, 0], [0, -1, side - 1], [0, 0, 1]])
    if 2 in axes:
        matrix = matrix @ mirror_x
    if 1 in axes:
        matrix = matrix @ mirror_y
    return matrix


def shift_matrix(dy: float, dx: float) -> np.ndarray:
    return np.array([[1.0, 0, dx], [0, 1, dy], [0, 0, 1]])


def correlate_at_shifts(spectrum: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """torch.fft.irfft2 of [B, S, S // 2 + 1] at these shifts alone, [B, R, R]; several times faster."""
    side, half = spectrum.shape[1:]
    phases = 2j * np.pi / side * shifts[:, None]
    rows = torch.exp(phases * torch.arange(side)).to(spectrum.dtype)
    columns = torch.exp(phases * torch.arange(half)).to(spectrum.dtype)
    columns[:, 1 : (side + 1) // 2] *= 2  # those of negative frequencies, which rfft2 leaves out
    return (rows @ spectrum @ columns.T).real / side**2


def find_best_shifts(products: torch.Tensor, shifts: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Highest circular cross-correlation and where: float32 [B], positions (row, column) in `shifts` [B, 2].

    `products` [B, S, S // 2 + 1] are conjugate transforms of the first pictures times those of the second.
    """
    correlations = correlate_at_shifts(products, shifts).flatten(1)
    best, place = correlations.max(1)
    return best.numpy(), np.stack(np.divmod(place.numpy(), len(shifts)), axis=1)


def compute_polar_spectrum(picture: np.ndarray, aspect: float) -> np.ndarray:
    """Transform, along the directions, of the amplitudes of float32 [S, S] on RINGS: complex [R, A // 2 + 1].

    A rotation of the picture moves it along; `aspect` is the width over the height that were made equal.
    """
    middle = len(picture) // 2
    amplitude = np.sqrt(np.abs(np.fft.fftshift(np.fft.fft2(picture)))).astype(np.float32)
    directions = np.arange(DIRECTION_COUNT) * np.pi / DIRECTION_COUNT
    columns = middle + RINGS[:, None] * np.cos(directions) * np.sqrt(aspect)
    rows = middle + RINGS[:, None] * np.sin(directions) / np.sqrt(aspect)
    rings = cv2.remap(amplitude, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)
    rings = (rings - rings.mean(axis=1, keepdims=True)) * np.sqrt(RINGS)[:, None]
    return np.fft.rfft(rings / max(np.linalg.norm(rings), np.finfo(np.float32).tiny))


def find_likely_rotations(still: np.ndarray, moved: np.ndarray) -> list[tuple[bool, float]]:
    """The PEAKS best ones by polar spectra: whether mirrored as well, and degrees between 0 and 180."""
    straight = np.fft.irfft((still.conj() * moved).sum(axis=0), DIRECTION_COUNT)
    mirrored = np.fft.irfft((still.conj() * moved.conj()).sum(axis=0), DIRECTION_COUNT)
    scores = np.stack([straight, mirrored])
    rotations = []
    for _ in range(PEAKS):
        is_mirrored, direction = np.unravel_index(scores.argmax(), scores.shape)
        degrees = (-direction if is_mirrored else direction) * 180 / DIRECTION_COUNT
        rotations.append((bool(is_mirrored), degrees))
        near = np.arange(direction - PEAK_WIDTH, direction + PEAK_WIDTH + 1) % DIRECTION_COUNT
        scores[is_mirrored, near] = -np.inf
    return rotations


def rotation_matrix(degrees: float, is_mirrored: bool, aspects: tuple[float, float], side: int) -> np.ndarray:
    """[3, 3]: from places in the first picture to places in the second, whose content lies at this angle."""
    cosine = np.cos(np.radians(degrees))
    sine = np.sin(np.radians(degrees))
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    if is_mirrored:
        rotation = rotation @ np.diag([1.0, -1.0])
    first, second = (np.diag([np.sqrt(aspect), 1 / np.sqrt(aspect)]) for aspect in aspects)
    matrix = np.eye(3)
    matrix[:2, :2] = np.linalg.inv(second) @ rotation @ first
    centre = np.array([(side - 1) / 2, (side - 1) / 2])
    matrix[:2, 2] = centre - matrix[:2, :2] @ centre
    return matrix


def find_start_at_any_angle(
    still: np.ndarray,
    moved: np.ndarray,
    rotations: list[tuple[bool, float]],
    aspects: tuple[float, float],
    max_shift: int,
) -> np.ndarray:
    """The best of these rotations, or of half a turn more, with a shift of up to `max_shift` pixels."""
    side = len(still)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    starts = []
    for is_mirrored, degrees in rotations:
        starts.append(rotation_matrix(degrees, is_mirrored, aspects, side))
        starts.append(rotation_matrix(degrees + 180, is_mirrored, aspects, side))
    warped = np.stack([cv2.warpAffine(moved, start[:2], (side, side), flags=flags) for start in starts])
    products = np.fft.rfft2(still).conj() * np.fft.rfft2(warped)
    shifts = torch.arange(-max_shift, max_shift + 1)
    correlations, places = find_best_shifts(torch.from_numpy(products.astype(np.complex64)), shifts)
    best = correlations.argmax()
    dy, dx = places[best] - max_shift
    return starts[best] @ shift_matrix(dy, dx)


def refine(still: np.ndarray, moved: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The affine map [3, 3] near `start` from places in `still` to places in `moved`, both float32 [S, S]."""
    steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, REFINEMENT_STEPS, 1e-4)
    begin = start[:2].astype(np.float32)
    try:
        _, refined = cv2.findTransformECC(still, moved, begin, cv2.MOTION_AFFINE, steps, None, 1)
    except cv2.error:  # it runs away where the pictures have nothing in common
        return start
    return np.vstack([refined, [0, 0, 1]]).astype(np.float64)


def rescale_matrix(matrix: np.ndarray, factor: float) -> np.ndarray:
    """The same map between pictures `factor` times as large; pixel centres lie at half integers."""
    offset = (factor - 1) / 2
    larger = matrix.copy()
    larger[:2, 2] = factor * matrix[:2, 2] + offset - offset * matrix[:2, :2].sum(axis=1)
    return larger


def measure_agreement(still: np.ndarray, moved: np.ndarray, matrix: np.ndarray) -> float:
    """How well two textures float32 [S, S] agree where they overlap: the Fisher transform of a correlation.

    The larger of that of the picture, and the mean of those of its parts: a defect that only one of the
    photographs shows lowers the first, but of the parts only those that it lies in. 0 where too little
    overlaps.
    """
    side = len(still)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(moved, matrix[:2], (side, side), flags=flags)
    inside = _inner(side)
    weight = (cv2.warpAffine(inside, matrix[:2], (side, side), flags=flags) > 0.99) * inside
    if weight.mean() < LEAST_OVERLAP:
        return 0.0
    x = still * weight
    y = warped * weight
    layers = cv2.merge([weight, x, y, x * still, y * warped, x * warped])
    sums = cv2.resize(layers, (GRID_CELLS, GRID_CELLS), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    of_picture = np.arctanh(_correlation(sums.mean(axis=(1, 2)), 0.0))
    of_parts = np.arctanh(_correlation(sums, FLAT_ENERGY))
    return float(max(of_picture, np.average(of_parts, weights=sums[0])))


@lru_cache(maxsize=4)
def _inner(side: int) -> np.ndarray:
    """float32 [S, S]: 1 inside the margin."""
    inner = np.zeros((side, side), np.float32)
    margin = round(MARGIN_SHARE * side)
    inner[margin : side - margin, margin : side - margin] = 1
    return inner


def _correlation(sums: np.ndarray, flat: float) -> np.ndarray:
    """Of weighted sums of 1, x, y, xx, yy, xy [6, ...]; `flat` is added to both variances."""
    count = np.maximum(sums[0], 1e-6)
    x, y, xx, yy, xy = sums[1:] / count
    variances = (np.maximum(xx - x * x, 0) + flat) * (np.maximum(yy - y * y, 0) + flat)
    correlation = (xy - x * y) / np.sqrt(np.maximum(variances, 1e-12))
    return np.clip(correlation, -LARGEST_CORRELATION, LARGEST_CORRELATION)


# --- many pairs ------------------------------------------------------------------------------------------


class PairComparison:
    """The pictures with texture, and how well pairs of them agree. Positions count these pictures alone."""

    def __init__(
        self,
        thumbnails: np.ndarray,
        details: torch.Tensor,
        usable: np.ndarray,
        aspects: np.ndarray,
        max_shift: int,
    ) -> None:
        """`details` [K, S, S] are of thumbnails[usable]; `max_shift` is in their pixels."""
        self.thumbnails = thumbnails
        self.details = details
        self.usable = usable
        self.aspects = aspects
        self.max_shift = max_shift
        self.enlargement = thumbnails.shape[1] / details.shape[1]
        self.texture = lru_cache(CACHED)(self._texture)
        self.polar_spectrum = lru_cache(CACHED)(self._polar_spectrum)

    def zoomed_spectra(self, zoom: tuple[float, float]) -> torch.Tensor:
        """Halves of the spectra [K, H, F] of the middle of each picture, magnified so much in y and x."""
        spectra = np.empty((len(self.usable), FREQUENCIES + 1, 2 * FREQUENCIES + 1), np.float32)
        height, width = (round(self.thumbnails.shape[1] / factor) for factor in zoom)
        top = (self.thumbnails.shape[1] - height) // 2
        left = (self.thumbnails.shape[1] - width) // 2
        for place, position in enumerate(self.usable):
            middle = self.thumbnails[position][top : top + height, left : left + width]
            spectra[place] = half_spectrum(extract_detail(thumbnail(middle, self.details.shape[1])))
        return torch.from_numpy(spectra)

    def measure(self, starts: pd.DataFrame) -> pd.DataFrame:
        """The best of the starts (i, j, code, dy, dx) of each pair: i, j, code, agreement."""
        columns = [starts[name].tolist() for name in ("i", "j", "code", "dy", "dx")]
        agreements = list(in_threads(self._agreement, *columns, text="comparing pairs"))
        table = starts[["i", "j", "code"]].assign(agreement=np.array(agreements, dtype=float))
        table = table.sort_values(["i", "j", "agreement"], ascending=[True, True, False], kind="stable")
        return table.drop_duplicates(["i", "j"], ignore_index=True)

    def measure_at_any_angle(self, pairs: np.ndarray) -> np.ndarray:
        """Agreements [P] of the pairs (i, j), int [P, 2]."""
        columns = (pairs[:, 0].tolist(), pairs[:, 1].tolist())
        return np.array(list(in_threads(self._agreement_at_any_angle, *columns, text="comparing objects")))

    def coarse_starts(self, proposed: np.ndarray, max_shift: int) -> pd.DataFrame:
        """Those of the pairs (i, j, code), int [P, 3], or half a turn on, that correlate when shifted.

        Columns i, j, code, dy, dx (pixels). A pair comes several times where several flips do equally well.
        """
        blocks = [np.empty((0, 6))]
        for start in tqdm(range(0, len(proposed), PAIR_BLOCK), "shifting pairs", leave=False, disable=None):
            block = proposed[start : start + PAIR_BLOCK]
            for code in np.unique(block[:, 2]):
                for shifted in self._shifted(block[block[:, 2] == code, :2], int(code), max_shift):
                    blocks.append(shifted[shifted[:, 5] >= LEAST_COARSE])
        table = pd.DataFrame(np.concatenate(blocks), columns=["i", "j", "code", "dy", "dx", "correlation"])
        best = table.groupby(["i", "j"])["correlation"].transform("max")
        table = table[table["correlation"] >= best - COARSE_MARGIN]
        integers = dict.fromkeys(["i", "j", "code", "dy", "dx"], int)
        return table.astype(integers).drop_duplicates(["i", "j", "code"], ignore_index=True)

    def measure_thoroughly(self, first: int, second: int) -> float:
        """The agreement of a pair under every flip and twice the usual shift."""
        proposed = np.array([[first, second, code] for code in SPECTRAL_CODES])
        starts = self.coarse_starts(proposed, 2 * self.max_shift)
        return self.measure(starts)["agreement"].max() if len(starts) else 0.0

    def _shifted(self, pairs: np.ndarray, code: int, max_shift: int) -> list[np.ndarray]:
        """i, j, code, dy, dx, correlation at the best shift, [P, 6]: of this code, and of half a turn more.

        By the convolution theorem, circular. Half a turn conjugates a transform and moves it by a pixel. What
        a shift moves out of the frame counts as different: 4 % both ways cost about 0.08.
        """
        several, again = np.unique(pairs[:, 0], return_inverse=True)
        still = torch.fft.rfft2(self.details[several].float())[again]
        moved = torch.fft.rfft2(flip_pictures(self.details[pairs[:, 1]].float(), code))
        shifts = torch.arange(-max_shift, max_shift + 1)
        tables = []
        for half_turn, products in enumerate([still.conj() * moved, (still * moved).conj()]):
            correlation, places = find_best_shifts(products, shifts + half_turn)
            codes = np.full(len(pairs), code ^ 3 * half_turn)
            tables.append(np.column_stack([pairs, codes, places - max_shift, correlation]))
        return tables

    def _agreement(self, first: int, second: int, code: int, dy: int, dx: int) -> float:
        start = flip_matrix(code, self.details.shape[1]) @ shift_matrix(dy, dx)
        return self._refined_agreement(first, second, start)

    def _agreement_at_any_angle(self, first: int, second: int) -> float:
        start = find_start_at_any_angle(
            self._detail(first),
            self._detail(second),
            find_likely_rotations(self.polar_spectrum(first), self.polar_spectrum(second)),
            (self.aspects[self.usable[first]], self.aspects[self.usable[second]]),
            self.max_shift,
        )
        return self._refined_agreement(first, second, start)

    def _refined_agreement(self, first: int, second: int, start: np.ndarray) -> float:
        """Of the refined start, or of the start itself where refinement ran away, as over a new defect."""
        refined = refine(self._detail(first), self._detail(second), start)
        agreement = self._agreement_under(first, second, refined)
        if agreement >= ALIKE:
            return agreement
        return max(agreement, self._agreement_under(first, second, start))

    def _agreement_under(self, first: int, second: int, matrix: np.ndarray) -> float:
        larger = rescale_matrix(matrix, self.enlargement)
        return measure_agreement(self.texture(first), self.texture(second), larger)

    def _detail(self, position: int) -> np.ndarray:
        return self.details[position].float().numpy()

    def _texture(self, position: int) -> np.ndarray:
        return extract_texture(self.thumbnails[self.usable[position]], NOISE)

    def _polar_spectrum(self, position: int) -> np.ndarray:
        return compute_polar_spectrum(self._detail(position), self.aspects[self.usable[position]])
