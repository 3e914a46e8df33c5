"""All stages on one folder: what it is, a plan for the minutes, training, scores, report, export.

Everything between the stages lies where the single commands put it, so that each of them goes on from here.
`output/<name>/start.json` keeps the plan: the same command, interrupted, goes on with it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from defects import stages
from defects.config import load_config
from defects.config_schema import Config, as_yaml, resolve
from defects.data.fold_files import DataTables
from defects.data.index import prepare, training_sha256
from defects.deploy.exporter import export
from defects.deploy.model import META
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.claim_records import summarise_claims
from defects.files import read_json, remove, sha256, write_bytes, write_json
from defects.messages import UserError
from defects.reports.adversarial_report import write_adversarial
from defects.reports.html import write_page
from defects.reports.run_report import build_run_report, load_run_tables
from defects.runs import FULL, Run, fold_names
from defects.stamps import content_of
from defects.start.choice import Choice, choose_detector
from defects.start.contents import Recognised, check_is_folder, only_defects_text
from defects.start.description import (
    DATA_FILES,
    choose_data_file,
    choose_image_size,
    compose_data_file,
    content_sha256,
)
from defects.start.planning import (
    NORMAL_ONLY,
    RECIPE,
    Counts,
    Plan,
    choose_plan,
    format_seconds,
    measure_speed,
)
from defects.start.recognition import recognise
from defects.submission.build import build_and_print, load_scores
from defects.training.fold import train_fold
from defects.training.loop import make_accelerator
from defects.training.scoring import score_test
from defects.training.sweep_jobs import load_sweep

DEFAULT_MINUTES = 20.0
STATE_FILE = "start.json"
MOST_FOLDS = 5
LEAST_NORMAL = 10  # images, for a detector and a claim that are worth the name
LEAST_DEFECTS = 5  # images to learn from; fewer only test the detector of normal images
STEADY_SECONDS = 60.0  # of a training; a shorter one says less of how long the next will take
EXPORT_FORMATS = ["onnx", "openvino"]
PLANNED = ("data.image_size", "split.folds")  # settings of the plan that the data file holds
EXPORT_IMAGES = 64  # compared with training's scores


@dataclass
class State:
    """start.json: what this command has written for a data set, and planned."""

    path: Path
    data_file: str | None = None  # sha256 of the data file as this command wrote it last
    draft: str | None = None  # sha256 of its text before the plan was put into it
    minutes: float | None = None
    made_from: dict[str, Any] = field(default_factory=dict)  # what the plan is for
    plan: Plan | None = None
    runs: dict[str, str] = field(default_factory=dict)  # what each run was begun with, by its name

    @classmethod
    def read(cls, path: Path) -> "State":
        values = read_json(path) or {}
        try:
            plan = values.get("plan")
            return cls(path, **values | {"plan": None if plan is None else Plan.from_json(plan)})
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{path} is damaged: delete it, and run the same command again") from None

    def write(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "path"}
        write_json(self.path, values | {"plan": None if self.plan is None else self.plan.to_json()})


def start(
    folder: Path,
    minutes: float | None = None,
    name: str | None = None,
    overrides: list[str] | None = None,
    data_files: Path = DATA_FILES,
) -> None:
    """Everything, from a folder of images to a model and what may be expected of it.

    `minutes` None: as in an earlier run of this command, or DEFAULT_MINUTES. `name` None: made from the
    folder's. `overrides` are `key=value` for all detectors. Raises UserError for what cannot be used.
    """
    began = time.monotonic()
    check_is_folder(folder)
    overrides = overrides or []
    output = find_output(overrides)
    path = choose_data_file(folder, name, output, data_files)
    state = State.read(output / path.stem / STATE_FILE)
    is_own = describe_data(folder, path, state)
    is_free = is_own and not any(names_setting(text, PLANNED) for text in overrides)
    models = load_sweep(RECIPE).models

    def load(model: str, more: list[str]) -> Config:
        return load_config(None, [*overrides, *more], str(path), model)

    config = load(NORMAL_ONLY, [])
    if config.data.classes:
        raise UserError(
            f"{show_path(path)} has data.classes, and this command tells defective and normal images apart: "
            f"remove it, or train the classes: python src/train.py --data {path.stem} "
            "--model classifier_reduced --set train.synthetic=0 --fold all"
        )
    print(f"data file   {show_path(path)}: correct it where it is wrong, and run this again")
    images = prepare_described(config, path, is_own)
    counts = count_images(config, images)
    minutes = minutes or state.minutes or DEFAULT_MINUTES
    made_from = {
        "minutes": minutes,
        "overrides": overrides,
        "images": content_of(config.dataset_dir / "images.csv"),
    }
    if state.plan is None or state.made_from != made_from | {"data_file": content_sha256(path)}:
        state.plan = make_plan(
            load, models, counts, images, is_free, 60 * minutes - (time.monotonic() - began)
        )
        if is_free:
            write_planned(folder, path, state)
        state.minutes = minutes
        state.made_from = made_from | {"data_file": content_sha256(path)}
        state.write()
    print("\n".join(state.plan.describe(minutes)))
    config = load(NORMAL_ONLY, [])
    tables = stages.ensure_tables(config)
    runs = train_all(load, tables, state, began + 60 * minutes)
    submission = score_and_blend(runs, tables) if counts.test else None
    choice = choose_detector(runs, tables)
    exported, report = finish(choice.run, tables)
    print()
    print("\n".join(list_results(choice, counts, submission, report, exported)))
    print(f"took {format_seconds(time.monotonic() - began)}")


def find_output(overrides: list[str]) -> Path:
    """The folder that holds the runs, by `output=FOLDER` among the settings."""
    places = [text.partition("=")[2] for text in overrides if names_setting(text, ("output",))]
    return resolve(places[-1].strip() if places else "output")


def names_setting(override: str, keys: Collection[str]) -> bool:
    """Whether a `key=value` sets one of `keys`."""
    return override.partition("=")[0].strip() in keys


# --- the data -----------------------------------------------------------------------------------------------


def describe_data(folder: Path, path: Path, state: State) -> bool:
    """Write the data file unless a person has; whether it is this command's own."""
    is_there = path.exists()
    if is_there and content_sha256(path) != state.data_file:
        print(f"data        as {show_path(path)} says")
        return False
    recognised = recognise(folder)
    text = draft_data_file(recognised, path)
    draft = hashlib.sha256(text.encode()).hexdigest()
    print(f"data        {recognised.root}: {'; '.join(recognised.lines)}")
    if is_there and draft == state.draft:
        return True
    write_own(path, text, state)
    state.draft = draft
    state.plan = None
    state.write()
    return True


