"""Steps that run for a while, side by side: `python -m tests.cluster.long_steps HOST:PORT COUNT TOKENS`.

Prints `started` for each step with its first token, and in the end a line of JSON: the number of tokens of each, and the worker
that finished it.
"""

import asyncio
import json
import sys
from collections.abc import Callable

from pbkv_cluster.client import AsyncClient, Finished, Tokens


async def run_steps(client: AsyncClient, count: int, tokens: int, on_start: Callable[[], None]) -> list[tuple[int, str]]:
    """Returns the number of tokens of each step, and the worker that finished it."""

    async def step(number: int) -> tuple[int, str]:
        seen, worker = 0, ""
        async with await client.start_workflow() as workflow:
            stream = workflow.stream(agent="a", prompt=[5 + number] * 100, max_tokens=tokens, ignore_eos=True)
            async for event in stream:
                match event:
                    case Tokens():
                        if not seen:
                            on_start()
                        seen += len(event.token_ids)
                    case Finished():
                        worker = event.usage.worker_id
        return seen, worker

    return await asyncio.gather(*map(step, range(count)))


async def main(endpoint: str, count: int, tokens: int) -> None:
    async with AsyncClient(endpoint) as client:
        done = await run_steps(client, count, tokens, lambda: print("started", flush=True))
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
