"""Settings of the search for photographs of the same object."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class DuplicateConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)

    enabled: bool = True
    thumbnail_size: Annotated[int, Field(ge=32)] = 64  # pixels; images are compared at this size
    neighbours: Annotated[int, Field(ge=1)] = 16  # candidates per image
    max_shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.08  # of the side, between two photographs
    min_correlation: Annotated[float, Field(gt=0, le=1)] = 0.46  # of two photographs of one object
    min_texture: Annotated[float, Field(gt=0, le=1)] = 0.05  # share of a picture that must not be flat
