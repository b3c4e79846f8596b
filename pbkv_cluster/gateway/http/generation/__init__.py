"""One request of any dialect: the steps that it becomes, and the parts of their answers.

ask.py         what a dialect's request asks for, as plain values
parts.py       the parts of an answer, in the order in which they come
generation.py  runs the steps, and finds tool calls in their text
answering.py   as a whole or as a stream, for as long as the client is there
counting.py    tokens of a prompt, without a step
whole.py       the parts put together, for a client that does not stream
"""
