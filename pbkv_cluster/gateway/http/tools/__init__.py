"""Tool calls in a model's text: how each family of models writes them.

base.py          the contract: a format, and its parser
formats.py       the registry, and which format a chat template asks for
hermes.py        `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen, and models that have none
whole_answer.py  answers that are calls as a whole: Llama 3 (`{"name": …, "parameters": …}`), Mistral (`[TOOL_CALLS] […]`)
plain.py         `none`: text is text
forced.py        calls that a client demands
conversation.py  tools, calls and results written as text, for a chat template that knows none of them
"""
