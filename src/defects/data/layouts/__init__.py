"""One module for each layout of a data set on disk; each lists its images in the same table.

A new layout is a module here with `list_data(data: DataConfig) -> Listing`; data.source names it. Settings of
its own are a class `Settings(Section)` in it; in configurations they stand as `data.<layout>`.

Modules of layouts are imported when they are named: the configuration, which asks for their settings, comes
before all that they import.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from defects.messages import UserError
from defects.settings import Section

if TYPE_CHECKING:
    from defects.config_schema import DataConfig
    from defects.data.listing import Listing


def layout_names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__))


def find_layout_settings(name: str) -> type[Section] | None:
    """The class of the settings of a layout; None if it has none."""
    return getattr(import_module(f"{__name__}.{name}"), "Settings", None)


def list_data(data: "DataConfig") -> "Listing":
    """What is on disk, by the layout that data.source names. Raises UserError for a broken one."""
    names = layout_names()
    if data.source not in names:
        raise UserError(f"data.source={data.source}: the sources are {', '.join(names)}")
    listing = import_module(f"{__name__}.{data.source}").list_data(data)
    if data.annotations is not None and listing.marks is None:
        raise UserError(f"data.source={data.source} reads no annotations: leave data.annotations empty")
    if data.classes and listing.runs is None and listing.marks is None:
        raise UserError(f"data.source={data.source} has no classes to tell apart: leave data.classes empty")
    return listing
