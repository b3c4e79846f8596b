"""HTTP itself, whatever the dialect.

connection.py  one connection: time-outs, and a bound on their number
body.py        a request's body: read within a bound, then checked against a model
schemas.py     JSON schemas of answers
problems.py    errors as statuses, types and codes
replies.py     answers: JSON, streams of events, and what happens when the client goes away
endpoint.py    one path: its method, its dialect's shape of errors, its part of the OpenAPI document
openapi.py     the OpenAPI document
"""
