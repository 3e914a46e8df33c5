"""Compare the expected score with the answers, where these are known (demo, MVTec, past competitions).

Only this stage and `compare.py --test` read an answer key. Look once, at the end: choosing by it is leaking.
"""

import argparse
from pathlib import Path

import pandas as pd

from defects import cli, stages
from defects.config_schema import Config, CostConfig, resolve
from defects.data.index import image_sizes
from defects.data.rle import all_pairs, check_runs, read_annotations
from defects.evaluation.claim_records import Claims, format_bound
from defects.evaluation.decision import SHARE_NAMES, Decision
from defects.evaluation.metrics import dice_table, macro_f1, mean_dice
from defects.evaluation.outcome import load_answers, outcome
from defects.evaluation.thresholds import measure_cost
from defects.files import read_csv, same_text, sha256
from defects.messages import UserError
from defects.runs import Run
from defects.submission.summary import open_runs, read_summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--submission", type=Path, default=None, help="default: submissions/sample_submission.csv"
    )
    cli.add_run_options(parser)
    arguments = parser.parse_args()
    path = (arguments.submission or resolve("submissions") / "sample_submission.csv").absolute()
    summary = with_decisions(read_summary(path), path)
    runs = open_runs(summary, arguments.output, arguments.set)
    images = stages.ensure_images(runs[0].config)
    if runs[0].config.data.classes:
        evaluate_masks(runs[0].config, images, path, summary)
    else:
        evaluate_answers(runs, images, path, summary)


def evaluate_masks(config: Config, images: pd.DataFrame, path: Path, summary: dict) -> None:
    """The expected Dice of what is submitted; then Dice with and without tuning, out of fold and obtained."""
    classes = config.data.classes
    if config.data.answers is None:
        raise UserError("data.answers is missing: name the answer key with --set data.answers=FILE")
    key = resolve(config.data.answers)
    sizes = image_sizes(images[images["split"] == "test"])
    files = {"tuned": path.with_suffix(".tuned.csv"), "untuned": path.with_suffix(".untuned.csv")}
    truth = read_masks_of(config, key, sizes)
    obtained_dice = {
        name: mean_dice(dice_table(read_masks_of(config, file, sizes), truth, sizes))
        for name, file in files.items()
    }
    check_files({file: summary.get("files", {}).get(name) for name, file in files.items()})
    obtained = obtained_dice[summary["chosen"]]["dice"]
    print_lines(decision_lines(summary["decision"], obtained, "test Dice"))
    expected = {"tuned": summary["estimate"]["tuned_nested"], "untuned": summary["estimate"]["untuned"]}
    print(f"{'Dice':24}{'all pairs':>12}{'not empty':>12}" + "".join(map(class_title, classes)))
    for name in obtained_dice:
        print_dice(f"{name}, out of fold", expected[name], classes)
        print_dice(f"{name}, test", obtained_dice[name], classes)


def read_masks_of(config: Config, path: Path, sizes: pd.Series) -> pd.DataFrame:
    """The long table of a file, with a row for every image and class. UserError for runs that are no mask."""
    classes = config.data.classes
    table = read_annotations(path, classes, set(sizes.index), config.data.unlisted_classes)
    table = table[table["target"].isin(classes)]
    check_runs(table, sizes, path)
    return all_pairs(table, sizes.index, classes)


