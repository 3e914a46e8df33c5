"""Folders of pictures and masks, and what listing them gives, for tests of listing and of the layouts."""

from pathlib import Path

import pytest
from conftest import make_data_config

from defects.config_schema import DataConfig
from defects.data.layouts import list_data
from defects.messages import UserError


def listing_data(root: Path, source: str, **more) -> DataConfig:
    return make_data_config(name="set", source=source, root=root, image_size=(32, 32), **more)


def listing_error(data: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        list_data(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)
