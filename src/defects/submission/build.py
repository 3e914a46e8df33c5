"""Submissions: built in the sample's order, validated, written with what they were made from."""

from pathlib import Path

import pandas as pd
from scipy.special import expit

from defects.config import Config, resolve
from defects.data.prepare import load_images, sample_ids
from defects.errors import UserError, shorten_names
from defects.files import write_csv, write_json
from defects.scoring.adversarial import stored_comparison
from defects.scoring.decision import Decision
from defects.submission.blend import blend_experiments
from defects.writing import sha256

SCORES = ("fold*/oof.csv", "test.csv")  # of an experiment's folder


def build_submission(config: Config, experiments: list[str], path: Path) -> dict:
    """Blend the experiments, choose the threshold on out-of-fold scores, write `path`.

    Beside it: <name>.json (weights, decision, estimate, sha256 of the file and of every input; see
    submission.blend; adversarial: whether training and test images differ, None if nobody looked) and
    <name>.scores.csv (image_id, score as log-odds, probability). Returns the JSON's content. Raises
    UserError for members that do not match.
    """
    members, ids = members_of(config, experiments), submission_ids(config)
    found, scores = blend_experiments(config, members)
    decision: Decision = found["decision"]
    scores = scores.reindex(ids.index)
    answers = (scores >= decision.score_threshold).where(scores.notna())
    table = pd.DataFrame({"ImageId": ids.to_numpy(), "answer": answers.to_numpy()})
    validate(table, ids.tolist(), path)
    summary = {
        "data": config.data.name,
        "weights": found["ensemble"]["methods"][found["ensemble"]["method"]]["weights"],
        "images": len(table),
        **found,
        "decision": decision.to_json(),
        "decisions": {prior: each.to_json() for prior, each in found["decisions"].items()},
        "adversarial": stored_comparison(config),
        "inputs": input_hashes(members),
    }
    shown = pd.DataFrame({"score": scores, "probability": expit(scores)}).rename_axis("image_id")
    scores_file = path.with_suffix(".scores.csv")
    write_csv(scores_file, shown.reset_index())
    write_csv(path, table.astype({"answer": int}))
    summary["sha256"], summary["scores_sha256"] = sha256(path), sha256(scores_file)
    write_json(path.with_suffix(".json"), summary)
    return summary


def members_of(config: Config, experiments: list[str]) -> dict[str, Config]:
    return {name: config.model_copy(update={"experiment": name}) for name in experiments}


def submission_ids(config: Config) -> pd.Series:
    """Ids as to be submitted, by image_id, in the order of the sample; without one, by id."""
    images = load_images(config)
    if config.data.sample_submission:
        return sample_ids(config.data, images)
    ids = images.loc[images["split"] == "test", "image_id"]
    return ids.set_axis(ids)


def validate(table: pd.DataFrame, ids: list[str], path: Path) -> None:
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


def input_hashes(members: dict[str, Config], files: tuple[str, ...] = SCORES) -> dict[str, str]:
    """sha256 of every file that a blend of `members` was made from: `files` are patterns in their folders."""
    first = next(iter(members.values()))
    found = [first.dataset_dir / "images.csv", first.dataset_dir / "folds.csv"]
    for member in members.values():
        found += [path for pattern in files for path in sorted(member.experiment_dir.glob(pattern))]
    return {_shown(path): sha256(path) for path in found}


def _shown(path: Path) -> str:
    root = resolve(".")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
