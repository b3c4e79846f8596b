"""The engines behind the sidecar: how they are asked, what they hold, and which one is chosen.

upstream.py       one engine's HTTP port
text_prefixes.py  beginnings of texts that an engine has had: for want of a tokenizer or of KV events
engine.py         one engine: what it holds, its load, its speed, whether it is there
fleet.py          all engines: follows their KV events, asks for their health
prompts.py        what a choice compares of a prompt: text, and token ids with a tokenizer
placement.py      the engine of a step
"""
