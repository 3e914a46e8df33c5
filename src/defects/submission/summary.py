"""The JSON beside a submission: what it was made from, so that later stages can open and check it."""

from collections.abc import Iterable
from pathlib import Path

from defects.config_schema import Config, EnsembleConfig, ThresholdConfig, resolve
from defects.files import read_json, sha256
from defects.messages import UserError
from defects.runs import Run

SCORES = ("*/oof.csv", "test.csv")  # of a run's folder

RULE_NAMES = ("tuned", "untuned")  # of masks: <name>.tuned.csv and <name>.untuned.csv stand beside <name>.csv


def run_places(runs: list[Run]) -> dict[str, str]:
    """The folder of each run, by its name, so that later commands open the same runs."""
    return {run.name: _shown(run.folder) for run in runs}


def summary_path(path: Path) -> Path:
    """The JSON beside a submission; the files of the two mask rules share that of <name>.csv."""
    name, _, rule = path.stem.rpartition(".")
    own = path.with_suffix(".json")
    return path.with_name(f"{name}.json") if rule in RULE_NAMES and not own.exists() else own


def read_summary(path: Path) -> dict:
    """The JSON of a submission. Raises UserError if it is gone or of an older version.

    Where several files share one, `chosen`, `decision` and `sha256` are those of the file itself.
    """
    json_path = summary_path(path)
    summary = read_json(json_path)
    if summary is None:
        raise UserError(f"{json_path} does not exist: src/ensemble.py RUN makes a submission of trained runs")
    if not _is_whole(summary):
        raise UserError(f"{json_path} is not whole, or of an older version: run src/ensemble.py again")
    if json_path != path.with_suffix(".json"):
        rule = path.stem.rpartition(".")[2]
        summary["chosen"] = rule
        summary["sha256"] = summary.get("files", {}).get(rule)
        summary["decision"] = summary.get("decisions", {}).get(rule)
    return summary


def _is_whole(summary: dict) -> bool:
    """Whether the JSON of a submission names its runs and has the settings that open_runs takes from it."""
    runs = summary.get("runs")
    if not isinstance(runs, dict) or not runs or not all(isinstance(place, str) for place in runs.values()):
        return False
    try:
        ThresholdConfig.model_validate(summary["settings"]["threshold"])
        EnsembleConfig.model_validate(summary["settings"]["ensemble"])
    except (LookupError, TypeError, ValueError):
        return False
    return True


def open_runs(summary: dict, output: Path | None, overrides: Iterable[str] = ()) -> list[Run]:
    """The runs that a submission was made of, with its settings of threshold and blend.

    `output` is the folder that they have been moved to, if they have.
    """
    decided = {
        "threshold": ThresholdConfig.model_validate(summary["settings"]["threshold"]),
        "ensemble": EnsembleConfig.model_validate(summary["settings"]["ensemble"]),
    }
    runs = []
    for name, place in summary["runs"].items():
        folder = resolve(place) if output is None else output / name
        runs.append(Run(Run.open(folder, overrides).config.model_copy(update=decided)))
    return runs


def submission_settings(config: Config) -> dict:
    """What a submission depends on beside its runs."""
    sections = {"threshold", "claims", "ensemble"}
    return config.model_dump(mode="json", include=sections)


def input_hashes(runs: list[Run], files: tuple[str, ...] = SCORES) -> dict[str, str]:
    """sha256 of every file that a blend of `runs` was made from: `files` are patterns in their folders."""
    data = runs[0].config.dataset_dir
    paths = [data / "images.csv", data / "folds.csv"]
    for run in runs:
        for pattern in files:
            paths += sorted(run.folder.glob(pattern))
    return {_shown(path): sha256(path) for path in paths}


def _shown(path: Path) -> str:
    root = resolve(".")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
