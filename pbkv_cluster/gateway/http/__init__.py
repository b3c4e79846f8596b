"""The front door for clients of OpenAI's and Anthropic's APIs. A request passes these files in this order:

server.py                  the parts put together
wire/port.py               the port
wire/connection.py         the connection: time-outs, and a bound on their number
app.py                     the path
wire/endpoint.py           errors in the dialect's shape
wire/body.py               the body: read within bounds, checked against a model
openai/, anthropic/        the dialect: its request to an `Ask`, parts of an answer to its answer
generation/answering.py    as a whole or as a stream, for as long as the client is there
prefetch.py                a request that is no step: to load blocks ahead of one
generation/generation.py   the steps of the request, and the parts of their answers
sessions/sessions.py       the workflow and the agent
tools/conversation.py      tools in the prompt
tools/formats.py           tool calls in the text
wire/replies.py            the answer on its way
"""
