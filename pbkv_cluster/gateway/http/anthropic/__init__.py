"""Anthropic's API.

messages_request.py  the body of a message
messages.py          /v1/messages and /v1/messages/count_tokens
events.py            the stream of a message
errors.py            the shape of errors
answers.py           what the OpenAPI document says of the answers
"""
