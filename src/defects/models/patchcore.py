"""PatchCore: distance to a memory bank of normal patches. Roth et al. 2022 (arXiv 2106.08265)."""

import os
from typing import Annotated

import psutil
import torch
from pydantic import Field
from torch.nn import functional
from tqdm import tqdm

from defects.config_schema import BackboneConfig, Count, Fraction, Positive, Share
from defects.messages import UserError
from defects.models.base import AnomalyDetector, Batches
from defects.models.coreset import Coreset, greedy_coreset
from defects.models.features import Features
from defects.models.inside import (
    average_inside,
    cells_inside,
    clear_outside,
    mean_of_largest,
    split_inside,
)
from defects.models.statistics import GaussianSmoothing, StreamingCovariance, Whitening
from defects.numerics import derive_seed
from defects.processes import add_up

CELL_PIXELS = 4  # of the image per pixel of the map
PATCHES_AT_ONCE = 512  # patches of the bank that are compared at a time
DENSITY_CANDIDATES = 8192  # with so many candidates
SPACING_NEIGHBOURS = 9  # of which a bank patch's spacing is the mean distance


class PatchCore(AnomalyDetector):
    """The distance of each patch to the nearest of a bank of normal ones; the largest is the score.

    A patch is the mean of 3x3 neighbours in each layer (section 3.1), all layers on the finest grid,
    bilinearly, side by side. The published code then averages channels down to 1,024; this one keeps all.
    Borders are padded with zeros, as there: averaging only what lies within the image raises more false
    alarms at borders. Distances are Euclidean as in the paper (equation 6), where its code leaves them
    squared, and the score is weighted by the neighbourhood (equation 7), which its code leaves out.
    `top_share` puts the mean of the largest distances in place of the largest, as AnomalyDINO does
    (Damm et al. 2025, arXiv 2405.14529). With `whiten` distances are those of whitened features. With
    `density` a distance is less that share of the bank patch's own spacing, its mean distance to the nearest
    of all candidates: where normal patches lie far apart, a distance means less. The map is interpolated
    bilinearly and smoothed on a quarter of the image's resolution.
    """

    shares_preparation = True
    int8 = True

    def __init__(
        self,
        backbone: BackboneConfig | None,
        image_size: tuple[int, int],
        expected_fpr: float,
        window: tuple[int, int] | None,
        seed: int,
        *,
        layers: list[str] | None = None,  # None: those of strides 8 and 16
        ratio: Share = 0.1,  # of the candidate patches that make the bank
        max_bank: Count | None = None,  # patches in the bank, whatever the ratio
        max_patches: Count = 250_000,  # candidates; beyond it a random part of each image
        # of the matched patch, which weight the score; 0: none
        neighbours: Annotated[int, Field(ge=0)] = 9,
        top_share: Fraction = 0.0,  # of the patches, averaged; 0: the largest alone
        projection: Count | None = 128,  # dimensions in which patches are chosen if they have more; None: all
        smoothing: Positive = 4.0,  # sigma of the map, in pixels of the image
        whiten: Share | None = None,  # shrinkage of the covariance; None: features as they are
        density: Fraction = 0.0,  # of a bank patch's spacing, taken off the distance to it
    ):
        super().__init__(expected_fpr, window)
        if density and neighbours:
            raise UserError(
                f"model.options.density={density:g} and neighbours={neighbours} both correct the score for "
                "crowded patches: set neighbours=0"
            )
        self.seed = seed
        self.ratio = ratio
        self.max_bank = max_bank
        self.max_patches = max_patches
        self.neighbours = neighbours
        self.top_share = top_share
        self.projection = projection
        self.features = Features(backbone, layers, image_size)
        self.cells = max(height * width for height, width in self.features.grids)
        self.smooth = GaussianSmoothing(smoothing / CELL_PIXELS)
        channels = sum(self.features.channels)
        self.whitening = None if whiten is None else Whitening(channels, whiten)
        self.density = density
        self.register_buffer("memory_bank", torch.empty(0, channels))
        self.register_buffer("bank_norms", torch.empty(0))
        if density:
            self.register_buffer("spacing", torch.empty(0))  # of each patch of the bank
        # Every candidate lies within it of the bank, in the space where the bank was chosen.
        self.register_buffer("radius", torch.zeros(()))

    def prepare(self, batches: Batches) -> None:
        if self.whitening is not None:
            self._fit_whitening(batches)
        pool = self._drop_empty(add_up(self.candidates(batches)))
        chosen = self._choose(pool, self._bank_size(len(pool)))
        bank = pool[chosen.indices]
        self._set_bank(bank, chosen.radius)
        if self.density:
            self.spacing = measure_spacing(bank, pool)

    def _fit_whitening(self, batches: Batches) -> None:
        """From the patches of all images, those of other processes included."""
        statistics = StreamingCovariance(self.memory_bank.shape[1], self.memory_bank.device)
        for batch in tqdm(batches, "whitening", leave=False, disable=None):
            colours, inside = split_inside(batch["image"])
            patches = self.features.patches(colours)
            cells = cells_inside(inside, patches.shape[2:])
            vectors = patches.permute(0, 2, 3, 1).flatten(0, 2)
            statistics.update(vectors if cells is None else vectors[cells.flatten()])
        self.whitening.fit(statistics.join_processes())

    def update(self, batches: Batches) -> int:
        """Add what is new in further normal images to the bank; the number of patches that entered.

        New is what lies beyond the radius within which the bank covered its own candidates. With
        `max_bank` exceeded the whole bank is thinned by the same choice, and covers a wider radius.
        """
        pool = self._drop_empty(self.candidates(batches))
        radius = float(self.radius)
        new = self._choose(pool, len(pool), self._project(self.memory_bank), radius)
        bank = torch.cat([self.memory_bank, pool[new.indices]])
        spacing = None
        if self.density:  # earlier candidates are gone: the bank stands for them
            vectors = torch.cat([self.memory_bank, pool])
            spacing = torch.cat([self.spacing, measure_spacing(pool[new.indices], vectors)])
        if self.max_bank and len(bank) > self.max_bank:
            thinned = self._choose(bank, self.max_bank)
            bank = bank[thinned.indices]
            radius = max(radius, thinned.radius)
            spacing = None if spacing is None else spacing[thinned.indices]
        self._set_bank(bank, radius)
        if spacing is not None:
            self.spacing = spacing
        return len(new.indices)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = self.patches(images)
        patches = grid.flatten(1, 2)
        distances = self._measure_distances(patches.flatten(0, 1)).view(images.shape[0], -1)
        inside = cells_inside(split_inside(images)[1], grid.shape[1:3])
        score = self._weight_score(patches, distances, None if inside is None else inside.flatten(1))
        maps = distances.view(-1, 1, *grid.shape[1:3])
        return score[:, None], self._make_map(maps, images.shape[2:], inside)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """[B, h, w, C], float32; whitened with `whiten`."""
        patches = self.features.patches(split_inside(images)[0])
        if self.whitening is not None:
            patches = self.whitening(patches)
        return patches.permute(0, 2, 3, 1)

    def _measure_distances(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, C] -> the distance [N] to the nearest in the bank, by |x|^2 + |c|^2 - 2xc.

        That leaves a copy of a bank patch a distance of rounding, some thousandths. Which one is the nearest
        is not asked for: finding that takes a runtime longer than the products do. With `density` the spacing
        of each is taken off before the smallest is.
        """
        if self.density:
            return self._correct_distances(patches)
        squared = None
        for start in range(0, len(self.memory_bank), PATCHES_AT_ONCE):
            nearest = self._compare(patches, slice(start, start + PATCHES_AT_ONCE)).amin(1)
            squared = nearest if squared is None else torch.minimum(squared, nearest)
        return (squared + patches.square().sum(1)).clamp(min=0).sqrt()

    def _correct_distances(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, C] -> the smallest [N] of distances to the bank, each less its patch's spacing; may be < 0."""
        return correct_distances(patches, self.memory_bank, self.density * self.spacing)

    def _compare(self, vectors: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        """Squared distances of [N, C] to part of the bank, less the vectors' own squares."""
        return torch.addmm(self.bank_norms[part], vectors, self.memory_bank[part].T, alpha=-2)

    def _weight_score(
        self, patches: torch.Tensor, distances: torch.Tensor, inside: torch.Tensor | None
    ) -> torch.Tensor:
        """Image scores [B]: the largest distances, less where the match lies in a crowd (equation 7).

        patches [B, P, C], distances [B, P]; with `inside` bool [B, P] of those patches alone.
        """
        top = max(1, round(self.top_share * distances.shape[1]))
        if self.density:
            return mean_of_largest(distances, top, inside, is_share=True)
        distances = clear_outside(distances, inside, -1.0)  # below all of them
        images = torch.arange(patches.shape[0], device=patches.device)
        patch = patches[images, distances.argmax(1)]
        match = self.memory_bank[self._compare(patch).argmin(1)]
        largest = (patch - match).square().sum(1).sqrt()  # from differences: to all its digits
        score = largest if top == 1 else mean_of_largest(distances, top, inside, is_share=True)
        count = min(self.neighbours, len(self.memory_bank))
        if count < 2:
            return score
        around = self.memory_bank[self._compare(match).topk(count, largest=False).indices]
        away = (patch[:, None] - around).square().sum(2).sqrt()
        return (1 - (largest - away.logsumexp(1)).exp()) * score

    def _make_map(
        self, distances: torch.Tensor, size: torch.Size, inside: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, 1, h, w] on the grid of patches -> [B, 1, H / 4, W / 4], of the patches inside alone."""
        grid = [max(1, round(side / CELL_PIXELS)) for side in size]
        return average_inside(distances, inside, lambda maps: self.smooth(_resize(maps, grid)))

    def candidates(self, batches: Batches) -> torch.Tensor:
        """Candidate patches [N, C] of all images, or a random part of each.

        0 for images not in `batches`, and in place of patches outside the region of interest.
        """
        count = min(self.cells, max(1, self.max_patches // batches.images))  # patches of an image
        pool = self._allocate(count * batches.images)
        chosen = self._draw_patches(count, batches.images)
        for batch in tqdm(batches, "patches", leave=False, disable=None):
            grid = self.patches(batch["image"])
            inside = cells_inside(split_inside(batch["image"])[1], grid.shape[1:3])
            for place, row in enumerate(batch["row"].tolist()):
                patches = grid[place].flatten(0, 1)
                if inside is None:
                    drawn = patches[chosen[row]]
                else:
                    drawn = self._draw_inside(patches[inside[place].flatten()], count, row)
                pool[row * count : row * count + len(drawn)] = drawn
        return pool

    def _draw_inside(self, patches: torch.Tensor, count: int, row: int) -> torch.Tensor:
        """Up to `count` random ones of the patches [P, C] that image number `row` has inside."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, row))
        return patches[torch.randperm(len(patches), generator=generator)[:count].to(patches.device)]

    @staticmethod
    def _drop_empty(pool: torch.Tensor) -> torch.Tensor:
        """Without the rows of zeros, which stand for no patch."""
        is_patch = pool.any(1)
        return pool if is_patch.all() else pool[is_patch]

    def _draw_patches(self, count: int, images: int) -> list[torch.Tensor | slice]:
        """Positions of `count` candidates in each image; the same however many processes share the images."""
        if count == self.cells:
            return [slice(None)] * images
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randperm(self.cells, generator=generator)[:count] for _ in range(images)]

    def _allocate(self, count: int) -> torch.Tensor:
        """Memory for `count` patches. UserError if these, and what choosing among them takes, do not fit."""
        width = self.memory_bank.shape[1]
        device = self.memory_bank.device
        projected = self.projection or width
        extra = projected if projected < width else 0
        values = count * (width + extra + 8) + 2 * (self._bank_size(count) + len(self.memory_bank)) * width
        needed = 4 * values / 2**30
        free = _free_memory(device) / 2**30
        if needed > free:
            raise UserError(
                f"patchcore needs {needed:.1f} GiB for {count:,} patches of {width} values, and {free:.1f} "
                f"are free: lower model.options.max_patches={self.max_patches}, model.options.ratio "
                "or model.options.max_bank"
            )
        return torch.zeros(count, width, device=device)

    def _bank_size(self, candidates: int) -> int:
        size = max(1, int(self.ratio * candidates))
        return min(size, self.max_bank or size)

    def _choose(self, vectors: torch.Tensor, count: int, *earlier) -> Coreset:
        return greedy_coreset(self._project(vectors), count, *earlier)

    def _project(self, vectors: torch.Tensor) -> torch.Tensor:
        """As they are, or randomly projected if that makes them narrower; lengths are kept on average."""
        width = vectors.shape[1]
        narrow = self.projection
        if narrow is None or narrow >= width:
            return vectors
        matrix = torch.randn(width, narrow, generator=torch.Generator().manual_seed(self.seed))
        return vectors @ (matrix / narrow**0.5).to(vectors.device)

    def _set_bank(self, bank: torch.Tensor, radius: float) -> None:
        self.memory_bank = bank
        self.bank_norms = bank.square().sum(1)
        self.radius.fill_(radius)


