"""The tokens of a workload's steps, built once for all runs of it."""

from array import array
from typing import NamedTuple

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.tokens import BLOCK_TOKENS, TOKEN_BYTES, blocks_for, count
from pbkv_cluster.simulator.workload.events import VOCAB
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from pbkv_cluster.simulator.workload.workload import Workload

NAMESPACE = Namespace("simulated", "", "", "")
_KEPT_BYTES_MAX = 256 << 20


class StepTokens(NamedTuple):
    """Packed tokens of a step, and the keys of the blocks that its KV fills."""

    prompt: bytes
    output: bytes
    keys: list[bytes]  # without the last token of the output, whose KV is never computed

    @property
    def prompt_keys(self) -> list[bytes]:
        """Keys of the blocks that a cache can deliver, which excludes the prompt's last token: it is always computed."""
        return self.keys[: (count(self.prompt) - 1) // BLOCK_TOKENS]


class TokenSource:
    """Tokens of a workload, by arrival and position of the step. Keeps what it has built, up to 256 MiB."""

    def __init__(self, workload: Workload, builder: PromptBuilder | None = None) -> None:
        self.workload = workload
        self._builder = builder or PromptBuilder(VOCAB)
        self._bytes_left = _KEPT_BYTES_MAX
        self._kept: dict[tuple[int, int], StepTokens] = {}
        self._pieces: dict[tuple[int, int], array[int]] = {}

    def step(self, arrival: int, position: int) -> StepTokens:
        """The tokens of one step."""
        found = self._kept.get((arrival, position))
        if found is None:
            step = self.workload.arrivals[arrival].workflow.steps[position]
            prompt, output = self._builder.prompt(step), self._builder.output(step)
            found = StepTokens(prompt, output, block_keys(NAMESPACE, prompt + output[:-TOKEN_BYTES]))
            size = 3 * (len(prompt) + len(output))  # keys are about as large as the tokens, plus object headers
            if size <= self._bytes_left:
                self._bytes_left -= size
                self._kept[arrival, position] = found
        return found

    def pieces(self, arrival: int, position: int) -> tuple[int, ...]:
        """The pieces of one step's prompt. Kept as an array, a quarter of a tuple's size, as every run with forecasts asks."""
        found = self._pieces.get((arrival, position))
        if found is None:
            found = self._pieces[arrival, position] = array("I", prompt_pieces(self.step(arrival, position).prompt))
        return tuple(found)

    def blocks(self) -> tuple[int, int]:
        """Blocks of the largest step plus one, and the number of distinct blocks of all steps."""
        largest, keys = 0, set[bytes]()
        for arrival, entry in enumerate(self.workload.arrivals):
            for position in range(len(entry.workflow.steps)):
                tokens = self.step(arrival, position)
                largest = max(largest, blocks_for(count(tokens.prompt) + count(tokens.output)) + 1)
                keys.update(tokens.keys)
        return largest, len(keys)
