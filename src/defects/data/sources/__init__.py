"""One module per layout of a data set on disk; each lists its images in the same table."""

from defects.config import DataConfig
from defects.data.sources import defect_normal, demo, folders, mvtec
from defects.data.sources.listing import Listing

SOURCES = {
    "demo": demo.list_data,
    "defect_normal": defect_normal.list_data,
    "mvtec": mvtec.list_data,
    "folders": folders.list_data,
}


def list_data(data: DataConfig) -> Listing:
    """What is on disk, by the source that the config names. Raises UserError for a broken layout."""
    return SOURCES[data.source](data)
