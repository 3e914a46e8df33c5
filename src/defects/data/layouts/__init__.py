"""One module per layout of a data set on disk; each lists its images in the same table.

A new layout is a module here with `list_data(data: DataConfig) -> Listing`; configs name it.
"""

from importlib import import_module
from pkgutil import iter_modules

from defects.config_data import DataConfig
from defects.data.layouts.listing import Listing
from defects.messages import UserError


def list_data(data: DataConfig) -> Listing:
    """What is on disk, by the source that the config names. Raises UserError for a broken layout."""
    known = sorted({module.name for module in iter_modules(__path__)} - {"listing"})
    if data.source not in known:
        raise UserError(f"data.source={data.source}: the sources are {', '.join(known)}")
    listing = import_module(f"{__name__}.{data.source}").list_data(data)
    if data.classes and listing.runs is None:
        raise UserError(f"data.source={data.source} has no classes to tell apart: leave data.classes empty")
    return listing
