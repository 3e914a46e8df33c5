"""What lies in a folder: images, sub-folders by their names; and refusals of what is no folder of images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from defects.data.folder_scan import FolderScan, list_folders
from defects.messages import UserError, printable, shorten_names
from defects.start.folder_names import NameRole, tell_role

ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".wmv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".ts"}


@dataclass(frozen=True)
class Recognised:
    """`settings` of a data file, less names and sizes; `lines` say what was understood."""

    root: Path
    settings: dict[str, Any]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """What lies in `root`, the deepest folder that holds all images and annotations."""

    root: Path
    scan: FolderScan

    @cached_property
    def own_images(self) -> list[Path]:
        return self.images_in(self.root)

    @cached_property
    def folders(self) -> list[Path]:
        """Those directly in `root` that hold images, at any depth."""
        return [path for path in list_folders(self.root) if self.has_images(path)]

    def images_in(self, folder: Path) -> list[Path]:
        """The images directly in `folder`."""
        return [path for path in self.scan.images if path.parent == folder]

    def has_images(self, folder: Path) -> bool:
        """Whether images lie in `folder` or below it."""
        return any(path.is_relative_to(folder) for path in self.scan.images)

    def of_role(self, role: NameRole, folder: Path | None = None) -> list[Path]:
        """The folders with images directly in `folder` (by default `root`) whose names say so."""
        inside = self.folders if folder is None else list_folders(folder)
        return [path for path in inside if tell_role(path) == role and self.has_images(path)]

    def below(self, path: Path) -> str:
        """As a setting: relative to `root`."""
        return path.relative_to(self.root).as_posix()


# --- what is no folder of images ----------------------------------------------------------------------------


def check_is_folder(path: Path) -> None:
    """Raises UserError for what is missing, a file or an archive, and for folders that cannot be read."""
    if not path.exists():
        raise UserError(f"{printable(str(path))} does not exist: name a folder of images")
    if path.is_dir():
        return
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        raise UserError(f"{path} is an archive: unpack it, and name the folder")
    if suffix in VIDEOS:
        raise UserError(f"{path} is a video: take pictures out of it, and name their folder")
    raise UserError(f"{path} is a file: name the folder of images that it lies in, {path.parent}")


def check_has_images(scan: FolderScan) -> None:
    """Raises UserError for a folder without images, or with one, saying what else there is."""
    if len(scan.images) > 1:
        return
    folder = printable(str(scan.folder))
    if scan.images:
        raise UserError(
            f"{folder} holds a single image, {scan.images[0].name}: fifty normal images are a start, and "
            "twenty with defects where there are any"
        )
    problems = scan.problems()
    if problems:
        raise UserError(f"{shorten_names(problems, '; ')}: mend what is named")
    suffixes = set(scan.other_files)
    content = f"but {scan.not_taken()}" if scan.not_taken() else "nor anything else"
    advice = "images are .jpg, .png, .tif and what OpenCV reads"
    if suffixes & VIDEOS:
        advice = "take pictures out of the videos, and name their folder"
    elif suffixes & ARCHIVES:
        advice = "unpack the archives"
    raise UserError(f"{folder} holds no images, {content}: {advice}")


def only_defects_text(folder: Path) -> str:
    return (
        f"{folder} holds defects alone: every detector here needs normal images too; put them beside the "
        "defects, into folders such as good and bad, and name the folder above both"
    )
