"""Configurations in files: an experiment put together from a data file, a model file and its own settings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from defects.config_schema import REMOVED_SETTINGS, ROOT, Config, config_class, resolve
from defects.messages import UserError
from defects.settings import (
    Written,
    open_brackets,
    parse_yaml,
    plain_value,
    section_of,
    setting_type,
    validate,
    value_type,
)


def load_config(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    data: str | None = None,
    model: str | None = None,
    needs_model: bool = True,
) -> Config:
    """An experiment: what its data file says, then its model file, then its own settings, then `overrides`.

    `path` is an experiment. Its `data` and `model` name files of configs/data and configs/models, or hold the
    settings themselves. `data` and `model` take the place of these names; a `model` given here also replaces
    what the experiment says of training, since a learning rate of another model would be worse than a
    default. The run is named `<data.name>_<model>`, or as the file, where settings stand in it. Without
    `needs_model` the model may be missing, for stages that use none and should not wait for its libraries.
    Raises UserError for unreadable files, unknown keys (naming the nearest known one) and bad values.
    """
    experiment = {} if path is None else read_config_file(path)
    own = {key: value for key, value in experiment.items() if key not in ("data", "model")}
    data = experiment.get("data") if data is None else data
    values = _read_part("data", data, path)
    if model is None:
        model = experiment.get("model")
        if model is None and not needs_model:
            model = "classifier"
        values = _merge(_merge(values, _read_part("models", model, path), Config), own, Config)
    else:
        own = {key: value for key, value in own.items() if key not in ("train", "augment", "experiment")}
        values = _merge(_merge(values, own, Config), _read_part("models", model), Config)
    if "experiment" not in values:
        values["experiment"] = _name_run(values, path, model)
    config = validate_config(apply_overrides(values, overrides), "settings" if path is None else str(path))
    return _with_needs_of_detector(config) if needs_model else config


def with_model(config: Config, name: str) -> Config:
    """The experiment with what a model file says in place of its model and training."""
    values = config.model_dump(mode="json", exclude={"model", "train", "augment", "infer"})
    values = _merge(values, _read_part("models", name), Config)
    return _with_needs_of_detector(validate(config_class(values), values, name))


def read_config_file(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, scalars as written. Raises UserError if it is none."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is no plain file: it may never end")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        names = ", ".join(sorted(config.name for config in (ROOT / "configs").glob("*.yaml")))
        raise UserError(f"{path}: {error.strerror}; configs/ holds {names}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines")
    return values


def validate_config(values: dict[str, Any], where: str) -> Config:
    """The config of these values, which may be those of an old run; `where` they stand is for messages.

    REMOVED_SETTINGS are left out, and refused where they would have an effect.
    """
    result = dict(values)
    for name, no_effect in REMOVED_SETTINGS.items():
        section, key = name.split(".")
        settings = result.get(section)
        if not isinstance(settings, dict) or key not in settings:
            continue
        value = settings[key]
        if isinstance(value, Written):
            value = plain_value(value)
        if value != no_effect:
            raise UserError(
                f"{where}: {name}={value} is no setting any more (docs/results.md says why): delete it"
            )
        result[section] = {name: setting for name, setting in settings.items() if name != key}
    return validate(config_class(result), result, where)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` of a config with those of every `key.sub=value`, as `--set` has them.

    A value is text until the type of its setting is known.
    """
    for override in overrides:
        key, separator, value = override.partition("=")
        key = key.strip()
        if not separator or not key:
            raise UserError(f"--set {override}: write section.key=value, without spaces around the =")
        try:
            values = _with_value(values, key, Written(value.strip()), config_class(values))
        except ValueError as error:
            raise UserError(f"--set {override}: not valid YAML ({error})") from None
    return values


def known_config_files(kind: str) -> list[str]:
    """Names of the files in configs/<kind>: of `data` or `models`."""
    return sorted(path.stem for path in (ROOT / "configs" / kind).glob("*.yaml"))


def find_config_file(kind: str, name: str, experiment: Path | None = None) -> Path:
    """The file configs/<kind>/<name>.yaml, or another YAML file, by its path.

    A relative path starts at the folder of the `experiment` that names it, at the present folder, or at the
    repository: the first that exists.
    """
    if name.endswith((".yaml", ".yml")):
        places = [Path(name).expanduser(), resolve(name)]
        if experiment is not None:
            places.insert(0, experiment.parent / name)
        return next((place for place in places if place.exists()), places[-1])
    names = known_config_files(kind)
    if name not in names:
        option = "--data" if kind == "data" else "--model"
        raise UserError(
            f"{option} {name}: configs/{kind} holds {', '.join(names)}; or name a YAML file by its path"
        )
    return ROOT / "configs" / kind / f"{name}.yaml"


def _read_part(kind: str, source: Any, experiment: Path | None = None) -> dict[str, Any]:
    """What a data file or a model file says; `source` is its name, or its section written out, or nothing.

    `experiment` is the file that names it.
    """
    if source is None:
        return {}
    section = "data" if kind == "data" else "model"
    if not isinstance(source, str):
        return {section: source}
    path = find_config_file(kind, source, experiment)
    values = read_config_file(path)
    if section not in values:
        raise UserError(f"{path} says nothing of {section}: a file of configs/{kind} has that section")
    if kind == "data" and isinstance(values["data"], dict):
        values = values | {"data": {"name": path.stem} | values["data"]}
    return values


def _name_run(values: dict[str, Any], path: Path | None, model: Any) -> str | None:
    """`<data.name>_<model>`, or the name of the experiment's file where the model is written out in it."""
    if not isinstance(model, str):
        return None if path is None else path.stem
    data = values.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return f"{name}_{Path(model).stem}"


def _with_needs_of_detector(config: Config) -> Config:
    """What is not set and depends on the detector is as its class says."""
    if "tta" in config.infer.model_fields_set:
        return config
    from defects.models import find_detector  # not on top: it takes seconds to import torch

    infer = config.infer.model_copy(update={"tta": find_detector(config.model.name).uses_tta})
    return config.model_copy(update={"infer": infer})


def _with_value(
    values: dict[str, Any], key: str, value: Written, model: type[BaseModel] | None
) -> dict[str, Any]:
    """`values` of a section, or of a free mapping (None), with `value` at the dotted key.

    In a mapping of names to numbers all that follows the first dot is one name.
    """
    name, _, subkey = key.partition(".")
    if not subkey:
        return _merge(values, {name: value}, model)
    annotation = setting_type(model, name)
    inner = open_brackets(values.get(name), annotation)
    inner = inner if isinstance(inner, dict) else {}
    section = section_of(annotation)
    if section is None and value_type(annotation) is not Any:
        return values | {name: inner | {subkey: value}}
    return values | {name: _with_value(inner, subkey, value, section)}


def _merge(base: dict[str, Any], top: dict[str, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    """`top` over `base`, section by section; lists and free mappings are replaced, so they can be emptied."""
    result = dict(base)
    for key, value in top.items():
        annotation = setting_type(model, key)
        value = open_brackets(value, annotation)
        section = section_of(annotation)
        base_value = base.get(key)
        if section and isinstance(value, dict) and isinstance(base_value, dict):
            value = _merge(base_value, value, section)
        result[key] = value
    return result


def of_category(config: Config, category: str) -> Config:
    """The same experiment on one category: a folder of data.root with a data set and a run of its own."""
    data = config.data.model_copy(
        update={
            "root": config.data.root / category,
            "name": f"{config.data.name}_{category}",
            "category": category,
        }
    )
    return config.model_copy(update={"data": data, "experiment": f"{config.experiment}_{category}"})
