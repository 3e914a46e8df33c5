"""Masks that lie among the images themselves: exp1.png beside exp1.jpg, a_mask.png beside a.png."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from defects.data.images import are_pixels_of_mask, check_content, decode_colours, read_content
from defects.data.many import in_threads
from defects.data.mask_names import (
    NUMBER_END,
    is_image_folder,
    is_mask_folder,
    is_mask_word,
    mask_keys,
    strip_mask_word,
)
from defects.files import same_text
from defects.messages import UserError

CERTAIN_WORDS = ("mask", "masks", "gt")  # at the end of a name they mean nothing else


@dataclass
class MasksBeside:
    """Files of one role, told apart: `images` in their order, masks of some of them, masks of none."""

    images: list[Path]
    masks: dict[Path, list[Path]] = field(default_factory=dict)
    orphans: list[Path] = field(default_factory=list)


class Look(NamedTuple):
    is_mask: bool  # by its pixels
    size: tuple[int, int]  # height, width


class Name(NamedTuple):
    """A file by its name: the folder and the stem that its image would have, and whether it has more."""

    image_folder: Path
    image_stem: str
    is_mask: bool


def split_off_masks(files: Sequence[Path], setting: str, are_masks_here: bool = False) -> MasksBeside:
    """Tell images and masks apart, by name first, then by what is in those files that may be either.

    Two pictures may have one stem (a.jpg, a.png) if neither looks like a mask. `setting` names the folder in
    messages; `are_masks_here`: the user said that masks lie in it. Raises UserError where it cannot be told.
    """
    if not _may_hold_masks(files):
        return MasksBeside(list(files))
    names = _names(files)
    groups = defaultdict(list)
    for path in files:
        groups[names[path].image_folder, names[path].image_stem.casefold()].append(path)
    unclear = [path for group in groups.values() if len(group) > 1 for path in group]
    masks_by_name = [path for path in unclear if names[path].is_mask]
    with_masks = {path.parent for path in masks_by_name}
    of_masks = {path.parent for path in masks_by_name if path.parent != names[path].image_folder}
    lone = [
        path
        for path in files
        if (path.parent in of_masks or (path.parent in with_masks and _has_mask_word(path)))
        and _is_alone(names[path], groups)
    ]
    files_to_see = unclear + lone
    seen = in_threads(_look_if_whole, files_to_see, text="telling masks from images")
    looks = dict(zip(files_to_see, seen, strict=True))
    result = MasksBeside([])
    result.orphans = [path for path in lone if looks[path] is not None and looks[path].is_mask]
    masks = set(result.orphans)
    for group in groups.values():
        if len(group) > 1:
            image, of_image = _decide(group, names, looks, setting, are_masks_here)
            if of_image:
                result.masks[image] = of_image
                masks.update(of_image)
    result.images = [path for path in files if path not in masks]
    return result


def _may_hold_masks(files: Sequence[Path]) -> bool:
    """Whether two files of a folder share a stem, or a file or folder is named like a mask: a quick look."""
    if any(_mask_folders(folder) for folder in {path.parent for path in files}):
        return True
    seen = set()
    for path in files:
        folder, stem = path.parent, same_text(path.stem).casefold()
        if (folder, stem) in seen or is_mask_word(stem) or strip_mask_word(stem) != stem:
            return True
        if "." in stem:
            return True
        seen.add((folder, stem))
    return False


class _Contents:
    """What the files of one folder are called, in lower case."""

    def __init__(self):
        self.stems: set[str] = set()
        self.names: set[str] = set()
        self.plain_stems: set[str] = set()  # less `mask`, `GT` and the like
        self.unnumbered: set[str] = set()  # what remains of the stems that end in a number


def _names(files: Sequence[Path]) -> dict[Path, Name]:
    """What the names say: a file is named like a mask only where its image exists."""
    contents = defaultdict(_Contents)
    for path in files:
        stem = same_text(path.stem).casefold()
        names_here = contents[path.parent]
        names_here.stems.add(stem)
        names_here.names.add(same_text(path.name).casefold())
        if not is_mask_word(stem):
            names_here.plain_stems.add(stem)
        unnumbered = NUMBER_END.sub("", stem)
        if unnumbered != stem:
            names_here.unnumbered.add(unnumbered)
    beside = _image_folders_by_parent(contents)
    image_folders = {folder: _image_folders(folder, beside) for folder in contents}
    return {path: _name_of(path, contents, image_folders[path.parent]) for path in files}


def _name_of(path: Path, contents: dict[Path, _Contents], image_folders: list[tuple[Path, Path]]) -> Name:
    """`image_folders`: as _image_folders gives them for the folder of this file."""
    folder, stem = path.parent, same_text(path.stem)
    names_here = contents[folder]
    if (
        is_mask_word(stem) and len(names_here.plain_stems) == 1
    ):  # img.png and label.png in a folder of their own
        return Name(folder, next(iter(names_here.plain_stems)), is_mask=True)
    base = strip_mask_word(stem)
    if base.casefold() in names_here.names:  # a.jpg.png or a.jpg_mask.png of a.jpg
        return Name(folder, Path(base).stem, is_mask=True)
    if base != stem and base.casefold() in names_here.stems:
        return Name(folder, base, is_mask=True)
    for mask_folder, image_folder in image_folders:
        for key in mask_keys(path.relative_to(mask_folder).as_posix()):
            image = image_folder / key.text
            there = contents.get(image.parent)
            name = image.name.casefold()
            if there is None or (key.is_numbered and name in there.unnumbered):
                continue  # name_3 may belong to an image name_3 that is missing
            if name in there.stems:
                return Name(image.parent, image.name, is_mask=True)
            if name in there.names:
                return Name(image.parent, image.stem, is_mask=True)
    return Name(folder, stem, is_mask=False)


def _image_folders_by_parent(folders: Iterable[Path]) -> dict[Path, list[Path]]:
    """Folders called `images` and the like that are, or hold, one of `folders`; by the folder they lie in."""
    above = {path for folder in folders for path in (folder, *folder.parents)}
    by_parent = defaultdict(list)
    for path in sorted(above):
        if is_image_folder(path.name):
            by_parent[path.parent].append(path)
    return by_parent


def _image_folders(folder: Path, by_parent: dict[Path, list[Path]]) -> list[tuple[Path, Path]]:
    """Pairs of a folder of masks that `folder` is or lies in, and one where its images may lie.

    They lie above `masks`, or in a folder `images` beside it, in the same sub-folders.
    """
    pairs = []
    for mask_folder in _mask_folders(folder):
        above = mask_folder.parent
        pairs += [(mask_folder, path) for path in (above, *by_parent.get(above, []))]
    return pairs


def _mask_folders(folder: Path) -> list[Path]:
    """`folder` and those above it that are called like folders of masks."""
    return [path for path in (folder, *folder.parents) if is_mask_folder(path.name)]


def _has_mask_word(path: Path) -> bool:
    return strip_mask_word(path.stem) != path.stem


def _is_alone(name: Name, groups: dict) -> bool:
    """Whether the image of a file that is named like a mask is missing."""
    return len(groups[name.image_folder, name.image_stem.casefold()]) == 1


def _decide(
    group: list[Path],
    names: dict[Path, Name],
    looks: dict[Path, Look | None],
    setting: str,
    are_masks_here: bool,
) -> tuple[Path, list[Path]]:
    """The image of a group of files and its masks; no masks if all of them are pictures."""
    if any(looks[path] is None for path in group):
        return group[0], []  # a broken file, which is named when all files are examined
    plain = [path for path in group if not names[path].is_mask]
    named = [path for path in group if names[path].is_mask]
    pictures = [path for path in plain if not looks[path].is_mask]
    masks = [path for path in plain if looks[path].is_mask]
    if not plain or (len(plain) > 1 and not pictures):
        raise _cannot_tell(group, "all of them look like masks", setting)
    if len(plain) == 1:
        pictures, masks = plain, []
    for path in named:
        if looks[path].is_mask or are_masks_here:
            masks.append(path)
        elif _has_certain_word(path):
            raise _cannot_tell(
                [pictures[0], path], "the second is named like a mask, but is a picture", setting
            )
    if not masks:
        return pictures[0], []
    if len(pictures) > 1:
        raise _cannot_tell(group, "a mask may belong to one of several images", setting)
    for path in masks:
        if looks[path].size != looks[pictures[0]].size and not names[path].is_mask:
            raise _cannot_tell([pictures[0], path], "the second looks like a mask of another size", setting)
    return pictures[0], sorted(masks)


def _has_certain_word(path: Path) -> bool:
    base = strip_mask_word(path.stem)
    word = path.stem.removesuffix(base) if path.stem.endswith(base) else path.stem.removeprefix(base)
    return word.strip(" ._-0123456789()").casefold() in CERTAIN_WORDS


def _cannot_tell(paths: list[Path], reason: str, setting: str) -> UserError:
    names = " and ".join(str(path) for path in paths[:2])
    return UserError(
        f"{setting}: {names} have one name, and which is an image cannot be told ({reason}): move masks into "
        "a folder of their own (data.folders.masks of data.source=folders), or rename one of two pictures"
    )


def looks_like_mask(path: Path) -> bool:
    """Whether a file, by its pixels, is a mask and no picture; an empty mask may be a black picture too."""
    return _look(path).is_mask


def _look_if_whole(path: Path) -> Look | None:
    """None for a file that cannot be read."""
    try:
        return _look(path)
    except UserError:
        return None


def _look(path: Path) -> Look:
    content = read_content(path)
    pixels = decode_colours(path, content, check_content(path, content))
    return Look(are_pixels_of_mask(pixels), pixels.shape[:2])
