"""Submissions: built in the sample's order, validated, written with what they were made from."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from scipy.special import expit

from defects.config import Config, EnsembleConfig, ThresholdConfig, resolve
from defects.data.fold_files import DataTables
from defects.data.index import sample_ids
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.thresholds import Decision
from defects.files import read_json, sha256, write_csv, write_json
from defects.messages import UserError, shorten_names
from defects.runs import Run
from defects.submission.blended_runs import blend_runs

SCORES = ("fold*/oof.csv", "test.csv")  # of a run's folder
RULE_NAMES = ("tuned", "untuned")  # of masks: <name>.tuned.csv and <name>.untuned.csv stand beside <name>.csv


def build_submission(runs: list[Run], tables: DataTables, path: Path) -> dict:
    """Blend the runs, choose the threshold on out-of-fold scores, write `path`.

    Beside it: <name>.json (weights, decision, estimate, sha256 of the file and of every input; see
    blended_runs; adversarial: whether training and test images differ, None if nobody looked) and
    <name>.scores.csv (image_id, score as log-odds, probability). Returns the JSON's content. Raises
    UserError for members that do not match.
    """
    config = runs[0].config
    ids = submission_ids(config, tables.images)
    found, scores = blend_runs(runs, tables)
    decision: Decision = found["decision"]
    scores = scores.reindex(ids.index)
    answers = (scores >= decision.score_threshold).where(scores.notna())
    table = pd.DataFrame({"ImageId": ids.to_numpy(), "answer": answers.to_numpy()})
    check_answers(table, ids.tolist(), path)
    summary = {
        "data": config.data.name,
        "weights": found["ensemble"]["methods"][found["ensemble"]["method"]]["weights"],
        "images": len(table),
        **found,
        "decision": decision.to_json(),
        "decisions": {prior: each.to_json() for prior, each in found["decisions"].items()},
        "adversarial": stored_comparison(config),
        "runs": run_places(runs),
        "settings": submission_settings(config),
        "inputs": input_hashes(runs),
    }
    shown = pd.DataFrame({"score": scores, "probability": expit(scores)}).rename_axis("image_id")
    scores_file = path.with_suffix(".scores.csv")
    write_csv(scores_file, shown.reset_index())
    write_csv(path, table.astype({"answer": int}))
    summary["sha256"], summary["scores_sha256"] = sha256(path), sha256(scores_file)
    write_json(path.with_suffix(".json"), summary)
    return summary


def run_places(runs: list[Run]) -> dict[str, str]:
    """The folder of each run, by its name, so that the submission's runs are found again."""
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
    beside = summary_path(path)
    summary = read_json(beside)
    if summary is None:
        raise UserError(f"{beside} does not exist: run src/ensemble.py again")
    if not _is_whole(summary):
        raise UserError(f"{beside} is not whole, or of an older version: run src/ensemble.py again")
    if beside != path.with_suffix(".json"):
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
    sections = {"threshold", "ensemble"}
    return config.model_dump(mode="json", include=sections)


def submission_ids(config: Config, images: pd.DataFrame) -> pd.Series:
    """Ids as to be submitted, by image_id, in the order of the sample; without one, by id.

    `images` is images.csv.
    """
    if config.data.sample_submission:
        return sample_ids(config.data, images)
    ids = images.loc[images["split"] == "test", "image_id"]
    return ids.set_axis(ids)


def check_answers(table: pd.DataFrame, ids: list[str], path: Path) -> None:
    """UserError unless `table` is ImageId, answer with exactly `ids` in order and answers 0 or 1."""
    if list(table.columns) != ["ImageId", "answer"]:
        raise UserError(f"{path}: its columns are {shorten_names(table.columns)}; expected ImageId, answer")
    if table["ImageId"].tolist() != list(ids):
        found = set(table["ImageId"])
        missing, extra = sorted(set(ids) - found)[:3], sorted(found - set(ids))[:3]
        raise UserError(
            f"{path}: its ids differ from the sample's (missing {missing}, unknown {extra}, or order)"
        )
    wrong = table.loc[~table["answer"].isin([0, 1]), "ImageId"].tolist()
    if wrong:
        raise UserError(f"{path}: {len(wrong)} answers are not 0 or 1, that of {wrong[0]} first: score again")


def input_hashes(runs: list[Run], files: tuple[str, ...] = SCORES) -> dict[str, str]:
    """sha256 of every file that a blend of `runs` was made from: `files` are patterns in their folders."""
    data = runs[0].config.dataset_dir
    found = [data / "images.csv", data / "folds.csv"]
    for run in runs:
        for pattern in files:
            found += sorted(run.folder.glob(pattern))
    return {_shown(path): sha256(path) for path in found}


def _shown(path: Path) -> str:
    root = resolve(".")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
