"""Base classes of all schemas: immutable values that JSON can represent."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _encodable(text: str) -> str:
    text.encode()  # a path that is not UTF-8 has characters that JSON cannot represent; the error names them
    return text


Text = Annotated[str, AfterValidator(_encodable)]
