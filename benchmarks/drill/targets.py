"""The parsers of the program, each given a file that may hold anything."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import timm
import torch

from defects.config import load_config
from defects.config_schema import Config, as_yaml
from defects.data import rle
from defects.data.fold_files import load_tables, load_training_rows
from defects.data.folds import find_stated_groups
from defects.data.images import read_image
from defects.data.index import load_images, sample_ids
from defects.data.mask_files import examine_mask
from defects.data.rle import check_runs, read_rle_table
from defects.deploy.model import load_model
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.outcome import load_answers
from defects.evaluation.pixels import Maps
from defects.files import read_json
from defects.messages import UserError
from defects.models import build_detector
from defects.models.features import create_backbone
from defects.reports.run_report import load_aligned_oof
from defects.runs import Run
from defects.submission.send import load_submission
from defects.submission.summary import open_runs, read_summary
from defects.training import checkpoint
from defects.training.checkpoint import load_detector
from defects.training.loop import Trainer, make_accelerator
from drill.mutations import claiming, with_checksums
from drill.stages import RUN, RUN_NAME

CLASSES = ["1", "2", "3", "4"]
SHAPE = (64, 96)  # height, width of images and masks in pixels
HUGE = [(16_000, 16_000), (30_000, 30_000), (65_535, 65_535), (1, 2**31 - 1)]  # height, width


class Target(NamedTuple):
    """`check` reads `path`, relative to the copy, whose content was made of one of the `seeds`.

    A refusal `names` that file, or another that it stands for.
    """

    path: str
    seeds: Callable[[Path], list[bytes]]
    check: Callable[[Path, Config], object]
    names: str | None = None


PICTURES = (".jpg", ".png", ".bmp", ".tiff", ".webp", ".avif", ".gif", ".jp2", ".pnm", ".pam", ".ras")


def _picture(extension: str) -> Callable[[Path], list[bytes]]:
    """Colour, grey, 16 bits where the format has them; and with headers that claim to be huge."""

    def seeds(_: Path) -> list[bytes]:
        rng = np.random.default_rng(0)
        smooth = cv2.GaussianBlur(rng.integers(0, 255, (*SHAPE, 3), np.uint8), (0, 0), 3)
        kinds = [smooth, smooth[..., 0], cv2.resize(smooth, (640, 480))]
        kinds += [smooth.astype(np.uint16) * 257] if extension in (".png", ".tiff", ".pnm", ".jp2") else []
        kinds = kinds[:1] if extension == ".gif" else kinds  # OpenCV writes none in grey
        found = [cv2.imencode(extension, kind)[1].tobytes() for kind in kinds]
        return found + [claiming(found[0], *sides) for sides in HUGE]

    return seeds


def _file(_: Path) -> list[bytes]:
    """The seeds are the file itself."""
    return []


def _texts(*texts: str) -> Callable[[Path], list[bytes]]:
    return lambda _: [text.encode() for text in texts]


def _groups(folder: Path) -> list[bytes]:
    images = pd.read_csv(folder / "output/drill/images.csv", usecols=["image_id"])
    groups = images.assign(group=[f"coil {row // 2}" for row in images.index])
    return [groups.to_csv(index=False).encode()]


def _weights(_: Path) -> list[bytes]:
    buffer = io.BytesIO()
    torch.save(timm.create_model("test_efficientnet", num_classes=0).state_dict(), buffer)
    return [buffer.getvalue()]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _member(archive: str, name: str) -> Callable[[Path], list[bytes]]:
    """The first member of an archive whose name ends so: its own checksum would refuse nearly all changes."""
    return lambda folder: [_first_member(folder / archive, name)[1]]


def _first_member(path: Path, name: str) -> tuple[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        found = next(each for each in archive.namelist() if each.endswith(name))
        return found, archive.read(found)


def _inside(archive: str, name: str, check: Callable) -> Callable[[Path, Config], object]:
    """`check` with the content of the file in place of that member, its checksum put right."""

    def checked(path: Path, config: Config) -> object:
        whole = path.parent / archive
        before, (found, _) = whole.read_bytes(), _first_member(whole, name)
        try:
            with zipfile.ZipFile(io.BytesIO(before)) as old, zipfile.ZipFile(whole, "w") as new:
                for each in old.namelist():
                    new.writestr(each, path.read_bytes() if each == found else old.read(each))
            return check(whole, config)
        finally:
            whole.write_bytes(before)

    return checked


def _with_checksums(check: Callable) -> Callable[[Path, Config], object]:
    """The chunks of a PNG get their checksums, or nothing but these would be tried."""

    def checked(path: Path, config: Config) -> object:
        path.write_bytes(with_checksums(path.read_bytes()))
        return check(path, config)

    return checked


def _read_image(path: Path, _: Config) -> None:
    assert read_image(path, is_strict=True).dtype == np.uint8
    assert read_image(path, (32, 48)).shape == (32, 48, 3)


def _read_reduced(path: Path, _: Config) -> None:
    assert read_image(path, (24, 32)).shape == (24, 32, 3)


def _read_mask(path: Path, _: Config) -> None:
    assert examine_mask(path)[0].ndim == 2


def _decode_runs(path: Path, _: Config) -> None:
    """A ValueError is what the codec promises; what it takes comes back the same."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
        mask = rle.decode(text, SHAPE)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    again = rle.decode(rle.encode(mask), SHAPE)
    assert mask.shape == SHAPE and np.array_equal(mask, again)