def draft_data_file(recognised: Recognised, path: Path) -> str:
    size = choose_image_size(recognised.root)
    return compose_data_file(recognised, size, None, path.parent)


def write_own(path: Path, text: str, state: State) -> None:
    """The state first: a file that it does not know would count as a person's."""
    state.data_file = hashlib.sha256(text.encode()).hexdigest()
    state.write()
    write_bytes(path, text.encode())


def write_planned(folder: Path, path: Path, state: State) -> None:
    """The data file with the plan's folds and image size, where they are not the usual ones."""
    recognised = recognise(folder)
    folds = None if state.plan.folds == MOST_FOLDS else state.plan.folds
    write_own(path, compose_data_file(recognised, state.plan.image_size, folds, path.parent), state)


def prepare_described(config: Config, path: Path, is_own: bool) -> pd.DataFrame:
    """images.csv. UserError for data that are not as `path` says, with what to do if a person wrote it."""
    try:
        return prepare(config)
    except UserError as error:
        if is_own:
            raise
        raise UserError(
            f"{error} (so says {show_path(path)}: correct it, or choose another --name)"
        ) from None


def count_images(config: Config, images: pd.DataFrame) -> Counts:
    """Raises UserError where normal images are missing or too few."""
    training = images[images["split"] == "train"]
    counts = Counts(
        normal=int((training["label"] == 0).sum()),
        defects=int((training["label"] == 1).sum()),
        test=int((images["split"] == "test").sum()),
    )
    root = resolve(config.data.root)
    if counts.defects and not counts.normal and config.data.annotations is not None:
        raise UserError(
            f"{root}: the annotations name no normal image, and every detector here needs some: put normal "
            f"images into {root / 'good'}, or save them in the annotation tool without a mark"
        )
    if counts.defects and not counts.normal:
        raise UserError(only_defects_text(root))
    if counts.normal < LEAST_NORMAL:
        raise UserError(
            f"{root} holds {counts.normal} normal images to learn from: {LEAST_NORMAL} are the fewest, fifty "
            "a start"
        )
    return counts