def print_dice(title: str, dice: dict | None, classes: list[str]) -> None:
    """Means over all pairs, over those that are not empty, and over these of each class."""
    figures = [None] * (2 + len(classes))
    if dice is not None:
        of_classes = [dice["classes"][name]["dice_non_empty"] for name in classes]
        figures = [dice["dice"], dice["dice_non_empty"], *of_classes]
    widths = [12, 12, *(len(class_title(name)) for name in classes)]
    texts = ["-" if value is None else f"{value:.4f}" for value in figures]
    print(f"{title:24}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True)))


def class_title(name: str) -> str:
    """The head of a class's column, as wide as the name takes."""
    return f"{f'  class {name}':>12}"


def evaluate_answers(runs: list[Run], images: pd.DataFrame, path: Path, summary: dict) -> None:
    submission = read_csv(path, ["ImageId", "answer"], "src/ensemble.py")
    submission["image_id"] = submission["ImageId"].map(same_text)
    scores_file = path.with_suffix(".scores.csv")
    scores = read_csv(scores_file, ["image_id", "score"], "src/ensemble.py")
    check_files({path: summary.get("sha256"), scores_file: summary.get("scores_sha256")})
    answers = load_answers(runs[0].config, images)
    table = submission.merge(scores, on="image_id").merge(answers, on="image_id", how="left")
    if table["label"].isna().any():
        raise UserError(f"the answer key lacks {int(table['label'].isna().sum())} of the submission's images")
    share = float(images.loc[images["split"] == "train", "label"].astype(float).mean())
    decisions = summary["decisions"]
    training_threshold = decisions["train"].score_threshold
    plain = table.assign(answer=(table["score"] >= training_threshold).astype(int))
    # What is expected at the training share is about the threshold for it, whichever was submitted.
    at_share = outcome(plain, share)["macro_f1_at_training_share"]
    result = outcome(table, share) | {"macro_f1_at_training_share": at_share}
    submitted = summary["decision"]
    claims = read_claims(summary, path).get(submitted.prior)
    print_lines(outcome_lines(submitted, decisions, result, table, claims))
    print(f"submission {path}\nruns       {', '.join(str(run.folder) for run in runs)}")


def with_decisions(summary: dict, path: Path) -> dict:
    """The JSON of a submission, its decisions as such. Raises UserError if it is not whole."""
    try:
        decisions = {name: Decision.from_json(values) for name, values in summary["decisions"].items()}
        return summary | {"decision": Decision.from_json(summary["decision"]), "decisions": decisions}
    except (LookupError, TypeError, AttributeError):
        raise UserError(
            f"{path.with_suffix('.json')} is not whole, or of an older version: run src/ensemble.py again"
        ) from None


def check_files(expected: dict[Path, str | None]) -> None:
    """UserError for a file whose sha256 is not the one in the JSON beside it; None: the JSON knows none."""
    for path, digest in expected.items():
        if digest is not None and sha256(path) != digest:
            raise UserError(
                f"{path} is not the file that the JSON beside it describes, which was written last: run "
                "src/ensemble.py again"
            )


def outcome_lines(
    submitted: Decision,
    decisions: dict[str, Decision],
    result: dict,
    table: pd.DataFrame,
    claims: Claims | None,
) -> list[tuple[str, str]]:
    """Titles and values: the expected score, whether its interval contains the result, then the result.

    `result` is the outcome of the submission; its macro-F1 at the training share is that of the threshold for
    this share. `claims` are those of the submitted decision.
    """
    at_share = result["macro_f1_at_training_share"]
    lines = []
    if submitted.prior == "estimated":
        lines += decision_lines(submitted, result["macro_f1"], "test macro-F1")
    lines += decision_lines(decisions["train"], at_share, "test macro-F1 at that share")
    lines.append(("test macro-F1", f"{result['macro_f1']:.4f}"))
    lines += threshold_lines(decisions, table)
    if at_share is not None:
        share = f"  at the training share of defects ({result['training_share']:.1%})"
        lines.append((share, f"{at_share:.4f}"))
    lines.append(("  at the best possible threshold", f"{result['macro_f1_best_threshold']:.4f}"))
    lines.append(("test AUROC", f"{result['auroc']:.4f}" if result["auroc"] is not None else "-"))
    return lines + error_lines(submitted, claims, table)


def decision_lines(decision: Decision, obtained: float | None, name: str) -> list[tuple[str, str]]:
    """The expected score, its interval, and whether that contains the score obtained, the one of `name`."""
    title = f"expected {decision.metric} ({SHARE_NAMES[decision.prior]}, {decision.share:.1%})"
    if decision.expected_score is None:
        return [(title, "unknown"), ("  needs defects and two trained folds: src/train.py --fold all", "")]
    lines = [(title, f"{decision.expected_score:.4f}")]
    if decision.interval_90 is not None:
        low, high = decision.interval_90
        lines.append(("  its 90 % interval", f"{low:.4f} - {high:.4f}"))
        if obtained is not None:
            lines.append((f"  interval contains the {name}", "yes" if low <= obtained <= high else "no"))
    return lines


def threshold_lines(decisions: dict[str, Decision], table: pd.DataFrame) -> list[tuple[str, str]]:
    """Plain macro-F1 of each threshold; none where there is but one."""
    if len(decisions) == 1:
        return []
    labels = table["label"].to_numpy(dtype=int)
    scores = table["score"].to_numpy()
    lines = []
    for prior, decision in decisions.items():
        title = f"  by the threshold for the {SHARE_NAMES[prior]} ({decision.share:.1%})"
        lines.append((title, f"{macro_f1(labels, scores >= decision.score_threshold):.4f}"))
    return lines


def error_lines(submitted: Decision, claims: Claims | None, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Escapes and false alarms beside what was claimed of them, and their cost if it chose the threshold."""
    labels = table["label"].to_numpy(dtype=int)
    answers = table["answer"].to_numpy(dtype=int)
    rates = {
        "test defects that escaped": (answers[labels == 1] == 0, claims and claims.escape),
        "test normal images rejected": (answers[labels == 0] == 1, claims and claims.false_alarm),
    }
    lines = []
    for title, (is_error, bound) in rates.items():
        claimed = "" if bound is None else f", at most {format_bound(bound.upper)} claimed"
        value = f"{is_error.mean():.2%}" if len(is_error) else "-"
        lines.append((f"{title}{claimed}", value))
    if submitted.costs is not None:
        cost = measure_cost(labels, answers, CostConfig(**submitted.costs), submitted.share)
        expected = "" if submitted.expected_cost is None else f", {submitted.expected_cost:.4g} expected"
        lines.append((f"test cost of an image{expected}", "-" if cost is None else f"{cost:.4g}"))
    return lines


def read_claims(summary: dict, path: Path) -> dict[str, Claims]:
    """What was claimed of each decision; empty in the JSON of an earlier version."""
    try:
        return {name: Claims.from_json(values) for name, values in summary.get("claims", {}).items()}
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{path.with_suffix('.json')} is not whole: run src/ensemble.py again") from None


def print_lines(lines: list[tuple[str, str]]) -> None:
    for title, value in lines:
        print(f"{title:52}{value:>16}")


if __name__ == "__main__":
    cli.run(main)
