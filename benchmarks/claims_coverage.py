"""How often what is claimed holds: training images drawn anew, from labelled ones or a known distribution.

Each redraw takes whole groups of siblings, up to as many defects and normal images as the training set has,
makes folds, and scores the remaining images as test images. What src/ensemble.py says before the answers are
known is compared with what the answers say: the 90 % interval of macro-F1 (for the training share of defects,
and for the share estimated from the test scores), and the 95 % upper bounds of escapes and false alarms. The
member is cheap enough for that: logistic regression on pooled features of the configuration's network, which
are kept in the data set's folder. The answer key is read; nothing is chosen by it.

With --simulation images are drawn from scenarios in which the rates of errors are known, and the size a90
that is detected with a probability of 90 %: there a90/95 is checked too.

python benchmarks/claims_coverage.py --data magnetic_tile --model patch_head --set data.answers=KEY
python benchmarks/claims_coverage.py --data aitex --model patch_head --training-only
python benchmarks/claims_coverage.py --simulation
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import norm
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from defects import cli, stages  # noqa: E402
from defects.config_schema import ClaimsConfig, Config, ThresholdConfig  # noqa: E402
from defects.data.duplicates import group_ids  # noqa: E402
from defects.data.fold_files import find_duplicates  # noqa: E402
from defects.data.folds import assign_folds, find_stated_groups  # noqa: E402
from defects.evaluation.acceptance import Predictions, bound_errors  # noqa: E402
from defects.evaluation.blend import Ensemble, OutOfFoldScores  # noqa: E402
from defects.evaluation.detection_by_size import fit_detection_curve  # noqa: E402
from defects.evaluation.metrics import interval, macro_f1, share_weights  # noqa: E402
from defects.evaluation.outcome import load_answers  # noqa: E402
from defects.evaluation.scales import compute_run_scores  # noqa: E402
from defects.evaluation.threshold_uncertainty import Inflation, measure_inflation, measure_rates  # noqa: E402
from defects.evaluation.thresholds import (  # noqa: E402
    choose_threshold,
    decide_for_shares,
    estimate_prior_shift,
    nested_predictions,
)
from defects.files import write_csv  # noqa: E402
from defects.training.pooled_features import describe_images, fit_pooled_classifier  # noqa: E402

CONFIDENCE = ClaimsConfig().confidence
SIMULATED_FOLDS = 5
SIMULATED_TEST_IMAGES = 1000


def main() -> None:
    parser = cli.experiment_parser(__doc__.splitlines()[0])
    parser.add_argument("--redraws", type=cli.positive, default=200)
    parser.add_argument(
        "--training-only",
        action="store_true",
        help="redraw half of the training images, whose groups are known",
    )
    parser.add_argument("--simulation", action="store_true", help="known distributions in place of images")
    arguments = parser.parse_args()
    if arguments.simulation:
        simulate_scenarios(arguments.redraws)
        return
    config = cli.config_from(arguments, needs_model=True)
    images = stages.ensure_images(config)
    if arguments.training_only:
        images = stages.ensure_tables(config).folds
    else:
        images = load_labelled_images(config, images)
    features = load_features(config, images)
    redraws = tqdm(range(arguments.redraws), "redraws", disable=None)
    table = pd.DataFrame([redraw(config, images, features, seed) for seed in redraws])
    path = config.dataset_dir / "claims_coverage.csv"
    write_csv(path, table)
    report_intervals(table)
    report_bounds(table)
    print(f"wrote {path}")


# --- labelled images ----------------------------------------------------------------------------------------


def load_labelled_images(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """images.csv with the answers filled in, and the groups of siblings over all images."""
    images = images.reset_index(drop=True)
    answers = load_answers(config, images).set_index("image_id")["label"]
    label = images["label"].astype(float).fillna(images["image_id"].map(answers))
    images = images.assign(label=label).dropna(subset="label").reset_index(drop=True)
    is_stated = config.split.group_file is not None or config.split.group_pattern is not None
    if is_stated and find_unmatched(config, images).any():
        print("note: test images have no stated group: siblings are searched for")
        is_stated = False
    if is_stated:
        groups = find_stated_groups(images, config.split).to_numpy()
    else:
        groups = group_ids(len(images), find_duplicates(config, images))
    return images.assign(label=images["label"].astype(int), group=groups)


def find_unmatched(config: Config, images: pd.DataFrame) -> pd.Series:
    """bool [N]: images that split.group_pattern gives no group."""
    if config.split.group_pattern is None:
        return pd.Series(False, images.index)
    return images["image_id"].map(re.compile(config.split.group_pattern).search).isna()


def load_features(config: Config, images: pd.DataFrame) -> np.ndarray:
    """float32 [N, D], computed the first time."""
    path = config.dataset_dir / f"pooled_features_{len(images)}_{config.model.backbone.name}.npy"
    if not path.exists():
        np.save(path, describe_images(config, images))
    return np.load(path)


def redraw(config: Config, images: pd.DataFrame, features: np.ndarray, seed: int) -> dict[str, float]:
    """What is expected and what is obtained, of one redraw."""
    is_train = draw_groups(images, seed)
    train = images[is_train]
    test = images[~is_train]
    share = float(images.loc[images["split"] == "train", "label"].mean())
    targets = np.column_stack([train["label"], 1 - train["label"]])
    folds = assign_folds(train["group"].to_numpy(), targets, config.split.folds, seed)
    oof_tables = []
    test_tables = []
    for fold in range(config.split.folds):
        is_val = folds == fold
        model = fit_pooled_classifier(features[is_train][~is_val], train["label"][~is_val])
        oof_tables.append(score_images(model, train[is_val], features[is_train][is_val], fold))
        test_tables.append(score_images(model, test, features[~is_train], fold))
    oof, scores = compute_run_scores(
        pd.concat(oof_tables, ignore_index=True), pd.concat(test_tables, ignore_index=True)
    )
    labels = train["label"].to_numpy()
    groups = train["group"].to_numpy()
    oof_scores = oof.reindex(train["image_id"]).to_numpy()
    test_scores = scores.reindex(test["image_id"]).to_numpy()
    test_labels = test["label"].to_numpy()
    sample = OutOfFoldScores(labels, oof_scores[:, None], folds.astype(str), groups)
    ensemble = Ensemble(["member"], sample, config.ensemble, config.threshold)
    prior = estimate_prior_shift(labels, oof_scores, test_scores, config.threshold)
    decisions = decide_for_shares(
        labels, oof_scores, groups, test_scores, ensemble.predict_nested, config.threshold, prior
    )
    predicted = (test_scores >= decisions["train"].score_threshold).astype(int)
    low, high = decisions["train"].interval_90
    row = {
        "seed": seed,
        "defects": int(labels.sum()),
        "defect_groups": train.loc[train["label"] == 1, "group"].nunique(),
        "expected": decisions["train"].expected_score,
        "low": low,
        "high": high,
        "obtained": macro_f1(test_labels, predicted, share_weights(test_labels, share)),
    }
    nested = ensemble.predict_nested()
    inflation = measure_inflation(labels, oof_scores, folds, groups, config.threshold, seed=seed)
    row |= compare_rates(labels, nested, groups, inflation, test_labels, predicted)
    if "estimated" in decisions:
        decision = decisions["estimated"]
        answers = (test_scores >= decision.score_threshold).astype(int)
        row |= {
            "is_doubted": prior["doubt"] is not None,
            "share_expected": decision.expected_score,
            "share_low": decision.interval_90[0],
            "share_high": decision.interval_90[1],
            "share_obtained": macro_f1(test_labels, answers),
        }
    return row


def draw_groups(images: pd.DataFrame, seed: int) -> np.ndarray:
    """bool [N]: whole groups at random, as long as they fit into the training set's counts.

    Of training images alone into half of these.
    """
    is_training = images["split"] == "train"
    wanted = images.loc[is_training, "label"].value_counts()
    if is_training.all():
        wanted //= 2
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


def score_images(model, rows: pd.DataFrame, features: np.ndarray, fold: int) -> pd.DataFrame:
    """image_id, fold, probability of `rows`."""
    probability = model.predict_proba(features)[:, 1]
    return pd.DataFrame({"image_id": rows["image_id"], "fold": str(fold), "probability": probability})


def compare_rates(
    labels: np.ndarray,
    nested: np.ndarray,
    groups: np.ndarray,
    inflation: Inflation,
    test_labels: np.ndarray,
    predicted: np.ndarray,
) -> dict[str, float]:
    """Rates and bounds out of fold, and rates of `predicted` test images.

    `binomial` bounds are without inflation, `independent` ones also without groups.
    """
    row = {}
    obtained = measure_rates(test_labels, predicted)
    bounds = bound_errors(Predictions(labels, nested, inflation), groups, CONFIDENCE)
    binomial_bounds = bound_errors(Predictions(labels, nested), groups, CONFIDENCE)
    independent = np.arange(len(labels))
    independent_bounds = bound_errors(Predictions(labels, nested), independent, CONFIDENCE)
    for name in ("escape", "false_alarm"):
        row[name] = getattr(bounds, name).rate
        row[f"{name}_upper"] = getattr(bounds, name).upper
        row[f"{name}_binomial"] = getattr(binomial_bounds, name).upper
        row[f"{name}_independent"] = getattr(independent_bounds, name).upper
        row[f"{name}_obtained"] = getattr(obtained, name)
        row[f"{name}_inflation"] = getattr(inflation, name)
    return row


# --- simulation ---------------------------------------------------------------------------------------------


class Scenario(NamedTuple):
    """Scores are normal with deviation 1: part of a group's, the rest of the image's own.

    Normal images have the mean 0, defects one that grows with the logarithm of their size.
    """

    title: str
    defects: int
    normal: int
    siblings: int  # images of an object at most; their number is uniform from 1
    correlation: float  # of the scores of siblings
    mean: float  # of defects of the median size, which is 20
    slope: float  # by which the mean grows while the logarithm of the size grows by one
    spread: float = 0.8  # deviation of the logarithm of the size

    def detection_probability(self, log_sizes: np.ndarray, threshold: float) -> np.ndarray:
        return norm.cdf(self.mean + self.slope * (log_sizes - np.log(20)) - threshold)

    def escape_rate(self, threshold: float) -> float:
        return float(norm.cdf((threshold - self.mean) / np.hypot(1, self.slope * self.spread)))

    def a90(self, threshold: float) -> float:
        log_size = brentq(lambda value: self.detection_probability(value, threshold) - 0.9, -30, 60)
        return float(np.exp(log_size))


SCENARIOS = [
    Scenario("30 defects", 30, 600, 1, 0.0, 3.5, 1.5),
    Scenario("30 defects, easy", 30, 600, 1, 0.0, 6.0, 1.5),
    Scenario("30 defects, hard", 30, 600, 1, 0.0, 2.0, 1.0),
    Scenario("30 defects, siblings alike", 30, 600, 5, 1.0, 3.5, 1.5),
    Scenario("30 defects, siblings of correlation 0.7", 30, 600, 5, 0.7, 3.5, 1.5),
    Scenario("60 defects", 60, 600, 1, 0.0, 3.5, 1.5),
    Scenario("60 defects, siblings of correlation 0.7", 60, 600, 5, 0.7, 3.5, 1.5),
    Scenario("200 defects", 200, 2000, 1, 0.0, 3.5, 1.5),
]


def simulate_scenarios(redraws: int) -> None:
    """Print how often the claims hold in each scenario."""
    for number, scenario in enumerate(SCENARIOS):
        seeds = tqdm(range(redraws), scenario.title, disable=None, leave=False)
        table = pd.DataFrame([simulate(scenario, 1000 * number + seed) for seed in seeds])
        print(
            f"--- {scenario.title}: escapes {table['escape_obtained'].mean():.1%}, false alarms "
            f"{table['false_alarm_obtained'].mean():.2%}"
        )
        report_intervals(table)
        report_bounds(table)
        report_sizes(table)


def simulate(scenario: Scenario, seed: int) -> dict[str, float]:
    """What is expected and what is true, of one data set drawn from a scenario."""
    random = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [scenario.defects, scenario.normal])
    defect_groups = draw_sibling_groups(scenario.defects, scenario.siblings, random)
    normal_groups = draw_sibling_groups(scenario.normal, scenario.siblings, random)
    groups = np.concatenate([defect_groups, normal_groups + scenario.defects])
    log_sizes, scores = draw_scores(scenario, labels, groups, random)
    folds = assign_folds(groups, np.column_stack([labels, 1 - labels]), SIMULATED_FOLDS, seed)
    settings = ThresholdConfig()
    nested = nested_predictions(labels, scores, folds, settings)
    threshold = choose_threshold(labels, scores, settings)
    share = labels.mean()
    low, high = interval(labels, nested, groups, new_images=SIMULATED_TEST_IMAGES)
    test_labels = (np.arange(SIMULATED_TEST_IMAGES) < round(share * SIMULATED_TEST_IMAGES)).astype(int)
    _, test_scores = draw_scores(scenario, test_labels, np.arange(SIMULATED_TEST_IMAGES), random)
    inflation = measure_inflation(labels, scores, folds, groups, settings, seed=seed)
    predicted = (test_scores >= threshold).astype(int)
    row = compare_rates(labels, nested, groups, inflation, test_labels, predicted)
    is_defect = labels == 1
    curve = fit_detection_curve(np.exp(log_sizes[is_defect]), nested[is_defect] == 1, groups[is_defect])
    return row | {
        "expected": macro_f1(labels, nested),
        "low": low,
        "high": high,
        "obtained": macro_f1(test_labels, test_scores >= threshold),
        "escape_obtained": scenario.escape_rate(threshold),
        "false_alarm_obtained": float(norm.sf(threshold)),
        "a90": scenario.a90(threshold),
        "a90_95": np.nan if curve.a90_95 is None else curve.a90_95,
    }


def draw_sibling_groups(images: int, most: int, random: np.random.Generator) -> np.ndarray:
    """Group numbers [images], below `images`: groups of 1 to `most` images."""
    sizes = random.integers(1, most + 1, images)
    return np.repeat(np.arange(images), sizes)[:images]


def draw_scores(
    scenario: Scenario, labels: np.ndarray, groups: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of sizes and scores [N]; siblings have the same size."""
    log_sizes = np.log(20) + scenario.spread * random.normal(size=groups.max() + 1)[groups]
    shared = random.normal(size=groups.max() + 1)[groups]
    own = random.normal(size=len(labels))
    noise = np.sqrt(scenario.correlation) * shared + np.sqrt(1 - scenario.correlation) * own
    mean = scenario.mean + scenario.slope * (log_sizes - np.log(20))
    return log_sizes, np.where(labels == 1, mean, 0.0) + noise