# --- the plan -----------------------------------------------------------------------------------------------


def make_plan(
    load: Callable[[str, list[str]], Config],
    models: list[str],
    counts: Counts,
    images: pd.DataFrame,
    is_free: bool,
    seconds: float,
) -> Plan:
    """What fits into `seconds`. `is_free`: folds and image size may be changed."""
    if counts.defects < LEAST_DEFECTS:
        text = (
            f"{counts.defects} defects are too few to learn from"
            if counts.defects
            else "there are no defects"
        )
        print(f"note: {text}: {NORMAL_ONLY} learns from the normal images alone")
        models = [NORMAL_ONLY]
    base = load(NORMAL_ONLY, [])
    root = resolve(base.data.root)
    if is_free:
        folds = fit_folds(load, images, min(MOST_FOLDS, counts.normal, counts.defects or MOST_FOLDS))
        height, width = choose_image_size(root)  # the data file holds that of an earlier plan
        base = load(NORMAL_ONLY, [f"split.folds={folds}", f"data.image_size=[{height}, {width}]"])
    files = [root / path for path in images.loc[images["split"] == "train", "path"]]
    speed = measure_speed(load("classifier_reduced", []), files)
    plan = choose_plan(models, base, not is_free, load, counts, speed, seconds)
    left_out = [name for name in models if name not in plan.settings]
    if left_out:
        print(f"note: {', '.join(left_out)} would take too long: left out; --minutes N allows more")
    return plan


def fit_folds(load: Callable[[str, list[str]], Config], images: pd.DataFrame, most: int) -> int:
    """The most folds that the groups of the images allow, two at least. UserError where there are none."""
    for folds in range(max(most, 2), 1, -1):
        try:
            stages.ensure_tables(load(NORMAL_ONLY, [f"split.folds={folds}"]))
            return folds
        except UserError as error:
            last_error = error
    raise last_error


# --- training -----------------------------------------------------------------------------------------------


def train_all(
    load: Callable[[str, list[str]], Config], tables: DataTables, state: State, until: float
) -> list[Run]:
    """The trained runs of the plan, the quickest first.

    A detector that cannot be done by `until` (of time.monotonic), as the time of the earlier ones shows, is
    left out; the first is trained in any case.
    """
    plan = state.plan
    names = sorted(plan.settings, key=plan.seconds.get)
    runs = []
    expected = 0.0
    began = time.monotonic()
    for name in names:
        config = load(name, list(plan.settings[name]))
        run = Run(config)
        spent = time.monotonic() - began
        slowness = max(1.0, (spent + STEADY_SECONDS) / (expected + STEADY_SECONDS))
        needed = slowness * (plan.seconds[name] + plan.seconds["end"])
        is_begun = run.folder.exists()
        if runs and not is_begun and time.monotonic() + needed > until:
            print(f"note: {name} is left out: it would take some {format_seconds(needed)} more")
            continue
        begin_run(run, state)
        for fold in fold_names(config)[:-1]:
            train_fold(config, fold, tables.folds)
        expected += plan.seconds[name]
        runs.append(run)
    return runs


