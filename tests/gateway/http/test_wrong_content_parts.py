"""What is told of a wrong part of a message's content is what is wrong with it."""

import json
from typing import Any

import pytest

from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.gateway.http.openai.responses_request import ResponsesRequest
from pbkv_cluster.gateway.http.wire.body import parse


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "input_text", "text": 4}, "input[0].content[0].text: Input should be a valid string"),
        ({"type": "input_text", "text": "a", "extra": 1}, "unknown field 'input[0].content[0].extra'"),
        ({"type": "input_text"}, "input[0].content[0].text is required"),
        ({"type": "refusal", "refusal": 4}, "input[0].content[0].refusal: Input should be a valid string"),
        ({"type": "input_image", "image_url": "a"}, "input[0].content[0].type: Input should be"),
    ],
)
async def test_the_wrong_field_of_a_part_is_named(part: dict[str, Any], problem: str) -> None:
    body = {"model": "m", "input": [{"role": "user", "content": [part]}]}
    with pytest.raises(PbkvError) as caught:
        await parse(ResponsesRequest, json.dumps(body).encode())
    assert problem in str(caught.value)
