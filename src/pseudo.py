"""Label the test images that trained experiments agree on: output/<data.name>/pseudo_<name>.csv.

src/train.py --set train.pseudo=FILE adds them to the training list of each fold, never to what is held out. A
model of fold k learns only labels that models of fold k gave: with labels by models that have seen the
held-out answers, out-of-fold scores would be optimistic.
"""

from defects import cli
from defects.data.pseudo import write_pseudo
from defects.data.split import fold_names
from defects.errors import UserError
from defects.training.pseudo import pseudo_labels


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--experiments", nargs="+", help="folders of output/; default: the config's own")
    parser.add_argument("--positive", type=float, default=0.95, help="defective: this probability or more")
    parser.add_argument("--negative", type=float, default=0.05, help="normal: this probability or less")
    parser.add_argument("--name", default=None, help="of the file; default: the experiments, joined by +")
    arguments = parser.parse_args()
    if not 0 <= arguments.negative < arguments.positive <= 1:
        raise UserError("--negative and --positive: need 0 <= negative < positive <= 1")
    config = cli.config_from(arguments)
    names = list(dict.fromkeys(arguments.experiments or [config.experiment]))
    members = [config.model_copy(update={"experiment": name}) for name in names]
    table = pseudo_labels(members, arguments.positive, arguments.negative)
    path = config.dataset_dir / f"pseudo_{arguments.name or '+'.join(names)}.csv"
    about = {"experiments": names, "positive": arguments.positive, "negative": arguments.negative}
    write_pseudo(config, path, table, about)
    for fold in fold_names(config):
        labels = table.loc[table["fold"] == fold, "label"]
        print(f"fold {fold:6}{(labels == 1).sum():6} defects {(labels == 0).sum():6} normal")
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
