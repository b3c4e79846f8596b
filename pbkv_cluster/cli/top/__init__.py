"""`pbkv top`: a cluster in a terminal, live.

`reader` asks the gateway and the predictor, `rows` says it in words, `app` shows it with textual, `command` is the command.
"""
