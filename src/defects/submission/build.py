"""Submissions: built in the sample's order, validated, written with what they were made from."""

from pathlib import Path

import numpy as np
import pandas as pd

from defects.config import Config, resolve
from defects.data.prepare import load_images, sample_ids
from defects.errors import UserError
from defects.files import sha256, write_csv, write_json
from defects.scoring.blending import blend, experiment_probabilities
from defects.scoring.estimate import estimate
from defects.training.inference import load_test
from defects.training.run import load_oof


def build_submission(config: Config, experiments: list[str], path: Path) -> dict:
    """Blend the experiments, choose the threshold on out-of-fold scores, write `path`.

    Beside it: <name>.json (weights, threshold, estimate, sha256 of every input) and <name>.scores.csv
    (image_id, probability). Returns the JSON's content. Raises UserError for members that do not match.
    """
    members = {name: config.model_copy(update={"experiment": name}) for name in experiments}
    oofs = {name: load_oof(member) for name, member in members.items()}
    pairs = {
        name: experiment_probabilities(oofs[name], load_test(member)) for name, member in members.items()
    }
    probability = blend({name: pair[1] for name, pair in pairs.items()})
    oof = oofs[experiments[0]].set_index("image_id")
    oof = oof.assign(probability=blend({name: pair[0] for name, pair in pairs.items()}))
    expected = estimate(oof.reset_index())
    ids = submission_ids(config)
    probability = probability.reindex(ids.index)
    answers = (probability >= expected["threshold"]).where(probability.notna())
    table = pd.DataFrame({"ImageId": ids.to_numpy(), "answer": answers.to_numpy()})
    validate(table, ids.tolist(), path)
    table = table.astype({"answer": int})
    summary = {
        "data": config.data.name,
        "weights": {name: 1 / len(experiments) for name in experiments},
        "threshold": expected["threshold"],
        "called_defective": int(table["answer"].sum()),
        "images": len(table),
        "estimate": expected,
        "inputs": {_shown(file): sha256(file) for file in _inputs(members)},
    }
    scores = probability.rename_axis("image_id").rename("probability").reset_index()
    write_csv(path.with_suffix(".scores.csv"), scores)
    write_json(path.with_suffix(".json"), summary)
    write_csv(path, table)
    return summary


def submission_ids(config: Config) -> pd.Series:
    """Ids as to be submitted, by image_id, in the order of the sample; without one, by id."""
    images = load_images(config)
    if config.data.sample_submission:
        return sample_ids(config.data, images)
    ids = images.loc[images["split"] == "test", "image_id"]
    return ids.set_axis(ids)


def validate(table: pd.DataFrame, ids: list[str], path: Path) -> None:
    """UserError unless `table` is ImageId, answer with exactly `ids` in order and answers 0 or 1."""
    problems = []
    if list(table.columns) != ["ImageId", "answer"]:
        problems.append(f"its columns are {', '.join(table.columns)}; expected ImageId, answer")
    elif table["ImageId"].tolist() != list(ids):
        missing, extra = sorted(set(ids) - set(table["ImageId"])), sorted(set(table["ImageId"]) - set(ids))
        problems.append(
            f"its ids differ from the sample's (missing {missing[:3]}, unknown {extra[:3]}, or order)"
        )
    elif not np.isin(table["answer"], [0, 1]).all():
        wrong = table.loc[~table["answer"].isin([0, 1]), "ImageId"].tolist()
        problems.append(
            f"{len(wrong)} answers are not 0 or 1, that of {wrong[0]} first: run src/infer.py again"
        )
    if problems:
        raise UserError(f"{path}: {problems[0]}")


def _inputs(members: dict[str, Config]) -> list[Path]:
    first = next(iter(members.values()))
    files = [first.dataset_dir / "images.csv", first.dataset_dir / "folds.csv"]
    for member in members.values():
        files += [*sorted(member.experiment_dir.glob("fold*/oof.csv")), member.experiment_dir / "test.csv"]
    return files


def _shown(path: Path) -> str:
    root = resolve(".")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
