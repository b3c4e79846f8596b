"""Block keys of one prompt, for workers whose blocks are not interchangeable: each engine has a namespace of its own."""

from collections.abc import Iterable, Sequence

from pbkv_cluster.core import tokens
from pbkv_cluster.core.blocks import Namespace, block_keys, chain_keys


class PromptKeys:
    """Keys of the full blocks of a prompt and of its output, by the namespace of the worker that they are asked for."""

    def __init__(self, packed: bytes, tenant: str, namespaces: Iterable[Namespace] = ()) -> None:
        """Args:
        packed: token ids of the prompt.
        tenant: whose blocks they are.
        namespaces: of workers, without a tenant; those that are not named are hashed when they are asked for.
        """
        self._packed = packed
        self._tenant = tenant
        self._keys: dict[Namespace, list[bytes]] = {}
        for namespace in namespaces:
            self.of(namespace)

    def of(self, namespace: Namespace) -> Sequence[bytes]:
        """Keys of the prompt's full blocks on workers with a namespace, which has no tenant."""
        found = self._keys.get(namespace)
        if found is None:
            found = self._keys[namespace] = block_keys(self._of_tenant(namespace), self._packed)
        return found

    def of_output(self, namespace: Namespace, output: bytes) -> list[bytes]:
        """Keys of the full blocks that follow the prompt's own once `output` (packed) has been generated.

        The last output token never went through the model, so it has no KV and fills no block. If output has taken the sequence
        beyond the model's rotary switch, all of it has been computed again, and these blocks follow those from before.
        """
        keys, before = self.of(namespace), self._of_tenant(namespace)
        sequence = self._packed + output[: -tokens.TOKEN_BYTES]
        full = len(keys) * tokens.BLOCK_BYTES
        last = keys[-1] if keys else before.digest()
        after = before.of_length(tokens.count(sequence))
        if after == before:
            return chain_keys(last, sequence[full:])
        until = after.rotary_switch * tokens.TOKEN_BYTES
        return [*chain_keys(last, sequence[full:until]), *block_keys(after, sequence)]

    def of_all(self, namespace: Namespace, output: bytes) -> list[bytes]:
        """Keys of the full blocks of prompt and output."""
        return [*self.of(namespace), *self.of_output(namespace, output)]

    def _of_tenant(self, namespace: Namespace) -> Namespace:
        return namespace.of_tenant(self._tenant, tokens.count(self._packed))
