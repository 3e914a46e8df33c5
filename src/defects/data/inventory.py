"""What prepare saw in the folders of a data set: a summary that people read, and inventory.json."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.examination import Examination
from defects.data.folder_scan import count_by_suffix, repeated_text
from defects.data.junk import list_folders
from defects.data.role_folders import RoleFolder
from defects.errors import shorten_names

SHOWN_SIZES = 3
DEEP_BITS = {10: 1023, 12: 4095}  # bits of a camera, and the largest value that they hold


def take_inventory(
    data: DataConfig,
    images: pd.DataFrame,
    folders: list[RoleFolder],
    notes: list[str],
    examination: Examination,
) -> dict[str, Any]:
    """What was seen, taken and not taken, as JSON; paths are relative to data.root.

    `images` are the rows of images.csv; those of `examination` also hold what is known of test images.
    """
    root = resolve(data.root)
    return {
        "root": data.root.as_posix(),
        "images": _count_images(images),
        "folders": [_describe_folder(folder, root) for folder in folders],
        "not_taken": _sum_counts(folder.scan.other_files for folder in folders),
        "special_files": [_below(path, root) for folder in folders for path in folder.scan.special_files],
        "left_by_systems": _sum_counts(folder.scan.junk for folder in folders),
        "folders_not_used": [_below(path, root) for path in _unused_folders(root, folders)],
        "sizes": _count_sizes(images),
        "pixels": _count_pixels(examination),
        "masks": _describe_masks(data, examination),
        "notes": _notes(data, root, folders, notes, examination),
    }


def print_inventory(inventory: dict[str, Any]) -> None:
    for line in inventory_lines(inventory):
        print(line)


def inventory_lines(inventory: dict[str, Any]) -> list[str]:
    """A line for each part of the inventory that has something to say."""
    lines = [f"inventory of {inventory['root']}"]
    for part, count in inventory["images"].items():
        lines.append(f"{part:18}{count:7}")
    folders = [_folder_text(folder) for folder in inventory["folders"]]
    lines.append(f"folders     {shorten_names(folders)}")
    linked = [link for folder in inventory["folders"] for link in folder["links"]]
    if linked:
        count = sum(folder["files_behind_links"] for folder in inventory["folders"])
        lines.append(
            f"links       {count} files lie in {len(linked)} linked folders: {shorten_names(linked)}"
        )
    not_taken = count_by_suffix(Counter(inventory["not_taken"]))
    if inventory["special_files"]:
        not_taken.append(f"{len(inventory['special_files'])} pipes or devices")
    if not_taken:
        lines.append(f"not taken   no images: {', '.join(not_taken)}")
    if inventory["left_by_systems"]:
        left = [f"{count} {name}" for name, count in inventory["left_by_systems"].items()]
        lines.append(f"skipped     left by systems: {shorten_names(left)}")
    if inventory["folders_not_used"]:
        lines.append(f"not used    {shorten_names(inventory['folders_not_used'])}")
    lines.append(f"sizes       {_sizes_text(inventory['sizes'])}")
    pixels = [f"{count} of {kind}" for kind, count in inventory["pixels"]["kinds"].items()]
    lines.append(f"pixels      {', '.join(pixels)}")
    if inventory["masks"]:
        lines.append(f"masks       {_masks_text(inventory['masks'])}")
    return lines + [f"note: {note}" for note in inventory["notes"]]


def _count_images(images: pd.DataFrame) -> dict[str, int]:
    classes = images["label"].map({0: "normal", 1: "defect"}).fillna("unlabelled")
    counts = images.groupby(["split", classes]).size()
    return {f"{split:6}{label}": int(count) for (split, label), count in counts.items()}


def _describe_folder(folder: RoleFolder, root: Path) -> dict[str, Any]:
    scan = folder.scan
    return {
        "setting": folder.setting,
        "role": folder.role,
        "path": _below(folder.path, root),
        "files": len(scan.images),
        "images": len(folder.images),
        "files_behind_links": scan.images_behind_links(),
        "links": [_below(path, root) for path in scan.linked_folders],
    }


def _folder_text(folder: dict[str, Any]) -> str:
    path = "" if folder["setting"] == folder["path"] else f" ({folder['path']})"
    return f"{folder['setting']}{path} {folder['files']}"


def _sum_counts(counts: Iterable[Counter[str]]) -> dict[str, int]:
    total = sum(counts, Counter())
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _unused_folders(root: Path, folders: list[RoleFolder]) -> list[Path]:
    """Folders that lie beside those of the data set, below its root, and that nothing is taken from."""
    used = {path for folder in folders for path in (folder.path, *folder.path.parents)}
    parents = {folder.path.parent for folder in folders} | {root}
    near = [parent for parent in parents if parent == root or root in parent.parents]
    inside = {folder.path for folder in folders}
    beside = [path for parent in near if parent not in inside for path in list_folders(parent)]
    return sorted(path for path in beside if path not in used)


def _count_sizes(images: pd.DataFrame) -> dict[str, int]:
    """Images of each size, width by height in pixels, the most frequent first."""
    sizes = Counter(zip(images["width"], images["height"], strict=True))
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return {f"{width}x{height}": count for (width, height), count in ordered}


def _sizes_text(sizes: dict[str, int]) -> str:
    names = list(sizes)
    if len(names) == 1:
        return f"all {names[0]}"
    by_area = sorted(names, key=lambda name: np.prod([int(side) for side in name.split("x")]))
    frequent = [f"{name} ({sizes[name]})" for name in names[:SHOWN_SIZES]]
    text = f"{len(names)} sizes from {by_area[0]} to {by_area[-1]}"
    return f"{text}, most often {', '.join(frequent)}"


def _count_pixels(examination: Examination) -> dict[str, Any]:
    facts = [each.facts for each in examination.examined if each.facts]
    kinds = Counter(f"{fact.bits} bits {fact.channels}" for fact in facts)
    deep = [fact.largest for fact in facts if fact.bits == 16]
    return {"kinds": _sum_counts([kinds]), "largest_of_16_bits": max(deep) if deep else None}


def _describe_masks(data: DataConfig, examination: Examination) -> dict[str, Any] | None:
    images = examination.images
    marked = [
        (each.masks.share, path, each.masks)
        for each, path, mask_path in zip(
            examination.examined, images["path"], images["mask_path"], strict=True
        )
        if mask_path
    ]
    if not marked:
        return None
    shares = [share for share, _, _ in marked]
    largest = max(marked, key=lambda item: (item[0], item[1]))
    files = [facts for _, _, masks in marked for facts in masks.facts]
    return {
        "images": len(marked),
        "defects": int((images["label"] == 1).sum()),
        "files": len(files),
        "kinds": _sum_counts([Counter(facts.kind for facts in files)]),
        "median_share": float(np.median(shares)),
        "largest_share": largest[0],
        "largest": largest[1],
        "inverted": examination.inverted,
    }


def _masks_text(masks: dict[str, Any]) -> str:
    kinds = ", ".join(masks["kinds"])
    return (
        f"{masks['images']} of {masks['defects']} defects have one ({kinds}); they mark "
        f"{masks['median_share']:.2%} of an image (median), {masks['largest_share']:.2%} at most "
        f"({masks['largest']})"
    )


def _notes(
    data: DataConfig, root: Path, folders: list[RoleFolder], notes: list[str], examination: Examination
) -> list[str]:
    """What a person should know or may want to correct, one sentence each."""
    found = []
    for folder in folders:
        for inner in folder.nested:
            found.append(
                f"{inner.setting} lies inside {folder.setting}: its files are taken as {inner.role} only"
            )
        if folder.scan.repeated_folders:
            found.append(repeated_text(folder.scan.repeated_folders))
    found += notes
    if examination.dropped:
        shown = shorten_names(examination.dropped)
        found.append(
            f"{len(examination.dropped)} masks are left out by data.bad_masks=drop: those of {shown}"
        )
    found += _doubts(examination)
    if examination.inverted:
        found.append("the masks mark what is no defect: they are read the other way round")
    largest = _count_pixels(examination)["largest_of_16_bits"]
    bits = next((bits for bits, most in DEEP_BITS.items() if largest is not None and largest <= most), None)
    if bits is not None and getattr(data, "bits", None) is None:
        found.append(
            f"no 16-bit image exceeds {largest}: if the camera has {bits} bits, set data.bits={bits}, or the "
            "images are nearly black"
        )
    return found


def _doubts(examination: Examination) -> list[str]:
    """What is implausible about masks, with how many images it concerns."""
    doubtful: dict[str, list[str]] = {}
    for each, path, mask_path in zip(
        examination.examined, examination.images["path"], examination.images["mask_path"], strict=True
    ):
        reasons = (
            {facts.doubt for facts in each.masks.facts if facts.doubt} if mask_path and each.masks else set()
        )
        for reason in sorted(reasons):
            doubtful.setdefault(reason, []).append(path)
    return [
        f"{len(paths)} masks: {reason}: those of {shorten_names(paths)}" for reason, paths in doubtful.items()
    ]


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