def _read_runs(path: Path, _: Config) -> None:
    table = read_rle_table(path, CLASSES)
    check_runs(table, dict.fromkeys(table["image_id"], SHAPE), path)


def _grouped(path: Path, config: Config) -> None:
    split = config.split.model_copy(update={"group_file": path})
    images = load_images(config)
    find_stated_groups(images[images["split"] == "train"].reset_index(drop=True), split)


def _oof(_: Path, config: Config) -> None:
    load_aligned_oof(Run(config), load_tables(config))


def _submission(path: Path, _: Config) -> None:
    summary = read_summary(path)
    config = open_runs(summary, None)[0].config
    load_submission(config, load_images(config), path, summary, None)


def _answers(_: Path, config: Config) -> None:
    load_answers(config, load_images(config))


def _sample(_: Path, config: Config) -> None:
    sample_ids(config.data, load_images(config))


def _configured(path: Path, _: Config) -> None:
    as_yaml(load_config(path)).encode()


def _overridden(path: Path, _: Config) -> None:
    options = path.read_bytes().decode("utf-8", "replace").splitlines()
    as_yaml(load_config(path.with_name("drill.yaml"), options)).encode()


def _resumed(path: Path, config: Config) -> None:
    trainer = Trainer(
        build_detector(config, pretrained=False),
        config.train,
        None,
        path.parent,
        checkpoint.fingerprint(config, "0", None),
        make_accelerator(config.train),
        tracker=None,
        stopwatch=None,
    )
    trainer.resume()


def _backbone(path: Path, config: Config) -> None:
    weights = config.model.backbone.model_copy(update={"weights": str(path)})
    create_backbone(weights, num_classes=1)


def _maps(path: Path, _: Config) -> None:
    maps = Maps(path)
    assert maps.segment in (True, False)
    for name in maps:
        maps.of_classes(name)


IDS = [f"image{number}.jpg" for number in range(6)]
JOINED = ["ImageId_ClassId,EncodedPixels"]
JOINED += [f"{name}_{target},{'1 3 10 5' if target == '2' else ''}" for name in IDS for target in CLASSES]
SPLIT = ["ImageId,EncodedPixels,ClassId"]
SPLIT += [f"{name},1 3 200 7,{target}" for name in IDS for target in CLASSES[:2]]
OPTIONS = ["train.lr=0.1", "data.image_size=[64, 96]", "augment=[{name: Blur, p: 0.5}]", "experiment=a"]

