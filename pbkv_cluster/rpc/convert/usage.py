"""Usage records."""

from pbkv_cluster.core.usage import Usage
from pbkv_cluster.rpc.convert.tiers import tiers_from_wire, tiers_to_wire
from pbkv_cluster.rpc.v1 import types_pb2


def usage_to_wire(usage: Usage) -> types_pb2.Usage:
    return types_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        available_tokens=usage.available_tokens,
        captured=tiers_to_wire(usage.captured),
        delivered=tiers_to_wire(usage.delivered),
        computed_tokens=usage.computed_tokens,
        generated_tokens=usage.generated_tokens,
        queue_s=usage.queue_s,
        load_s=usage.load_s,
        prefill_s=usage.prefill_s,
        decode_s=usage.decode_s,
        ttft_s=usage.ttft_s,
        total_s=usage.total_s,
        preemptions=usage.preemptions,
        retries=usage.retries,
        prefetched_tokens=usage.prefetched_tokens,
        worker_id=usage.worker_id,
    )


def usage_from_wire(message: types_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=message.prompt_tokens,
        available_tokens=message.available_tokens,
        captured=tiers_from_wire(message.captured),
        delivered=tiers_from_wire(message.delivered),
        computed_tokens=message.computed_tokens,
        generated_tokens=message.generated_tokens,
        queue_s=message.queue_s,
        load_s=message.load_s,
        prefill_s=message.prefill_s,
        decode_s=message.decode_s,
        ttft_s=message.ttft_s,
        total_s=message.total_s,
        preemptions=message.preemptions,
        retries=message.retries,
        prefetched_tokens=message.prefetched_tokens,
        worker_id=message.worker_id,
    )
