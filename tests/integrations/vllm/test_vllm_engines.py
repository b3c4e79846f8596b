"""Real vLLM engines with the connector: greedy tokens are those of vLLM alone, wherever the KV has come from."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.gpu_worker.model.smollm2 import smollm2
from pbkv_cluster.integrations.vllm.options import Refused
from tests.integrations.engine_store.engines import damage
from tests.integrations.vllm.engines import PYTHON, VOCABULARY, VllmEngine, prompt, store_process, vllm
from tests.polling import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(700),
]

PROMPTS = [prompt(seed, 700) for seed in range(8)]
LONG = PROMPTS[0]
HIT = 672  # tokens of LONG in full blocks of 32
# Room for seven of these prompts, so that some leave vLLM's own cache, and requests are preempted.
POOL: dict[str, Any] = {"num_gpu_blocks_override": 160, "max_num_seqs": 8}
OUTPUTS = 40

NOUNS = [
    "apple",
    "bridge",
    "candle",
    "desert",
    "engine",
    "forest",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "mirror",
    "needle",
    "ocean",
    "pencil",
]

Reference = list[list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose random weights are large enough for its output to depend on every token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        initializer_range=0.1,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def store() -> dict[str, Any]:
    """A node of its own."""
    return {"name": f"test-{uuid.uuid4().hex}", "region_bytes": 64 << 20, "arena_bytes": 512 << 20, "keep_s": 60.0}


@pytest.fixture(scope="module")
def expected(model: Path, logs: Path) -> Reference:
    """What vLLM alone makes of the prompts, one after the other."""
    with vllm(model, logs / "alone.log") as engine:
        engine.wait()
        found = [engine.generate(each, tokens=OUTPUTS)[0][0] for each in PROMPTS]
    assert len({tuple(each) for each in found}) == len(found)
    assert min(len(set(each)) for each in found) > OUTPUTS // 4  # the output is not always the same token
    return found


@pytest.fixture(scope="module")
def engine(model: Path, logs: Path, store: dict[str, Any], expected: Reference) -> Iterator[VllmEngine]:
    """An engine with the connector. The tests of this module use it in their order."""
    with vllm(model, logs / "one.log", store, kv_events=True, **POOL) as running:
        yield running.wait()


@pytest.fixture(scope="module")
def other(model: Path, logs: Path, store: dict[str, Any], engine: VllmEngine) -> Iterator[VllmEngine]:
    """Another engine of the node, whose scheduler and worker are in a process of their own, as vLLM has it by default."""
    with vllm(model, logs / "other.log", store, is_multiprocess=True, **POOL) as running:
        yield running.wait()


def test_cold_warm_and_loaded(engine: VllmEngine, expected: Reference) -> None:
    tokens = engine.generate(LONG, tokens=OUTPUTS)
    assert tokens == ([expected[0]], [0])
    assert engine.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])
    assert "loaded_own" not in engine.outcomes()
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])
    assert engine.outcomes()["loaded_own"] == HIT // 32


def test_blocks_of_the_store_are_told_as_kv_events(engine: VllmEngine) -> None:
    fresh, short = prompt(200, 200), prompt(201, 40)
    engine("events")
    engine.generate(fresh, tokens=1)
    engine.generate(short)  # what has come to the store is told with a later step
    told: dict[str, dict[tuple[int, ...], str]] = {"GPU": {}, "CPU": {}}
    for event in engine("events"):
        for number, block in enumerate(event["hashes"]):
            told[event["medium"]][tuple(event["tokens"][number * 32 : number * 32 + 32])] = block
    blocks = [tuple(fresh[start : start + 32]) for start in range(0, 192, 32)]
    assert [told["CPU"][each] for each in blocks] == [told["GPU"][each] for each in blocks]


def test_blocks_of_the_store_are_told_once_and_with_their_salt(engine: VllmEngine) -> None:
    fresh = prompt(202, 70)
    engine("events")
    for _ in range(2):
        engine.generate(fresh, tokens=1, salt="tenant")
    engine.generate(prompt(203, 40))
    told = [event for event in engine("events") if event["type"] == "BlockStored" and event["medium"] == "CPU"]
    firsts = [event["extra"] for event in told if event["tokens"] == fresh[:32]]
    seconds = [event["extra"] for event in told if event["tokens"] == fresh[32:64]]
    assert (firsts, seconds) == ([[["tenant"]]], [[[]]])


def test_evicted_and_preempted_requests(engine: VllmEngine, expected: Reference) -> None:
    before = engine.outcomes().get("loaded_own", 0)
    tokens, _ = engine.generate(*PROMPTS, tokens=OUTPUTS)
    assert tokens == expected
    assert engine("metrics")["vllm:num_preemptions"] > 0
    for number in (0, 1, 2):
        assert engine.generate(PROMPTS[number], tokens=OUTPUTS)[0] == [expected[number]]
    assert engine.outcomes()["loaded_own"] > before


def test_what_was_generated_is_loaded_too(engine: VllmEngine, expected: Reference) -> None:
    assert engine("reset")
    further = LONG + expected[0]
    assert engine.generate(further, tokens=4)[1] == [(len(further) - 1) // 32 * 32]


def test_a_request_that_is_aborted_while_it_loads(engine: VllmEngine, expected: Reference) -> None:
    assert engine("reset")
    assert engine("abort_while_loading", prompt=LONG)
    assert engine.generate(LONG, tokens=OUTPUTS)[0] == [expected[0]]
    assert engine("reset"), "blocks of the aborted request are still held"


def test_another_salt_never_matches(engine: VllmEngine, expected: Reference) -> None:
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS, salt="tenant") == ([expected[0]], [0])
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS, salt="tenant") == ([expected[0]], [HIT])
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS, salt="another") == ([expected[0]], [0])


def test_damaged_blocks_are_computed_and_stored_again(engine: VllmEngine, store: dict[str, Any], expected: Reference) -> None:
    spoil(engine, store)
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS)[0] == [expected[0]]
    assert engine.outcomes()["load_damaged"] == HIT // 32
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])


def test_the_first_prompt_of_a_second_engine_hits(other: VllmEngine, expected: Reference) -> None:
    assert other.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])
    assert other.outcomes()["loaded_sibling"] == HIT // 32


def test_damaged_blocks_of_another_engine_are_computed(
    engine: VllmEngine, other: VllmEngine, store: dict[str, Any], expected: Reference
) -> None:
    spoil(engine, store)
    assert other("reset")
    assert other.generate(LONG, tokens=OUTPUTS)[0] == [expected[0]]
    assert other.outcomes()["load_damaged"] == HIT // 32
    # The other engine has stored what it has computed, and so this one need not compute.
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])
    assert engine.outcomes()["loaded_sibling"] == HIT // 32


def test_a_store_that_dies_while_blocks_are_loaded(
    engine: VllmEngine, other: VllmEngine, store: dict[str, Any], expected: Reference
) -> None:
    engine.generate(LONG, tokens=OUTPUTS)
    process = store_process(store["name"])
    assert engine("reset")
    assert engine("kill_at_next_load", pid=process.pid)
    assert engine.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])
    process.wait(30.0)
    assert engine("reset")
    assert engine.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [HIT])
    wait_for(lambda: store_process_or_none(store["name"]) is not None)  # an engine has started it again
    assert engine("store")["problem"] == ""


def test_a_restarted_engine_finds_its_blocks(
    engine: VllmEngine, other: VllmEngine, model: Path, logs: Path, store: dict[str, Any]
) -> None:
    owner, fresh = engine("store")["owner"], prompt(102, 200)
    tokens, _ = engine.generate(fresh)
    engine.stop()
    with vllm(model, logs / "restarted.log", store, kv_events=True, **POOL) as restarted:
        restarted.wait()
        facts = restarted("store")
        assert facts["owner"] == owner
        assert facts["found"] >= 192 // 32
        assert restarted.generate(fresh) == (tokens, [192])
        assert restarted.outcomes()["loaded_own"] == 192 // 32
        assert_a_reset_shares_nothing(restarted, other)


def assert_a_reset_shares_nothing(engine: VllmEngine, other: VllmEngine) -> None:
    """A reset of the connector empties the engine's region, and its blocks have keys of their own from then on."""
    fresh, short = prompt(100, 200), prompt(101, 40)
    engine("events")
    engine.generate(fresh)
    engine.generate(short)
    stored = {each for event in engine("events") if event["type"] == "BlockStored" for each in event["hashes"]}
    assert other.generate(fresh)[1] == [192]
    assert engine("reset", store=True)
    assert engine.generate(fresh)[1] == [0], "the other engine's blocks may be of other weights"
    engine.generate(short)
    gone = {each for event in engine("events") if event["type"] == "BlockRemoved" for each in event["hashes"]}
    assert gone & stored
    assert engine("reset")
    assert engine.generate(fresh)[1] == [192]
    assert other("reset", store=True)
    assert other.generate(fresh)[1] == [0]


