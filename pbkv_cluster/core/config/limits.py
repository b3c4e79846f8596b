"""What one tenant and one workflow may ask for at a time, and how tenants share the workers."""

from collections.abc import Mapping
from math import inf

from pydantic import Field, field_validator

from pbkv_cluster.core.config.section import Section


class LimitsConfig(Section):
    """Limits of one tenant and one workflow at each gateway, and the shares of tenants on each worker."""

    tenant_steps: int = Field(0, ge=0, description="most steps of one tenant in flight; 0: no limit of its own")
    tenant_queued_tokens: int = Field(
        0, ge=0, description="most prompt tokens of one tenant's steps that wait for their first output; 0: no limit"
    )
    workflow_steps: int = Field(0, ge=0, description="most steps of one workflow in flight; 0: no limit of its own")
    workflow_queued_tokens: int = Field(
        0, ge=0, description="most prompt tokens of one workflow's steps that wait for their first output; 0: no limit"
    )
    tenant_weights: str = Field(
        "",
        description="shares of tenants while several wait, as TENANT=WEIGHT,TENANT=WEIGHT; all others have weight 1",
    )

    @field_validator("tenant_weights")
    @classmethod
    def _has_weights(cls, value: str) -> str:
        parse_weights(value)
        return value

    def weights(self) -> Mapping[str, float]:
        """The weights of the tenants that have one of their own."""
        return parse_weights(self.tenant_weights)


def parse_weights(text: str) -> dict[str, float]:
    """Weights by tenant; a ValueError says what is wrong."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not tenant or not 0 < weight < inf:
            raise ValueError(f"must be TENANT=WEIGHT,TENANT=WEIGHT with weights above 0, got {part!r}")
        if tenant in found:
            raise ValueError(f"names {tenant!r} twice")
        found[tenant] = weight
    return found
