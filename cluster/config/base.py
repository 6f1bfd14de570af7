"""What every section of the cluster config shares: the frozen base model and the names that sections refer to."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

AUTO: Final = "auto"
"""The `model` value that leaves the choice to the routing rules."""

KNOWN_ROLES: Final = ("strong", "fast", "large_context", "verifier", "facts", "fluency", "embedding")
"""Roles with a meaning to Pointsman. A config may name further ones."""

EMBEDDING_ROLE: Final = "embedding"

Role = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]{0,63}$")]


class Kind(StrEnum):
    """What a model is made of."""

    DENSE = "dense"
    SPARSE = "sparse"
    MINI = "mini"
    ENCODER = "encoder"
    EXTERNAL = "external"


class Section(BaseModel):
    """Base of every config section: frozen, unknown keys refused, no infinities, no value echoed in an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
