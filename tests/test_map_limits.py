"""From which value on an exported model marks a cell: measured on what the folds held out, map by map."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from runs import write_runs

from defects.config import load_config
from defects.deploy.exporter import measure_map_limits
from defects.evaluation.pixels import CellCounts, Maps
from defects.files import array_archive
from defects.runs import OOF_MAPS, Run
from defects.stages import ensure_tables

SEGMENTER, OTHER = SimpleNamespace(segments=True), SimpleNamespace(segments=False)


@pytest.fixture
def config(make_dataset, config_file, run_script):
    """Of two folds that left scores and maps."""
    path = config_file(make_dataset())
    assert run_script("split.py", "--config", path).code == 0
    config = load_config(path)
    write_runs(config)
    return config


def without_normal_images(config, monkeypatch, folds):
    """Let every image that these folds held out be taken for a defect."""
    oof = Run(config).load_oof(ensure_tables(config).folds)
    oof.loc[oof["fold"].isin(list(folds)), "label"] = 1
    monkeypatch.setattr(Run, "load_oof", lambda *_: oof)


def held_maps(config, fold, label=None):
    """All values of the maps that a fold held out, of images with `label` or of any."""
    oof = pd.read_csv(Run(config).fold_folder(fold) / "oof.csv")
    maps = Maps(Run(config).fold_folder(fold) / OOF_MAPS)
    rows = oof if label is None else oof[oof["label"] == label]
    return np.stack([maps[image_id] for image_id in rows["image_id"]]).astype(float)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_map_limits_cell_counts_give_exact_quantiles(share):
    rng = np.random.default_rng(0)
    planes = rng.normal(size=(5, 7, 9)).astype(np.float16)
    counts = CellCounts()
    for plane in planes:
        counts.add(plane)
    wanted = np.quantile(planes.astype(float), share, method="inverted_cdf")
    assert counts.quantile(share) == wanted


def test_map_limits_come_from_the_normal_images_that_the_fold_held_out(config):
    (normal,), (cut,) = measure_map_limits(Run(config), ensure_tables(config), OTHER, "1")
    maps = held_maps(config, "1", label=0)
    assert normal == pytest.approx(np.median(maps), rel=1e-3)
    assert (maps.max((1, 2)) >= cut).mean() <= config.threshold.fpr
    assert measure_map_limits(Run(config), ensure_tables(config), SEGMENTER, "1") == ([normal], [0.5])


def test_map_limits_of_a_fold_without_normal_images_come_from_other_folds(config, monkeypatch):
    without_normal_images(config, monkeypatch, "0")
    limits = [measure_map_limits(Run(config), ensure_tables(config), OTHER, fold) for fold in "01"]
    assert limits[0] == limits[1]


def test_map_limits_without_normal_images_come_from_images_with_defects(config, monkeypatch, capsys):
    """neu.yaml: all images show defects; the export ended in a traceback."""
    without_normal_images(config, monkeypatch, "01")
    (normal,), (cut,) = measure_map_limits(Run(config), ensure_tables(config), OTHER, "0")
    maps = held_maps(config, "0")
    assert normal == pytest.approx(np.median(maps), rel=1e-3)
    assert (maps > cut).mean() <= config.threshold.fpr < (maps >= cut).mean() + 0.01
    assert "no normal image is out of fold" in capsys.readouterr().out


def test_map_limits_read_one_map_at_a_time(config):
    oof = pd.read_csv(Run(config).fold_folder("0") / "oof.csv")
    with array_archive(Run(config).fold_folder("0") / OOF_MAPS) as add:
        for number, image_id in enumerate(oof["image_id"]):
            add(image_id, np.full((512, 512), number, np.float16))
    tracemalloc.start()
    measure_map_limits(Run(config), ensure_tables(config), OTHER, "0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 512 * 512 * 2  # bytes: all of them would be more, in single precision twice that
