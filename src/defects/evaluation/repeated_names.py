"""Whether file names say that several images show one part, as `part012_1.png` and `part012_2.png` do."""

import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath

import numpy as np

MOST_PHOTOGRAPHS = 12  # of one part; longer counts number the images of a series
LEAST_SHARE = 0.5  # of the images whose names repeat
# What is added to the name of a part: a count, perhaps in brackets, one letter after a digit, or a word for a
# copy or a view, perhaps with a number (degrees, a count).
VIEWS = (
    "copy|copie|kopie|copia|복사본|rot|rotated|[hv]?flip|flipped|mirrored|aug|augmented|"
    "left|right|top|bottom|front|back"
)
VIEW = re.compile(rf"[\s_.-]+(?:{VIEWS})[\s_.-]*\(?\d*\)?$", re.IGNORECASE)
VERSION = re.compile(r"\.rf\.[0-9a-f]{16,}$", re.IGNORECASE)  # of an image in an export of Roboflow
LETTER = re.compile(r"(?<=\d)[\s_.-]*[a-z]$", re.IGNORECASE)
COUNT = re.compile(r"[\s_.-]*\(?(?<!\d)(\d+)\)?$")


def find_repeated_names(image_ids: list[str], groups: np.ndarray) -> list[str]:
    """Names of one part's images, if at least LEAST_SHARE of the images repeat so and none share a group.

    Ordinary numbering is no repetition: the file's name without what is added has to hold a number, that of
    the part, and there are a few images of it, counted from 0 or 1. Empty where names say nothing, or where
    images whose names repeat share a group, so that groups are known.
    """
    repeated = [members for members in list_families(image_ids) if len(members) > 1]
    count = sum(len(members) for members in repeated)
    if not repeated or count < LEAST_SHARE * len(image_ids):
        return []
    sizes = Counter(groups.tolist())
    is_alone = all(sizes[groups[position]] == 1 for members in repeated for position in members)
    return [image_ids[position] for position in repeated[0]] if is_alone else []


def list_families(image_ids: list[str]) -> list[list[int]]:
    """Positions of the images of each part that names tell apart, also of parts with a single image."""
    stems = [str(PurePosixPath(image_id).with_suffix("")) for image_id in image_ids]
    by_view = defaultdict(list)
    by_count = defaultdict(dict)  # the count of each position
    for position, stem in enumerate(stems):
        part, count = split_name(stem)
        if re.search(r"\d", part.rpartition("/")[2]):
            if count is None:
                by_view[part].append(position)
            else:
                by_count[part][position] = count
    for part, counts in by_count.items():
        is_count = min(counts.values()) <= 1 and max(counts.values()) <= 2 * len(counts)
        if is_count and len(counts) <= MOST_PHOTOGRAPHS:
            by_view[part] += counts
    for position, stem in enumerate(stems):  # the image itself beside its copies
        if stem in by_view and position not in by_view[stem]:
            by_view[stem].append(position)
    return [sorted(members) for members in by_view.values()]


def split_name(stem: str) -> tuple[str, int | None]:
    """A path without extension as the name of the part, and the count behind it; None for other additions."""
    view = VERSION.search(stem) or VIEW.search(stem) or LETTER.search(stem)
    if view:
        return stem[: view.start()], None
    count = COUNT.search(stem)
    return (stem[: count.start()], int(count.group(1))) if count else (stem, None)
