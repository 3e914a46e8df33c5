"""Generated steel strips: drawn where they do not exist yet, then read like the competition they imitate."""

from defects.config_data import DataConfig
from defects.data import strips_images
from defects.data.generated import generate_if_missing
from defects.data.layouts import severstal
from defects.data.layouts.listing import Listing


def list_data(data: DataConfig) -> Listing:
    """Generate `data.strips` if `data.root` is missing. UserError without a place for the answers."""
    generate_if_missing(data, "strips", "the strips", strips_images.generate_strips)
    return severstal.list_data(data)