def begin_run(run: Run, state: State) -> None:
    """Remove what this command trained by an earlier plan; train_fold judges what a person trained."""
    config = run.config
    made_from = f"{as_yaml(config)} {training_sha256(config)} {content_of(config.dataset_dir / 'folds.csv')}"
    key = hashlib.sha256(made_from.encode()).hexdigest()
    earlier = state.runs.get(run.name)
    if earlier is not None and earlier != key and run.folder.exists():
        print(f"{run.folder} is of an earlier plan: trained anew")
        remove(run.folder)
    if not run.folder.exists() or earlier is not None:
        state.runs[run.name] = key
        state.write()


# --- after the training -------------------------------------------------------------------------------------


def score_and_blend(runs: list[Run], tables: DataTables) -> Path:
    """Score the test images with all runs, and write the submission of their blend."""
    config = runs[0].config
    for run in runs:
        score_test(run, tables.images, None, make_accelerator(run.config.train))
    scores = load_scores(runs, tables)
    if config.ensemble.compare and stored_comparison(config) is None:
        write_adversarial(config, tables)
    path = resolve(config.submissions) / f"{config.data.name}.csv"
    build_and_print(runs, tables, scores, path)
    return path


def finish(run: Run, tables: DataTables) -> tuple[Path, Path]:
    """Train the run on all images, export that model, draw the report; the folders of model and report."""
    train_fold(run.config, FULL, tables.folds)
    report = run.folder / "report" / "report.html"
    write_page(report, build_run_report(load_run_tables(run, tables)))
    folder = run.fold_folder(FULL) / "export"
    if not is_exported(run, folder):
        export(run, tables, FULL, EXPORT_FORMATS, EXPORT_IMAGES)
    return folder, report


def is_exported(run: Run, folder: Path) -> bool:
    """Whether the export is there, and that of the present model."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        return meta["checkpoint_sha256"] == sha256(run.fold_folder(FULL) / "best.pt")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def list_results(
    choice: Choice, counts: Counts, submission: Path | None, report: Path, exported: Path
) -> list[str]:
    """The last lines: what is expected, what may be claimed, where all of it lies, what to do next."""
    name = choice.run.name
    others = {run: auroc for run, auroc in choice.aurocs.items() if auroc is not None}
    lines = []
    if len(others) > 1:
        texts = [f"{run} {auroc:.3f}" for run, auroc in others.items()]
        lines.append(f"AUROC out of fold         {', '.join(texts)}")
    lines.append(f"detector                  {name}, trained on all {counts.training} images")
    if choice.macro_f1 is None:
        reason = "there are no defects" if not counts.defects else "too few defects are out of fold"
        lines.append(f"expected macro-F1         unknown: {reason}")
    else:
        low, high = choice.interval_90
        text = f"{choice.macro_f1:.3f}, 90 % interval {low:.3f} - {high:.3f}"
        if len(others) > 1:
            text += ", the choice of the detector included"
        lines.append(f"expected macro-F1         {text}")
    lines += summarise_claims(choice.claims)
    if submission is not None:
        lines.append(f"test images               {show_path(submission)}: scored by all detectors together")
        if (choice.run.config.dataset_dir / "answers.csv").exists():
            command = f"python src/evaluate.py --submission {show_path(submission)}"
            lines.append(f"  their answers are known {command}, once, at the end")
    lines += [
        f"report                    {show_path(report)}",
        f"model                     {show_path(exported)}",
        f"next                      python src/predict.py {show_path(exported)} IMAGES",
        f"                          python src/page.py {show_path(exported)}",
    ]
    return lines


def show_path(path: Path) -> Path:
    """As short as can be written where the command runs."""
    present = Path.cwd()
    return path.relative_to(present) if path.is_relative_to(present) else path
