"""Ids of workflows that tenants choose: each tenant has its own, so that none meets, or learns of, another's."""

from xxhash import xxh3_64_hexdigest


def of_tenant(workflow_id: str, tenant: str) -> str:
    """The id, as all of the cluster knows it, of a tenant's workflow.

    Args:
        workflow_id: as the tenant has chosen it, or as an earlier call has returned it; empty: there is none.
        tenant: empty: the workflow belongs to none, and its id is as it was chosen.
    """
    if not workflow_id or not tenant:
        return workflow_id
    mark = f"@{xxh3_64_hexdigest(tenant.encode())}"  # of a fixed length, so that no other id and tenant read the same
    return workflow_id if workflow_id.endswith(mark) else workflow_id + mark
