"""The demo set: generated where it does not exist yet, then read like the competition it imitates."""

from defects.config_data import DataConfig
from defects.data import demo_images
from defects.data.generated import generate_if_missing
from defects.data.layouts import defect_normal
from defects.data.layouts.listing import Listing


def list_data(data: DataConfig) -> Listing:
    """Generate the images if `data.root` is missing. Raises UserError without a place for the answers."""
    generate_if_missing(data, "demo", "the demo images", demo_images.generate_demo)
    return defect_normal.list_data(data)