def test_an_engine_of_another_model_finds_nothing(
    model: Path, logs: Path, store: dict[str, Any], other: VllmEngine, expected: Reference
) -> None:
    """The same shapes, and the same prompt, but other weights as far as the namespace goes."""
    with vllm(model, logs / "another.log", {**store, "model_revision": "another"}, **POOL) as another:
        another.wait()
        assert another.generate(LONG, tokens=OUTPUTS) == ([expected[0]], [0])


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"kv_load_failure_policy": "fail"}, "kv_load_failure_policy"),
        ({"kv_connector_extra_config": {"region_byte": 1}}, "region_byte"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(model: Path, logs: Path, transfer: dict[str, Any], message: str) -> None:
    assert issubclass(Refused, ValueError)  # which vLLM shows
    log = logs / "refused.log"
    config = {
        "kv_connector": "PbkvConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "pbkv_cluster.integrations.vllm",
        "kv_load_failure_policy": "recompute",
        **transfer,
    }
    with vllm(model, log, kv_transfer_config=config) as engine, pytest.raises(AssertionError, match="the engine has ended"):
        engine.wait()
    assert message in log.read_text()


def test_a_hybrid_model_is_refused_at_the_start(tmp_path: Path, store: dict[str, Any]) -> None:
    """Half of its layers see a window of tokens, so vLLM keeps their KV in a group of its own."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        sliding_window=64,
        max_position_embeddings=4096,
        layer_types=["sliding_attention", "full_attention"],
    )
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    with (
        vllm(tmp_path, tmp_path / "log", store) as engine,
        pytest.raises(AssertionError, match=r"hybrid models are not supported: this one has 2 groups of KV cache"),
    ):
        engine.wait()


def test_ranks_each_have_their_own_blocks(model: Path, logs: Path, store: dict[str, Any], expected: Reference) -> None:
    with vllm(model, logs / "ranks.log", store, is_multiprocess=True, tensor_parallel_size=2, **POOL) as engine:
        engine.wait()
        tokens, cached = engine.generate(LONG, tokens=OUTPUTS)
        assert (tokens, cached) == ([expected[0]], [0])
        assert engine("reset")
        assert engine.generate(LONG, tokens=OUTPUTS) == (tokens, [HIT])
        assert engine.outcomes()["loaded_own"] == 2 * HIT // 32


def test_a_real_small_model_says_the_same(logs: Path, store: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    path = smollm2()
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    task = " ".join(f"Explain in one sentence what a {noun} is made of, and who would need one." for noun in NOUNS)
    chat = [{"role": "user", "content": task}]
    ids = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
    hit = (len(ids) - 1) // 32 * 32
    assert hit > 128
    with vllm(path, logs / "smollm2.log") as alone, vllm(path, logs / "smollm2-store.log", store) as engine:
        alone.wait()
        engine.wait()
        expected, _ = alone.generate(ids, tokens=48)
        assert len(set(expected[0])) > 16
        assert engine.generate(ids, tokens=48) == (expected, [0])
        assert engine("reset")
        assert engine.generate(ids, tokens=48) == (expected, [hit])


def spoil(engine: VllmEngine, store: dict[str, Any]) -> None:
    """Changes a byte of every block in an engine's region."""
    facts = engine("store")
    assert damage(store["name"], facts["owner"], facts["block_bytes"]) > HIT // 32


def store_process_or_none(name: str) -> object | None:
    try:
        return store_process(name)
    except ValueError:
        return None
