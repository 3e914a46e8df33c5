"""Export a trained fold as PyTorch, ONNX and OpenVINO files, after checking that they score as it does."""

from defects import cli, stages
from defects.deploy.exporter import EXPORT_FORMATS, export
from defects.deploy.parity import MAP_LIMIT, SCORE_LIMIT
from defects.versions import EXPORT_PACKAGES, check_versions


def main() -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument(
        "--fold", default=None, help="a trained fold, or full; default: the first one trained"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=EXPORT_FORMATS, default=[], help="default: all that suit the detector"
    )
    parser.add_argument("--images", type=cli.positive, default=256, help="compared, at most")
    arguments = parser.parse_args()
    check_versions(EXPORT_PACKAGES)
    for run in cli.runs_from(arguments):
        tables = stages.ensure_tables(run.config)
        fold = arguments.fold or next(iter(run.held_out_folds()), "0")
        folder, table = export(run, tables, fold, arguments.formats, arguments.images)
        print(table.to_string())
        limits = f"scores within {SCORE_LIMIT:.0e} of training's, maps within {MAP_LIMIT:.0e}"
        print(f"gate: FP32 {limits}, the same labels but for ties")
        print(f"wrote {folder}")


if __name__ == "__main__":
    cli.run(main)