# --- figures ------------------------------------------------------------------------------------------------


def report_intervals(table: pd.DataFrame) -> None:
    """How often the intervals of macro-F1 contain the score obtained."""
    parts = {"macro-F1, training share": ("", table)}
    if "share_low" in table:
        is_trusted = table["share_low"].notna() & ~table["is_doubted"].fillna(True).astype(bool)
        parts["macro-F1, estimated share"] = ("share_", table[is_trusted])
    for title, (prefix, rows) in parts.items():
        obtained = rows[f"{prefix}obtained"]
        is_inside = (rows[f"{prefix}low"] <= obtained) & (obtained <= rows[f"{prefix}high"])
        gap = rows[f"{prefix}expected"] - obtained
        width = (rows[f"{prefix}high"] - rows[f"{prefix}low"]).mean()
        print(
            f"{title:28} 90 % interval holds {is_inside.mean():6.1%} of {len(rows)}, width {width:.3f}, "
            f"expected - obtained {gap.mean():+.3f} (spread {gap.std():.3f})"
        )


def report_bounds(table: pd.DataFrame) -> None:
    """How often the upper bounds of the rates hold, and by how much they are too high."""
    for name in ("escape", "false_alarm"):
        obtained = table[f"{name}_obtained"]
        for kind in ("upper", "binomial", "independent"):
            upper = table[f"{name}_{kind}"]
            title = f"{name.replace('_', ' ')}, {kind}"
            print(
                f"{title:28} bound holds       {(obtained <= upper).mean():6.1%} of {len(table)}, "
                f"mean {upper.mean():.4f}, obtained {obtained.mean():.4f}, estimated {table[name].mean():.4f}"
            )


def report_sizes(table: pd.DataFrame) -> None:
    """How often a90/95 lies above the true a90; a bound that cannot be said holds."""
    is_said = table["a90_95"].notna()
    holds = ~(table["a90_95"] < table["a90"])
    ratio = (table["a90_95"] / table["a90"])[is_said].median()
    print(
        f"{'a90/95':28} above true a90    {holds.mean():6.1%} of {len(table)}, said in {is_said.mean():.0%}, "
        f"then {holds[is_said].mean():.1%}; median {ratio:.2f} times a90"
    )


if __name__ == "__main__":
    cli.run(main)
