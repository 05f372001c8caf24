"""What every schema here is made of: values that do not change and that JSON can hold."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _encodable(text: str) -> str:
    text.encode()  # a path that is not UTF-8 has letters that no JSON can hold; the error says which
    return text


Text = Annotated[str, AfterValidator(_encodable)]
