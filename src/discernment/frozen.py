"""What options, plans and results are made of: data that does not change and knows no other fields."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Data that does not change; a field that is not known is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FiniteFrozen(Frozen):
    """The same where a number that is not finite is a mistake too."""

    model_config = ConfigDict(allow_inf_nan=False)
