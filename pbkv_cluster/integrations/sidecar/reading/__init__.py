"""What requests and answers say, read without refusing anything: what cannot be read is passed on all the same.

asked.py    a request: its conversation, its tools, what it says of its workflow
answers.py  an answer as it passes: its text, its tool calls, its usage
"""
