"""Files made to run code, to write elsewhere, or to fill the memory: one line, and nothing has happened."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from drill import stages
from drill.stages import RUN
from drill.tally import Tally

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def drill(folder: Path) -> list[Tally]:
    last = list(stages.STAGES)[-1]
    whole, found = stages.references(folder, [last])[last].after, []
    for name, (stage, attack, options) in ATTACKS.items():
        tally, marker = Tally("hostile", name), folder / "marker"
        with stages.copy_of(whole, folder / "attacked") as copy:
            attack(copy, marker)
            ending = stages.run(copy, stage, options=options)
        lines = ending.stderr.splitlines()
        refused = ending.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        faults = [] if refused else [f"ends with {ending.code}: {ending.stderr[-300:]!r}"]
        tally.add(faults, ["the code in it has run"] if marker.exists() else [])
        tally.note = lines[0].replace(str(folder), "")[:150] if refused else ""
        marker.unlink(missing_ok=True)
        found.append(tally)
    return found


def _pickled(name: str) -> Callable[[Path, Path], None]:
    """A plain pickle, which torch.load took for a checkpoint for years."""

    def attack(copy: Path, marker: Path) -> None:
        (copy / name).write_bytes(pickle.dumps(Payload(marker), protocol=2))

    return attack


def _checkpoint(name: str, gone: str | None = None) -> Callable[[Path, Path], None]:
    """A checkpoint of today's form with the payload among its values."""

    def attack(copy: Path, marker: Path) -> None:
        torch.save({"fingerprint": Payload(marker), "teacher": 0}, copy / name)
        if gone:
            (copy / gone).unlink()

    return attack


def _maps(copy: Path, marker: Path) -> None:
    for fold in "01":
        np.savez(copy / RUN / f"fold{fold}" / "oof_maps.npz", **{_first_image(copy): [Payload(marker)]})


def _first_image(copy: Path) -> str:
    return (copy / RUN / "fold0" / "oof.csv").read_text().splitlines()[1].split(",")[0]


def _written(name: str, text: str) -> Callable[[Path, Path], None]:
    def attack(copy: Path, marker: Path) -> None:
        (copy / name).write_text(text.format(marker=marker), encoding="utf-8")

    return attack


def _endless(name: str) -> Callable[[Path, Path], None]:
    """A configuration whose data file never ends."""

    def attack(copy: Path, marker: Path) -> None:
        (copy / name).symlink_to("/dev/zero")
        (copy / "configs" / "drill.yaml").write_text(f"data: {name}\n", encoding="utf-8")

    return attack


def _archive(member: str, nested: bool = False) -> Callable[[Path, Path], None]:
    """The competition's archive, which waits to be unpacked, with a member that lies elsewhere."""

    def attack(copy: Path, marker: Path) -> None:
        content = _zipped(member.format(marker=marker), b"x")
        (copy / "input" / "drill.zip").write_bytes(_zipped("train.zip", content) if nested else content)
        (copy / "input" / "drill").rename(copy / "input" / "old")

    return attack


def _zipped(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


def _tagged(name: str) -> Callable[[Path, Path], None]:
    return _written(name, "augment: !!python/object/apply:builtins.open ['{marker}', w]\n")


TAGS = "experiment: !!python/object/apply:builtins.open ['{marker}', w]\n"
SETTING = "train.lr=!!python/object/apply:os.mkdir [marker]"
DOWNLOAD = ["--download"]
RESTART = ["--restart", "--set"]

# name: the stage that meets it, what is put there, further options of the stage
ATTACKS = {
    "pickle as best.pt": ("infer", _pickled(f"{RUN}/fold0/best.pt"), []),
    "code in best.pt": ("infer", _checkpoint(f"{RUN}/fold0/best.pt"), []),
    "code in best.pt, trained again": ("train", _checkpoint(f"{RUN}/fold0/best.pt"), []),
    "code in last.pt": ("train", _checkpoint(f"{RUN}/fold0/last.pt", f"{RUN}/fold0/best.pt"), []),
    "pickle as backbone": ("train", _pickled("w.pt"), [*RESTART, "model.backbone.weights=w.pt"]),
    "code in backbone": ("train", _checkpoint("w.pth"), [*RESTART, "model.backbone.weights=w.pth"]),
    "pickle as safetensors": (
        "train",
        _pickled("w.safetensors"),
        [*RESTART, "model.backbone.weights=w.safetensors"],
    ),
    "pickle as .npz backbone": ("train", _pickled("w.npz"), [*RESTART, "model.backbone.weights=w.npz"]),
    "code in a teacher": (
        "train",
        _checkpoint("t.pt"),
        ["--model", "efficientad_reduced", "--set", "model.options.teacher=t.pt"],
    ),
    "objects in oof_maps.npz": ("report", _maps, []),
    "tags in the config": ("prepare", _written("configs/drill.yaml", TAGS), []),
    "tags in --set": ("prepare", _written("x", ""), ["--set", SETTING]),
    "tags in the config of a run": ("compare", _written(f"{RUN}/fold0/config.yaml", TAGS), []),
    "YAML of billions": ("prepare", _written("configs/drill.yaml", LAUGHS), []),
    "YAML within itself": ("prepare", _written("configs/drill.yaml", "model: &a {{options: *a}}"), []),
    "data: a file of the system": ("prepare", _written("configs/drill.yaml", "data: /etc/passwd"), []),
    "data: an endless file": ("prepare", _endless("endless.yaml"), []),
    "data: up and away": ("prepare", _written("configs/drill.yaml", "data: ../../../../../x.yaml"), []),
    "archive with ..": ("prepare", _archive("../../../marker"), DOWNLOAD),
    "archive with an absolute path": ("prepare", _archive("{marker}"), DOWNLOAD),
    "archive in the archive": ("prepare", _archive("../../../marker", nested=True), DOWNLOAD),
}
