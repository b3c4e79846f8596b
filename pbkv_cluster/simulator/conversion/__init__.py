"""Traces and logs of others, made into step traces.

`converters` lists what can be read and what each source leaves open. `records` reads files of JSON or CSV, `lengths` logs of
lengths alone, `requests` those of Mooncake, `sharegpt` conversations, `access_log` bodies of OpenAI's API, `langfuse` and
`phoenix` exports of spans, whose agents `span_tree` finds. `conversion` puts the steps in order and writes them.
"""
