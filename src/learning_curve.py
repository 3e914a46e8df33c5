"""How much would more defects help? Expected scores with fewer defects: output/<data>/learning_curve.json.

Of a cheap classifier: logistic regression on pooled features of the model's network. src/report.py and
src/errors.py then show the curve.
"""

import pandas as pd
from tqdm import tqdm

from defects import cli, stages
from defects.evaluation import fewer_defects
from defects.evaluation.fewer_defects import LabelledFeatures
from defects.files import write_json
from defects.training.pooled_features import describe_images, fit_pooled_classifier

DEFAULT_MODEL = "patch_head"  # its network
SEED = 0


def main() -> None:
    parser = cli.experiment_parser(__doc__.split("\n\n")[0])
    parser.add_argument("--draws", type=cli.positive, default=10, help="of each number of defects")
    arguments = parser.parse_args()
    if arguments.data is not None and arguments.model is None:
        arguments.model = DEFAULT_MODEL
    config = cli.config_from(arguments, needs_model=True)
    folds = stages.ensure_tables(config).folds
    labels = folds["label"].to_numpy(dtype=int)
    groups = folds["group"].to_numpy()
    fewer_defects.check_defects(labels, groups)
    images = LabelledFeatures(describe_images(config, folds), labels, groups)
    draws = fewer_defects.score_draws(
        images, fit_pooled_classifier, config.threshold, config.split.folds, arguments.draws, SEED
    )
    total = arguments.draws * len(fewer_defects.list_defect_counts(int(labels.sum())))
    table = pd.DataFrame(tqdm(draws, "draws", total=total, disable=None))
    curve = fewer_defects.build_learning_curve(config, table)
    print("\n".join(fewer_defects.describe_learning_curve(curve)))
    path = config.dataset_dir / fewer_defects.FILE
    write_json(path, curve)
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
