"""OpenAI's API.

fields.py            fields that several requests have, and those that are refused
served_model.py      the name of the model
chat_request.py      the body of a chat completion
chat.py              /v1/chat/completions
completions.py       /v1/completions
logprobs.py          log-probabilities of the tokens of both
responses_request.py the body of a response
responses.py         /v1/responses
response_events.py   its stream
tokenize.py          /tokenize, as vLLM has it
usage.py             usage as these answers write it
answers.py           what the OpenAPI document says of these answers
"""
