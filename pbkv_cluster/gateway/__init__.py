"""The front door: workflows and their steps in, routed to workers, out as streams; events to the predictor.

`server.GatewayServer` puts it together. A step goes `service` → `submit` (checks, numbers) → `prompts` (tokens, block keys) →
`relay` → `placement` → `router` (which worker) → a worker's stream, and back. Beside it: `sessions` and `workflows` (open
workflows and their leases), `journal` (their records in the directory), `workers` (who is there), `events` (to the predictor),
`available` (what an infinite cache would have had), `status`.
"""
