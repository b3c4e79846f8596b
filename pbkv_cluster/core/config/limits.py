"""What one tenant and one workflow may ask for at a time."""

from pydantic import Field

from pbkv_cluster.core.config.section import Section


class LimitsConfig(Section):
    """Limits of one tenant and one workflow at each gateway."""

    tenant_steps: int = Field(0, ge=0, description="most steps of one tenant in flight; 0: no limit of its own")
    tenant_queued_tokens: int = Field(
        0, ge=0, description="most prompt tokens of one tenant's steps that wait for their first output; 0: no limit"
    )
    workflow_steps: int = Field(0, ge=0, description="most steps of one workflow in flight; 0: no limit of its own")
    workflow_queued_tokens: int = Field(
        0, ge=0, description="most prompt tokens of one workflow's steps that wait for their first output; 0: no limit"
    )
