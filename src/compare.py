"""Put runs on one data set side by side: output/<data.name>/compare.md, .csv, .html and .png.

With --test the answer key of the test images is read, as otherwise by src/evaluate.py only. Look once, at the
end: choosing by it is leaking.
"""

from argparse import Namespace

from defects import cli, stages
from defects.messages import UserError, shorten_names
from defects.reports.comparison import group_by_category, measure_runs, write_comparison
from defects.runs import Run, find_runs, list_runs


def main() -> None:
    parser = cli.run_parser(__doc__, default="all that are trained on the data set")
    parser.add_argument("--data", default=None, help="a data set's name, if runs on several are trained")
    parser.add_argument("--test", action="store_true", help="add figures of the test images")
    arguments = parser.parse_args()
    studies = group_by_category(runs_to_compare(arguments))
    values = measure_runs(studies, stages.ensure_tables, arguments.test)
    config = studies[0][0].config
    name = config.data.whole_name
    paths, table = write_comparison(values, name, config.output_dir / name)
    print(table)
    for path in paths:
        print(f"wrote {path}")


def runs_to_compare(arguments: Namespace) -> list[Run]:
    """Those named, or all that are trained on --data, which may be left out where there is but one."""
    output = cli.output_folder(arguments)
    if arguments.runs:
        return find_runs(arguments.runs, output, arguments.set)
    trained = find_runs(list_runs(output), output, arguments.set)
    names = sorted({run.config.data.whole_name for run in trained})
    name = arguments.data
    if name is None and len(names) == 1:
        name = names[0]
    if not trained or name not in names:
        trained_on = shorten_names(names) or "no data set yet: run src/train.py first"
        option = "name runs, or a data set with --data" if name is None else f"--data {name}"
        raise UserError(f"{option}: the runs in {output} are trained on {trained_on}")
    return [run for run in trained if run.config.data.whole_name == name]


if __name__ == "__main__":
    cli.run(main)
