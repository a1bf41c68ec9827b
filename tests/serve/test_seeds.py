"""The published examples of LMDeploy, LoRAX and TensorRT-LLM for OpenAI's client, run as printed with another address.

The server has no flags, as ``make serve`` starts it. Where a page prints what comes out, and a model can know it, the
same comes out here.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.serve.conftest import SEEDS, TRAINED, Server, python_blocks

PAGES = (
    "lmdeploy-structured-output.md",
    "lmdeploy-structured-output.zh.md",
    "lorax-structured-output.md",
    "tensorrt-llm-guided-decoding.md",
)
CITY = re.compile("(London|Paris|Berlin|Rome) is the capital of (England|France|Germany|Italy)")
PRINTED = {
    "json": '{"name": "Paris", "population": 2145206}',
    "regex": "Paris",
    "ebnf": "Paris is the capital of France",
    "structural_tag": """<function=get_current_date>{"timezone": "America/New_York"}</function>
<function=get_current_weather>{"city": "New York", "state": "NY", "unit": "fahrenheit"}</function>""",
}
"""What TensorRT-LLM's page prints, by the type of the format."""
EXAMPLES = [
    pytest.param(source, id=f"{page}-{number}")
    for page in PAGES
    if (SEEDS / page).exists()
    for number, source in enumerate(python_blocks(SEEDS / page))
    if "from openai import" in source
]
pytestmark = [
    pytest.mark.xdist_group("serve"),
    pytest.mark.skipif(not EXAMPLES, reason="the published pages are not here"),
]


@pytest.mark.parametrize("source", EXAMPLES)
def test_example_when_only_the_address_changes_then_it_runs_and_its_output_is_valid(
    source: str, plain_server: Server
) -> None:
    """Model names stay as printed: the server takes any."""
    source = re.sub(r"http://[a-z0-9.]+:\d+/v1", plain_server.url + "/v1", source)
    names: dict[str, Any] = {"__name__": "example", "json": json}  # one example of LoRAX forgets the import
    exec(compile(source, "example", "exec", dont_inherit=True), names)
    if "guide" in names:
        choice = names["response"].choices[0]
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), names["guide"])
    elif "Character" in names:
        names["Character"].model_validate(names["my_character"])
    elif "my_character" in names:
        assert isinstance(names["my_character"], dict)
    elif "json_schema" in names:
        jsonschema.validate(json.loads(names["message"].content), names["json_schema"])
    elif "ebnf_grammar" in names:
        assert CITY.fullmatch(names["message"].content)
    elif '"regex"' in source:
        assert names["message"].content in ("Paris", "London")
    elif "structural_tag" in source:
        _check_calls(names)
    else:
        assert isinstance(names["resp"].choices[0].message.content, str)
    kind = re.search(r'^ {8}"type": "(\w+)",$', source, re.MULTILINE)
    if TRAINED and kind and "message" in names:
        assert "".join(names["message"].content.split()) == "".join(PRINTED[kind[1]].split())


def _check_calls(names: dict[str, Any]) -> None:
    """Every call that is whole names one of the two functions and matches its schema."""
    functions = {
        tool["function"]["name"]: tool["function"]["parameters"]
        for name, tool in names.items()
        if name.startswith("tool_")
    }
    assert len(functions) == 2
    for name, arguments in re.findall(r"<function=(\w+)>(.*?)</function>", names["message"].content):
        jsonschema.validate(json.loads(arguments), functions[name])
