"""Score the test images with the trained folds of each run and write submissions/<run>.csv."""

from accelerate import PartialState

from defects import cli, stages
from defects.config_schema import resolve
from defects.models import build_detector
from defects.runs import Run
from defects.submission.build import build_and_print, load_scores
from defects.training.loop import make_accelerator
from defects.training.scoring import score_test


def main() -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument(
        "--use",
        choices=["folds", "full", "both"],
        default=None,
        help="the models that score; default: the folds, or the full fit where no fold is trained",
    )
    arguments = parser.parse_args()
    for run in stages.ensure_runs(arguments):
        infer(run, arguments.use)


def infer(run: Run, use: str | None) -> None:
    accelerator = make_accelerator(run.config.train)
    tables = stages.ensure_tables(run.config)
    score_test(run, tables.images, use, accelerator)
    if not PartialState().is_main_process:
        return
    print(f"wrote {run.folder / 'test.csv'}")
    if run.config.data.classes and not makes_masks(run):
        return
    path = resolve(run.config.submissions) / f"{run.name}.csv"
    build_and_print([run], tables, load_scores([run], tables), path)


def makes_masks(run: Run) -> bool:
    """Whether the detector marks classes by itself; says so if it does not."""
    detector = build_detector(run.config, pretrained=False)
    if len(detector.targets) == 1:
        print(f"{run.config.model.name} tells no classes apart: there is no submission to be made of it")
    elif not detector.segments:
        print("it makes no masks: name it together with a segmenter's run in src/ensemble.py")
    return detector.segments and len(detector.targets) > 1


if __name__ == "__main__":
    cli.run(main)
