"""How often the 90 % interval contains the score obtained: training images drawn anew from all labelled ones.

Each redraw takes whole groups of siblings, up to as many defects and normal images as the training set has,
makes folds, and scores the rest as test images: once as `src/ensemble.py` expects it, once by the answers.
Both decisions are measured: the one for the training share of defects, on test images weighted to that share,
and the one for the share that is estimated from the test scores, on the test images as they are. The member
is cheap enough for that: logistic regression on pooled features of the config's backbone. The answer key is
read; nothing is chosen by it.

python benchmarks/interval_coverage.py --config configs/magnetic_tile.yaml --set data.answers=KEY
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from defects import cli, stages  # noqa: E402
from defects.config_schema import Config  # noqa: E402
from defects.data.datasets import DeviceBatches  # noqa: E402
from defects.data.duplicates import group_ids  # noqa: E402
from defects.data.fold_files import find_duplicates  # noqa: E402
from defects.data.folds import assign_folds  # noqa: E402
from defects.evaluation.blend import Ensemble, OutOfFoldScores  # noqa: E402
from defects.evaluation.decision import Decision  # noqa: E402
from defects.evaluation.estimate import estimate  # noqa: E402
from defects.evaluation.outcome import load_answers, outcome  # noqa: E402
from defects.evaluation.scales import compute_run_scores  # noqa: E402
from defects.evaluation.thresholds import decide_for_shares, estimate_prior_shift  # noqa: E402
from defects.files import write_csv  # noqa: E402
from defects.models.features import Features  # noqa: E402

LAYERS = ["blocks.2", "blocks.3", "blocks.4"]


def main() -> None:
    parser = cli.experiment_parser(__doc__.splitlines()[0])
    parser.add_argument("--redraws", type=int, default=40)
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    images = labelled_images(config, stages.ensure_images(config))
    share = float(images.loc[images["split"] == "train", "label"].mean())
    described = describe(config, images, arguments.layers)
    redraws = tqdm(range(arguments.redraws), "redraws", disable=None)
    table = pd.DataFrame([redraw(config, images, described, share, seed) for seed in redraws])
    path = config.dataset_dir / "interval_coverage.csv"
    write_csv(path, table)
    print(table.round(3).to_string(index=False))
    report(table)
    print(f"wrote {path}")


def labelled_images(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """images.csv with the answers filled in, and the groups of siblings over all images."""
    images = images.reset_index(drop=True)
    answers = load_answers(config, images).set_index("image_id")["label"]
    label = images["label"].astype(float).fillna(images["image_id"].map(answers))
    images = images.assign(label=label).dropna(subset="label").reset_index(drop=True)
    groups = group_ids(len(images), find_duplicates(config, images))
    return images.assign(label=images["label"].astype(int), group=groups)


@torch.inference_mode()
def describe(config: Config, images: pd.DataFrame, layers: list[str]) -> np.ndarray:
    """float32 [N, D]: mean, deviation and maximum of every channel of the layers."""
    features = Features(config.model.backbone, layers, config.data.image_size)
    batches = tqdm(DeviceBatches(config, images, torch.device("cpu")), "features", disable=None)
    return np.concatenate([_pooled(features(batch["image"])) for batch in batches])


def _pooled(maps: list[torch.Tensor]) -> np.ndarray:
    flat_maps = [layer.flatten(2) for layer in maps]
    parts = [torch.cat([layer.mean(2), layer.std(2), layer.amax(2)], 1) for layer in flat_maps]
    return torch.cat(parts, 1).numpy()


def redraw(config: Config, images: pd.DataFrame, described: np.ndarray, share: float, seed: int) -> dict:
    """Expected scores and scores obtained of one redraw."""
    chosen = draw(images, seed)
    train, test = images[chosen], images[~chosen]
    folds = config.split.folds
    targets = np.column_stack([train["label"], 1 - train["label"]])
    fold = assign_folds(train["group"].to_numpy(), targets, folds, seed)
    oof_tables = []
    test_tables = []
    for name in range(folds):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        model.fit(described[chosen][fold != name], train["label"][fold != name])
        oof_tables.append(_scored(model, train[fold == name], described[chosen][fold == name], name))
        test_tables.append(_scored(model, test, described[~chosen], name))
    oof, scores = compute_run_scores(
        pd.concat(oof_tables, ignore_index=True), pd.concat(test_tables, ignore_index=True)
    )
    known = train.set_index("image_id")[["label", "group"]].assign(fold=pd.Series(fold, train["image_id"]))
    known = known.assign(score=oof)
    threshold = config.threshold
    estimated = estimate(known.reset_index(), threshold)
    labels = known["label"].to_numpy()
    oof_scores = known["score"].to_numpy()
    groups = known["group"].to_numpy()
    sample = OutOfFoldScores(labels, oof_scores[:, None], known["fold"].to_numpy(), groups)
    ensemble = Ensemble(["member"], sample, config.ensemble, threshold)
    prior = estimate_prior_shift(labels, oof_scores, scores.to_numpy(), threshold)
    decisions = decide_for_shares(
        labels, oof_scores, groups, scores.to_numpy(), ensemble.predict_nested, threshold, prior
    )
    answers = test.set_index("image_id")[["label"]].assign(score=scores)
    outcomes = {}
    for name, decision in decisions.items():
        answers["answer"] = (scores >= decision.score_threshold).astype(int)
        outcomes[name] = outcome(answers, share)
    return _row(seed, estimated, prior, decisions, outcomes)


def draw(images: pd.DataFrame, seed: int) -> np.ndarray:
    """bool [N]: whole groups at random, as long as they fit into the training set's counts."""
    wanted = images.loc[images["split"] == "train", "label"].value_counts()
    sizes = images.groupby("group")["label"].agg(defects="sum", images="size")
    remaining = np.array([wanted[1], wanted[0]])
    chosen = []
    for group in np.random.default_rng(seed).permutation(sizes.index):
        defects, count = sizes.loc[group]
        need = np.array([defects, count - defects])
        if (need <= remaining).all():
            remaining -= need
            chosen.append(group)
    return images["group"].isin(chosen).to_numpy()


