"""What every section of a scenario has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Knows its fields and no others, and is never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
