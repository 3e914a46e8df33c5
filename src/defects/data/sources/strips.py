"""Generated steel strips: drawn where they do not exist yet, then read like the competition they imitate."""

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data import strips
from defects.data.sources import severstal
from defects.data.sources.listing import Listing
from defects.errors import UserError


def list_data(data: DataConfig) -> Listing:
    """Generate `data.strips` if `data.root` is missing. UserError without a place for the answers."""
    root = resolve(data.root)
    if not root.exists():
        if data.answers is None:
            raise UserError("data.answers is missing: the strips need a file for their hidden answer key")
        print(f"generating the strips in {root}")
        strips.generate(root, resolve(data.answers), **data.strips.model_dump())
    return severstal.list_data(data)