def _scored(model, rows: pd.DataFrame, described: np.ndarray, fold: int) -> pd.DataFrame:
    probability = model.predict_proba(described)[:, 1]
    return pd.DataFrame({"image_id": rows["image_id"], "fold": str(fold), "probability": probability})


def _row(
    seed: int, estimated: dict, prior: dict, decisions: dict[str, Decision], outcomes: dict[str, dict]
) -> dict:
    """`expected`, `obtained` and `holds` of the training share, and `estimated_…` of the estimated one."""
    at_training_share = outcomes["train"]["macro_f1_at_training_share"]
    row = {"seed": seed, "defects": estimated["defects"], "naive": estimated["macro_f1"]}
    row |= _comparison("", decisions["train"], at_training_share)
    row |= {"is_doubted": prior["doubt"] is not None, "share": outcomes["train"]["defect_share"]}
    row |= {"estimated_share": decisions["estimated"].share}
    row |= _comparison("estimated_", decisions["estimated"], outcomes["estimated"]["macro_f1"])
    return row | {"oof_auroc": estimated["auroc"], "test_auroc": outcomes["train"]["auroc"]}


def _comparison(prefix: str, decision: Decision, obtained: float) -> dict:
    low, high = decision.interval_90
    values = {
        "expected": decision.expected_score,
        "low": low,
        "high": high,
        "obtained": obtained,
        "holds": low <= obtained <= high,
    }
    return {f"{prefix}{name}": value for name, value in values.items()}


def report(table: pd.DataFrame) -> None:
    naive_gap = (table["naive"] - table["obtained"]).mean()
    print(f"naive - obtained          {naive_gap:+.4f}")
    report_gap("at the training share", table, "")
    print(f"estimate doubted          {table['is_doubted'].mean():.0%} of {len(table)} redraws")
    report_gap("at the estimated share", table[~table["is_doubted"]], "estimated_")


def report_gap(title: str, table: pd.DataFrame, prefix: str) -> None:
    gap = table[f"{prefix}expected"] - table[f"{prefix}obtained"]
    error = gap.std() / np.sqrt(len(gap))
    width = (table[f"{prefix}high"] - table[f"{prefix}low"]).mean()
    print(title)
    print(f"  expected - obtained     {gap.mean():+.4f} (standard error {error:.4f}; spread {gap.std():.4f})")
    print(f"  90 % interval holds     {table[f'{prefix}holds'].mean():.0%} of {len(table)} redraws")
    print(f"  width of the interval   {width:.4f}")


if __name__ == "__main__":
    cli.run(main)
