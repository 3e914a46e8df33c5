"""Test scores of one model, shard by shard: what a stopped run has finished is not scored again."""

import shutil
from itertools import count
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from defects.config import Config
from defects.files import join_archives, read_csv, read_json, write_csv, write_json
from defects.models import Detector
from defects.stamps import Stamp
from defects.training.run import TEST_MAPS, run_folder, score_table

SHARDS = "test_shards"  # of a run folder, while it is being scored
TEST_COLUMNS = ["image_id", "target", "fold", "score", "probability"]


class Shards:
    """The test images of one run folder, `rows` at a time.

    `made_from` is what scores depend on: finished shards made from anything else are not used.
    """

    def __init__(self, config: Config, fold: str, made_from: Stamp):
        self.config, self.fold = config, fold
        self.run = run_folder(config, fold)
        self.folder = self.run / SHARDS
        batch = config.infer.batch_size
        self.rows = -(-config.infer.shard // batch) * batch  # in whole batches, as they would be in one go
        self.made_from = made_from | {"rows": self.rows}

    def finished(self) -> int:
        """Images whose scores are safe: those of the first so many shards."""
        if read_json(self.folder / "made_from.json") != self.made_from:
            return 0
        return self.rows * next(number for number in count() if not self._table(number).exists())

    def score(self, detector: Detector, test: pd.DataFrame, accelerator: Accelerator) -> None:
        """Write test.csv and test_maps.npz: the same bytes with and without shards, interrupted or not."""
        if len(test) <= self.rows:
            self._score(detector, test, accelerator, self.run / "test.csv", self.run / TEST_MAPS)
            return
        for start in range(self._begin(accelerator), len(test), self.rows):
            number, part = start // self.rows, test[start : start + self.rows]
            self._score(detector, part, accelerator, self._table(number), self._maps(number))
            accelerator.free_memory()  # or the loader of every shard would stay, with its processes
            accelerator.print(f"{self.run.name}: {start + len(part)} of {len(test)} images are scored")
        if accelerator.is_main_process:
            self._join(-(-len(test) // self.rows))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, accelerator: Accelerator) -> int:
        """Images that need not be scored again, as the main process finds; stale shards are removed."""
        done = [0]
        if accelerator.is_main_process:
            done = [self.finished()]
            if not done[0]:
                self.clear()
                write_json(self.folder / "made_from.json", self.made_from)
        return broadcast_object_list(done)[0]

    def _score(
        self, detector: Detector, rows: pd.DataFrame, accelerator: Accelerator, table: Path, maps: Path
    ) -> None:
        """The table last: where it is, the maps are."""
        scores = score_table(detector, self.config, rows, self.fold, accelerator, maps)
        if accelerator.is_main_process:
            write_csv(table, scores)

    def _join(self, shards: int) -> None:
        maps = [self._maps(number) for number in range(shards)]
        join_archives(self.run / TEST_MAPS, [path for path in maps if path.exists()])
        tables = [read_csv(self._table(number), TEST_COLUMNS, "src/infer.py") for number in range(shards)]
        write_csv(self.run / "test.csv", pd.concat(tables, ignore_index=True))

    def _table(self, number: int) -> Path:
        return self.folder / f"{number:05d}.csv"

    def _maps(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"
