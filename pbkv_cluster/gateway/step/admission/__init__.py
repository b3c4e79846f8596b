"""What may be in flight at once: `admission` lets steps in, `limits` has the accounts of tenants and workflows."""
