"""The demo set: generated where it does not exist yet, then read like the competition it imitates."""

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data import demo
from defects.data.sources import defect_normal
from defects.data.sources.listing import Listing
from defects.errors import UserError


def list_data(data: DataConfig) -> Listing:
    """Generate the images if `data.root` is missing. Raises UserError without a place for the answers."""
    root = resolve(data.root)
    if not root.exists():
        if data.answers is None:
            raise UserError("data.answers is missing: the demo set needs a file for its hidden answer key")
        print(f"generating the demo images in {root}")
        demo.generate(root, resolve(data.answers), **data.demo.model_dump())
    return defect_normal.list_data(data)
