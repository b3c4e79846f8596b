"""HTTP itself, whatever the dialect.

connection.py  one connection: time-outs, and a bound on their number
body.py        a request's body: read within a bound, then checked against a model
json_bounds.py how many values a body holds, before it is parsed
wrong_fields.py what is told of a body that its model refuses
schemas.py     JSON schemas of answers
problems.py    errors as statuses, types and codes
replies.py     answers: JSON, streams of events, and what happens when the client goes away
endpoint.py    one path: its method, its dialect's shape of errors, its part of the OpenAPI document
openapi.py     the OpenAPI document
"""
