"""What lies in the folders of a data set, taken or not: a summary that people read, and inventory.json."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data import rle
from defects.data.annotations.marking import MarkFacts
from defects.data.examination import Examination, Examined
from defects.data.folder_scan import (
    MOST_SUFFIXES,
    count_by_suffix,
    count_image_files,
    list_folders,
    repeated_text,
    scan_folder,
)
from defects.data.images import IMAGE_SUFFIXES, notes_on_depth
from defects.data.labels import COLUMN, RUNS, class_columns, class_names, split_masks
from defects.data.listing import RoleFolder, below
from defects.messages import printable, shorten_names

MOST_SIZES = 3
MASK_LIKE_SHARE = 0.5  # of the images: where more look like masks, the data set holds such images
# a_overlay.png, a_heatmap.png, a_thumb.jpg of a.bmp
DRAWING_END = re.compile(
    r"[ ._-](overlay|vis|viz|visuali[sz]ation|heatmap|result|annotated|marked|bbox|preview|thumb|thumbnail)$",
    re.IGNORECASE,
)
MOST_FOLDERS = 6  # in a line
MOST_CLASSES = 12


def take_inventory(
    data: DataConfig,
    images: pd.DataFrame,
    folders: list[RoleFolder],
    notes: list[str],
    examination: Examination,
    marks: MarkFacts | None = None,
) -> dict[str, Any]:
    """What lies in the folders, taken and not taken, as JSON; paths are relative to data.root.

    `images` are the rows of images.csv; those of `examination` also hold what is known of test images.
    """
    root = resolve(data.root)
    used_files = _list_roi_masks(data, root) + ([] if marks is None else marks.files)
    inventory = {
        "root": data.root.as_posix(),
        "images": _count_images(images),
        "folders": [_describe_folder(folder, root) for folder in folders],
        "not_taken": _sum_counts(folder.scan.other_files for folder in folders),
        "special_files": [below(path, root) for folder in folders for path in folder.scan.special_files],
        "left_by_systems": _sum_counts(folder.scan.junk for folder in folders),
        "not_used": _list_unused(data, root, folders, used_files),
        "sizes": _count_sizes(images),
        "pixels": _count_pixels(examination),
        "annotations": _describe_annotations(marks, root),
        "masks": _describe_mask_files(examination) or _describe_runs(images, marks),
        "classes": {name: int((images[COLUMN + name] != "").sum()) for name in class_names(images)},
        "notes": _notes(data, root, folders, notes + (marks.notes if marks else []), examination),
    }
    if not folders:  # the layout lists single files, such as those of a table
        inventory["not_used"] = _count_unlisted(data, root, images)
    return _with_printable_texts(inventory)


def print_inventory(inventory: dict[str, Any]) -> None:
    for line in inventory_lines(inventory):
        print(line)


def inventory_lines(inventory: dict[str, Any]) -> list[str]:
    """A line for each part of the inventory that is not empty."""
    folders = inventory["folders"]
    files = sum(folder["files"] for folder in folders) or sum(inventory["images"].values())
    lines = [f"inventory of {inventory['root']}: {files:,} image files"]
    for part, count in inventory["images"].items():
        split, label = part.split()
        lines.append(f"{split:6}{label:12}{count:7}")
    texts = []
    for folder in folders:
        path = "" if folder["setting"] == folder["path"] else f" ({folder['path']})"
        texts.append(f"{folder['setting']}{path} {folder['files']}")
    if texts:
        lines.append(f"folders     {shorten_names(texts, most=MOST_FOLDERS)}")
    links = [link for folder in folders for link in folder["links"]]
    if links:
        count = sum(folder["files_behind_links"] for folder in folders)
        lines.append(f"links       {count} files lie in {len(links)} linked folders: {shorten_names(links)}")
    not_taken = count_by_suffix(Counter(inventory["not_taken"]))
    if inventory["special_files"]:
        not_taken.append(f"{len(inventory['special_files'])} pipes or devices")
    if not_taken:
        lines.append(f"not taken   no images: {shorten_names(not_taken, most=MOST_SUFFIXES)}")
    if inventory["left_by_systems"]:
        junk = [f"{count} {name}" for name, count in inventory["left_by_systems"].items()]
        lines.append(f"skipped     left by systems: {shorten_names(junk)}")
    if inventory["not_used"]:
        lines.append(f"not used    {shorten_names(inventory['not_used'])}")
    lines.append(f"sizes       {_sizes_text(inventory['sizes'])}")
    pixels = [f"{count} of {kind}" for kind, count in inventory["pixels"]["kinds"].items()]
    lines.append(f"pixels      {', '.join(pixels)}")
    annotations = inventory["annotations"]
    if annotations:
        categories = [
            f"{name or 'without name'} {count}" for name, count in annotations["categories"].items()
        ]
        marks = f"marks {shorten_names(categories, most=MOST_CLASSES)}" if categories else "no marks"
        lines.append(f"annotations {annotations['path']} ({annotations['format']}): {marks}")
    masks = inventory["masks"]
    if masks:
        kinds = ", ".join(masks["kinds"])
        largest = f"{masks['largest_share']:.2%} ({masks['largest']})"
        lines.append(f"masks       {masks['images']} of {masks['defects']} defects have one ({kinds})")
        lines.append(f"marked      {masks['median_share']:.2%} of an image (median), at most {largest}")
    if inventory["classes"]:
        classes = [f"{name} {count}" for name, count in inventory["classes"].items()]
        lines.append(f"classes     {shorten_names(classes, most=MOST_CLASSES)} images")
    return lines + [f"note: {note}" for note in inventory["notes"]]


def _count_images(images: pd.DataFrame) -> dict[str, int]:
    classes = images["label"].map({0: "normal", 1: "defect"}).fillna("unlabelled")
    counts = images.groupby(["split", classes]).size()
    return {f"{split} {label}": int(count) for (split, label), count in counts.items()}


def _describe_folder(folder: RoleFolder, root: Path) -> dict[str, Any]:
    scan = folder.scan
    return {
        "setting": folder.setting,
        "role": folder.role,
        "path": below(folder.path, root),
        "files": len(scan.images),
        "images": len(folder.images),
        "files_behind_links": scan.images_behind_links(),
        "links": [below(path, root) for path in scan.linked_folders],
    }


def _sum_counts(counts: Iterable[Counter[str]]) -> dict[str, int]:
    """The counters added, the most frequent first."""
    total = sum(counts, Counter())
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _list_unused(
    data: DataConfig, root: Path, folders: list[RoleFolder], used_files: list[Path]
) -> list[str]:
    """Folders and image files below the root, outside the folders of the data set, that are not taken.

    `used_files`: what else is of use, such as annotations. A folder with the name of a layout setting that
    is null is listed with the setting.
    """
    settings = getattr(data, data.source, None)  # of the layout, if it has any
    values = {} if settings is None else settings.model_dump()
    null_settings = {name for name, value in values.items() if value is None}
    role_paths = {folder.path for folder in folders}
    used = {path for folder in folders for path in (folder.path, *folder.path.parents)}
    used |= {path for file in used_files for path in file.parents}
    unused = []
    for parent in sorted({root, *(path.parent for path in role_paths)} - role_paths):
        if parent == root or root in parent.parents:
            for path in list_folders(parent):
                if path not in used:
                    name = below(path, root)
                    note = f" (data.{data.source}.{name} set to null)" if name in null_settings else ""
                    unused.append(name + note)
            used_here = [file.suffix.lower() for file in used_files if file.parent == parent]
            files = count_image_files(parent) - sum(suffix in IMAGE_SUFFIXES for suffix in used_here)
            if files:
                unused.append(f"{files} image files in {below(parent, root)}")
    return unused


def _list_roi_masks(data: DataConfig, root: Path) -> list[Path]:
    source = None if data.roi is None else data.roi.locate_masks(root)
    if source is None:
        return []
    return scan_folder(source).images if source.is_dir() else [source]


def _count_unlisted(data: DataConfig, root: Path, images: pd.DataFrame) -> list[str]:
    """Image files below the root that are no images, nor masks of these, counted by folder."""
    listed = {root / path for path in images["path"]}
    for mask_path in images["mask_path"]:
        listed |= {root / path for path in split_masks(mask_path)[0]}
    listed |= set(_list_roi_masks(data, root))
    counts = Counter(below(path.parent, root) for path in scan_folder(root).images if path not in listed)
    return [f"{count} image files in {folder}" for folder, count in sorted(counts.items())]


def _count_sizes(images: pd.DataFrame) -> dict[str, int]:
    """Images of each size, width by height in pixels, the most frequent first."""
    sizes = Counter(zip(images["width"], images["height"], strict=True))
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return {f"{width}x{height}": count for (width, height), count in ordered}


def _sizes_text(sizes: dict[str, int]) -> str:
    names = list(sizes)
    if len(names) == 1:
        return f"all {names[0]}"
    widths, heights = zip(*(map(int, name.split("x")) for name in names), strict=True)
    frequent = [f"{name} ({sizes[name]})" for name in names[:MOST_SIZES]]
    return (
        f"{len(names)} sizes, {min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high, "
        f"most often {', '.join(frequent)}"
    )


def _count_pixels(examination: Examination) -> dict[str, Any]:
    """Files of each depth and kind of channels, and the largest value at each depth."""
    kinds: Counter[str] = Counter()
    largest: dict[str, int] = {}
    for row in examination.examined:
        if row.facts:
            bits = f"{row.facts.bits} bits"
            kinds[f"{bits} {row.facts.channels}"] += 1
            largest[bits] = max(largest.get(bits, 0), row.facts.largest)
    return {"kinds": _sum_counts([kinds]), "largest": largest}


def _describe_mask_files(examination: Examination) -> dict[str, Any] | None:
    """None if there are none."""
    shares: dict[str, float] = {}
    kinds: Counter[str] = Counter()
    for row, path, mask_path in _rows(examination):
        if mask_path:
            shares[path] = row.masks.share
            kinds.update(facts.kind for facts in row.masks.facts)
    if not shares:
        return None
    return _mask_figures(shares, examination.images) | {"files": kinds.total(), "kinds": _sum_counts([kinds])}


def _describe_annotations(marks: MarkFacts | None, root: Path) -> dict[str, Any] | None:
    """Files, format and the categories as the tool names them; None without annotations."""
    if marks is None:
        return None
    return {
        "path": below(marks.path, root),
        "format": marks.format,
        "files": len(marks.files),
        "categories": marks.categories,
    }


def _describe_runs(images: pd.DataFrame, marks: MarkFacts | None) -> dict[str, Any] | None:
    """Of run-length masks, all classes of an image together; None if there are none."""
    columns = class_columns(class_names(images))
    if RUNS in images:
        columns = [RUNS]
    shares: dict[str, float] = {}
    for row in images.to_dict("records"):
        texts = [row[name] for name in columns if row[name]]
        if texts:
            starts, ends = rle.parse(rle.unite(texts), (row["height"], row["width"]))
            shares[row["path"]] = float((ends - starts).sum()) / (row["height"] * row["width"])
    if not shares:
        return None
    kinds = {"run-length": len(shares)} if marks is None else marks.kinds
    return _mask_figures(shares, images) | {"kinds": kinds}


def _mask_figures(shares: dict[str, float], images: pd.DataFrame) -> dict[str, Any]:
    """`shares` of the images that are marked, by path."""
    largest = max(shares, key=lambda path: (shares[path], path))
    return {
        "images": len(shares),
        "defects": int((images["label"] == 1).sum()),
        "median_share": float(np.median(list(shares.values()))),
        "largest_share": shares[largest],
        "largest": largest,
    }


def _notes(
    data: DataConfig, root: Path, folders: list[RoleFolder], notes: list[str], examination: Examination
) -> list[str]:
    """What a person should know or may want to correct, one sentence each; `notes` are the layout's."""
    lines = []
    for folder in folders:
        for inner in folder.nested:
            lines.append(
                f"{inner.setting} lies inside {folder.setting}: its files are taken as {inner.role} only"
            )
        if folder.scan.repeated_folders:
            lines.append(repeated_text(folder.scan.repeated_folders))
    lines += notes
    if examination.dropped:
        names = shorten_names(examination.dropped)
        lines.append(
            f"{len(examination.dropped)} masks are left out by data.bad_masks=drop: those of {names}"
        )
    doubtful: dict[str, list[str]] = {}  # images by what is implausible about their masks
    for row, path, mask_path in _rows(examination):
        if mask_path:
            for doubt in sorted({facts.doubt for facts in row.masks.facts} - {""}):
                doubtful.setdefault(doubt, []).append(path)
    for doubt, paths in doubtful.items():
        lines.append(f"{len(paths)} masks: {doubt}: those of {shorten_names(paths)}")
    if examination.inverted:
        lines.append("the masks mark what is no defect: they are read the other way round")
    facts = {path: row.facts for row, path, _ in _rows(examination) if row.facts}
    lines += notes_on_depth(facts, data.bits)
    mask_like = [path for path, fact in facts.items() if fact.looks_like_mask]
    if 0 < len(mask_like) <= MASK_LIKE_SHARE * len(facts):
        names = shorten_names(mask_like)
        lines.append(f"{len(mask_like)} images have few grey levels, as masks and blank frames have: {names}")
    for folder in folders:
        drawings = _find_drawings(folder, root)
        if drawings:
            lines.append(
                f"{len(drawings)} images are named like drawings of others beside them, and are taken as "
                f"images: {shorten_names(drawings)}; if they are drawings, move them out of {folder.setting}"
            )
    return lines


def _find_drawings(folder: RoleFolder, root: Path) -> list[str]:
    """Images of a folder whose names are those of renderings of other images beside them."""
    images = {path.with_suffix("") for path in folder.images}
    drawings = []
    for path in folder.images:
        base = DRAWING_END.sub("", path.stem)
        if base != path.stem and path.with_name(base) in images:
            drawings.append(below(path, root))
    return drawings


def _rows(examination: Examination) -> Iterator[tuple[Examined, str, str]]:
    """What was read of each image, its path and mask_path."""
    images = examination.images
    return zip(examination.examined, images["path"], images["mask_path"], strict=True)


def _with_printable_texts(value: Any) -> Any:
    """The same value with all texts in it as any file takes them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _with_printable_texts(inner) for key, inner in value.items()}
    return [_with_printable_texts(inner) for inner in value] if isinstance(value, list) else value
