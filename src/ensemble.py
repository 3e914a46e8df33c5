"""Blend runs on out-of-fold scores: submissions/sample_submission.csv and its JSON.

The settings of the blend and of the threshold are those of the first run. The first time it also compares the
training images with the test images, as src/explore.py does.
"""

from defects import cli, stages
from defects.config_schema import resolve
from defects.evaluation.adversarial import stored_comparison
from defects.reports.adversarial_report import write_adversarial
from defects.runs import check_same_data
from defects.submission.build import build_and_print, load_scores


def main() -> None:
    arguments = cli.run_parser(__doc__).parse_args()
    runs = stages.ensure_runs(arguments)
    check_same_data(runs)
    config = runs[0].config
    tables = stages.ensure_tables(config)
    stages.ensure_test_scores(runs, tables.images)
    scores = load_scores(runs, tables)  # before the comparison, which takes a while: it names missing files
    if config.ensemble.compare and stored_comparison(config) is None:
        write_adversarial(config, tables)
    build_and_print(runs, tables, scores, resolve(config.submissions) / "sample_submission.csv")


if __name__ == "__main__":
    cli.run(main)
