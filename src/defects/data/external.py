"""The rule of some competitions that no outside image may be used."""

from pathlib import Path

from defects.config import Config, resolve
from defects.messages import UserError


def refuse_external(config: Config, setting: str, folder: Path) -> None:
    """UserError if `folder`, named by `setting`, holds outside images and data.external_data forbids them."""
    root = resolve(config.data.root).resolve()
    if not config.data.external_data and not resolve(folder).resolve().is_relative_to(root):
        raise UserError(
            f"{setting}={folder}: data.external_data=false forbids images from outside {root}; "
            "leave the setting out, or name a folder of the data set"
        )