TARGETS: dict[str, Target] = {
    **{f"read_image {name}": Target(f"x{name}", _picture(name), _read_image) for name in PICTURES},
    "read_image .png, checksums right": Target("x.png", _picture(".png"), _with_checksums(_read_image)),
    "read_mask .png, checksums right": Target("x.png", _picture(".png"), _with_checksums(_read_mask)),
    "read_image reduced .jpg": Target("x.jpg", _picture(".jpg"), _read_reduced),
    **{f"read_mask {name}": Target(f"x{name}", _picture(name), _read_mask) for name in PICTURES},
    "rle.decode": Target("x.txt", _texts("1 3 10 5 6100 40", "", "6144 1"), _decode_runs),
    "rle table, joined": Target("x.csv", _texts("\n".join(JOINED)), _read_runs),
    "rle table, split": Target("x.csv", _texts("\n".join(SPLIT)), _read_runs),
    "images.csv": Target("output/drill/images.csv", _file, lambda _, config: load_images(config)),
    "folds.csv": Target("output/drill/folds.csv", _file, lambda _, config: load_tables(config)),
    "train_fold0.csv": Target(
        "output/drill/train_fold0.csv", _file, lambda _, config: load_training_rows(config, "0")
    ),
    "oof.csv": Target(f"{RUN}/fold0/oof.csv", _file, _oof, RUN_NAME),
    "test.csv": Target(f"{RUN}/test.csv", _file, lambda _, config: Run(config).load_test_scores()),
    "group_file": Target("groups.csv", _groups, _grouped),
    "sample_submission.csv": Target("input/drill/test/sample_submission.csv", _file, _sample),
    "answers.csv": Target("input/drill_answers.csv", _file, _answers),
    "submission.csv": Target("submissions/sample_submission.csv", _file, _submission),
    "submission.json": Target(
        "submissions/sample_submission.json",
        _file,
        lambda path, config: _submission(path.with_suffix(".csv"), config),
        "sample_submission",
    ),
    "adversarial.json": Target(
        "output/drill/adversarial.json", _file, lambda _, config: stored_comparison(config)
    ),
    "read_json": Target("output/drill/split.json", _file, lambda path, _: read_json(path)),
    "metrics.jsonl": Target(
        f"{RUN}/fold0/metrics.jsonl", _file, lambda _, config: Run(config).read_history("0")
    ),
    "config.yaml": Target("configs/drill.yaml", _file, _configured),
    "--set": Target("configs/option.txt", _texts(*OPTIONS, "\n".join(OPTIONS)), _overridden, ""),
    "config.yaml of a run": Target(
        f"{RUN}/fold0/config.yaml",
        _file,
        lambda path, _: Run.open(path.parents[1]),
        RUN_NAME,
    ),
    "best.pt": Target(f"{RUN}/fold0/best.pt", _file, lambda _, config: load_detector(Run(config), "0")),
    "last.pt": Target(f"{RUN}/fold0/last.pt", _file, _resumed),
    "backbone weights": Target("weights.pt", _weights, _backbone),
    "oof_maps.npz": Target(f"{RUN}/fold0/oof_maps.npz", _file, _maps),
    "model.json of an export": Target(
        f"{RUN}/fold0/export/model.json", _file, lambda path, _: load_model(path.parent)
    ),
    "pickle in best.pt": Target(
        f"{RUN}/fold0/data.pkl",
        _member(f"{RUN}/fold0/best.pt", "data.pkl"),
        _inside("best.pt", "data.pkl", lambda _, config: load_detector(Run(config), "0")),
        "best.pt",
    ),
    "pickle in last.pt": Target(
        f"{RUN}/fold0/data.pkl",
        _member(f"{RUN}/fold0/last.pt", "data.pkl"),
        _inside("last.pt", "data.pkl", _resumed),
        "last.pt",
    ),
    "pickle in backbone weights": Target(
        "data.pkl",
        lambda folder: [_first_member(_written(folder / "weights.pt", _weights(folder)[0]), "data.pkl")[1]],
        _inside("weights.pt", "data.pkl", _backbone),
        "weights.pt",
    ),
    "array in oof_maps.npz": Target(
        f"{RUN}/fold0/array.npy",
        _member(f"{RUN}/fold0/oof_maps.npz", ".npy"),
        _inside("oof_maps.npz", ".npy", _maps),
        "oof_maps.npz",
    ),
}
