"""The formats of tool calls by name, and which one a chat template asks for."""

from pbkv_cluster.core.registry import Registry
from pbkv_cluster.gateway.http.tools.base import ToolFormat
from pbkv_cluster.gateway.http.tools.hermes import HermesFormat
from pbkv_cluster.gateway.http.tools.plain import NoToolFormat
from pbkv_cluster.gateway.http.tools.whole_answer import Llama3Format, MistralFormat

AUTO = "auto"

TOOL_FORMATS: Registry[ToolFormat] = Registry("model.tool_format")
TOOL_FORMATS.register("hermes")(HermesFormat)
TOOL_FORMATS.register("qwen")(HermesFormat)
TOOL_FORMATS.register("llama3_json")(Llama3Format)
TOOL_FORMATS.register("mistral")(MistralFormat)
TOOL_FORMATS.register("none")(NoToolFormat)

# What a chat template contains if the model was trained on the format.
_TRACES = (
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
    ("ipython", "llama3_json"),
)


def tool_format(name: str, template: str) -> ToolFormat:
    """The format of that name, or the one that a chat template shows.

    A model whose template shows none is told in words, in the format of Hermes.

    Args:
        name: auto, a name in the registry, or a path package.module:Name.
        template: source of the chat template.

    Raises:
        InvalidArgument: there is no such format.
    """
    if name == AUTO:
        name = next((found for trace, found in _TRACES if trace in template), "hermes")
    return TOOL_FORMATS.get(name)()