def correct_distances(
    vectors: torch.Tensor,
    bank: torch.Tensor,
    reductions: torch.Tensor,
    floor: float = 0.0,
) -> torch.Tensor:
    """The smallest [N] of distances of `vectors` [N, C] to `bank` [M, C] less `reductions` [M]; may be < 0.

    A reduction of minus infinity leaves its vector out. Distances below `floor` are as large: next to 0 they
    are rounding alone.
    """
    norms = vectors.square().sum(1, keepdim=True)
    smallest = None
    for start in range(0, len(bank), PATCHES_AT_ONCE):
        part = slice(start, start + PATCHES_AT_ONCE)
        squared = torch.addmm(bank[part].square().sum(1), vectors, bank[part].T, alpha=-2) + norms
        distances = squared.clamp(min=floor**2).sqrt() - reductions[part]
        nearest = distances.amin(1)
        smallest = nearest if smallest is None else torch.minimum(smallest, nearest)
    return smallest


def measure_spacing(bank: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Mean distances [M] of `bank` [M, C] to their SPACING_NEIGHBOURS nearest others of `candidates` [N, C].

    The bank is part of the candidates: each one's smallest distance, to itself, does not count. 0 where there
    are no others.
    """
    count = min(SPACING_NEIGHBOURS + 1, len(candidates))
    if count < 2:
        return bank.new_zeros(len(bank))
    origin = candidates.mean(0)  # digits are lost far from the origin
    parts = []
    for vectors in (bank - origin).split(PATCHES_AT_ONCE):
        nearest = vectors.new_empty(len(vectors), 0)
        for block in candidates.split(DENSITY_CANDIDATES):
            distances = torch.cdist(vectors, block - origin)
            nearest = torch.cat([nearest, distances], 1)
            nearest = nearest.topk(min(count, nearest.shape[1]), largest=False).values
        parts.append(nearest.sort(1).values[:, 1:].mean(1))
    return torch.cat(parts)


def _resize(maps: torch.Tensor, size: list[int]) -> torch.Tensor:
    return functional.interpolate(maps, size, mode="bilinear")


def _free_memory(device: torch.device) -> int:
    """Bytes for one process: on a CPU the processes of this machine share what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


DETECTOR = PatchCore
