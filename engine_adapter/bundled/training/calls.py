"""Function calls: weather and date, as a well-known example prompt asks for them, and made-up functions.

Owns: these tasks.
Knows nothing about: the shares of the tasks, tokens.

A call is written ``<function=NAME>{arguments}</function>``, with the functions in a system prompt or among the tools.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from engine_adapter.bundled.training import words
from engine_adapter.bundled.training.dialogue import Example, Message, assistant, call, system, user
from engine_adapter.bundled.training.extraction import one_or_more, structural_tag

__all__ = ["made_up_function", "made_up_functions", "made_up_turn", "weather_and_date", "weather_and_date_tools"]

Json = Any

WEATHER: dict[str, Json] = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city to find the weather for, e.g. 'San Francisco'"},
            "state": {
                "type": "string",
                "description": "the two-letter abbreviation for the state that the city is in, e.g. 'CA' which would mean 'California'",
            },
            "unit": {
                "type": "string",
                "description": "The unit to fetch the temperature in",
                "enum": ["celsius", "fahrenheit"],
            },
        },
        "required": ["city", "state", "unit"],
    },
}
DATE: dict[str, Json] = {
    "name": "get_current_date",
    "description": "Get the current date and time for a given timezone",
    "parameters": {
        "type": "object",
        "properties": {
            "timezone": {
                "type": "string",
                "description": "The timezone to fetch the current date and time for, e.g. 'America/New_York'",
            }
        },
        "required": ["timezone"],
    },
}
INSTRUCTIONS = """# Tool Instructions
- Always execute python code in messages that you share.
- When looking for real time information use relevant functions if available else fallback to brave_search
You have access to the following functions:
{functions}
If a you choose to call a function ONLY reply in the following format:
<{{start_tag}}={{function_name}}>{{parameters}}{{end_tag}}
where
start_tag => `<function`
parameters => a JSON dict with the function argument name as key and function argument value as value.
end_tag => `</function>`
Here is an example,
<function=example_function_name>{{"example_name": "example_value"}}</function>
Reminder:
- Function calls MUST follow the specified format
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line
- Always add your sources when using search results to answer the user query
You are a helpful assistant."""
"""The system prompt that TensorRT-LLM's guide to guided decoding prints, with the functions left out."""

_BOTH = (
    "You are in {}. Please get the current date and time, and the weather.", "I am in {}. Get the date and the weather.",
    "What are the date and the weather in {}?", "Please get the current date and time, and the weather in {}.",
    "You are in {}. Please get the date, and the weather.",
)  # fmt: skip
_WEATHER = (
    "What is the weather in {}?", "You are in {}. Please get the weather.", "How is the weather in {} today?", "Weather in {}",
    "What's the weather like in {}?", "I am in {}. Is it raining?", "Get the current weather in {}.",
)  # fmt: skip
_DATE = (
    "What time is it in {}?", "You are in {}. Please get the current date and time.", "What is the date in {}?",
    "I am in {}. What day is it?", "Get the current date in {}.",
)  # fmt: skip
_VERBS = "get find search book send create delete update open close start stop add remove count check list read write play".split()  # noqa: SIM905
_ARGUMENTS = (
    "name",
    "city",
    "amount",
    "count",
    "title",
    "id",
    "date",
    "room",
    "item",
    "user",
    "level",
    "note",
    "size",
    "color",
)
_NUMERIC = {"amount", "count", "id", "room", "level", "size"}


def instructions(functions: Sequence[Mapping[str, Json]]) -> str:
    """Returns the system prompt with ``functions``, each printed as a Python dict."""
    lines = [
        f"Use the function '{function['name']}' to: {function['description']}\n{ {'type': 'function', 'function': function} }"
        for function in functions
    ]
    return INSTRUCTIONS.format(functions="\n".join(lines))


def weather_and_date(rng: random.Random, held_back: bool) -> Example:
    """The functions in the system prompt, in its own words."""
    messages: list[Message] = [system(instructions([WEATHER, DATE]))]
    for _ in range(1 if held_back else rng.choice((1, 3, 4, 5, 6))):
        messages += _weather_turn(rng, held_back)
    return Example(
        "weather and date, functions in the system prompt", messages, (), structural_tag([WEATHER, DATE]), "calls"
    )


def weather_and_date_tools(rng: random.Random, held_back: bool) -> Example:
    """The same functions as OpenAI's tools."""
    functions = rng.choice(([WEATHER, DATE], [DATE, WEATHER], [WEATHER, DATE]))
    messages: list[Message] = [system("You are a helpful assistant.")] if rng.random() < 0.5 else []
    for _ in range(1 if held_back else rng.choice((1, 2, 3, 4))):
        messages += _weather_turn(rng, held_back)
        if (
            rng.random() < 0.15
            and not held_back
            and str(messages[-1]["content"]).startswith("<function=get_current_weather>")
        ):
            degrees, sky = rng.randint(-10, 40), rng.choice(("sunny", "cloudy", "rainy", "windy", "clear"))
            messages += [{"role": "tool", "content": f'{{"temperature": {degrees}, "sky": "{sky}"}}'}]
            messages += [assistant(f"It is {degrees} degrees and {sky}.")]
    if messages[-2]["role"] == "tool":
        messages += _weather_turn(rng, held_back)
    tools = [{"type": "function", "function": function} for function in functions]
    return Example("weather and date, tools", messages, tools, structural_tag(functions), "calls")


def _weather_turn(rng: random.Random, held_back: bool) -> list[Message]:
    """Returns a question and its calls. The question gives the state of a city that is not learnt by heart."""
    if rng.random() < 0.65:
        city = asked = rng.choice(sorted(words.CITIES))
        state, timezone, unit = words.CITIES[city]
    else:
        city, state = words.place(rng, held_back), rng.choice(sorted(words.STATES))
        asked, timezone, unit = f"{city}, {state}", words.STATES[state], "fahrenheit"
    if rng.random() < 0.15:
        unit = "celsius"
    weather = call("get_current_weather", {"city": city, "state": state, "unit": unit})
    date = call("get_current_date", {"timezone": timezone})
    wish, answer = rng.choice(
        ((_BOTH, f"{date}\n{weather}"), (_BOTH, f"{date}\n{weather}"), (_WEATHER, weather), (_DATE, date))
    )
    text = rng.choice(wish).format(asked)
    if unit == "celsius" and weather in answer:
        text += rng.choice((" Use celsius.", " In celsius, please."))
    elif unit == "fahrenheit" and rng.random() < 0.1:
        text += " Use fahrenheit."
    return [user(text), assistant(answer)]


def made_up_functions(rng: random.Random, held_back: bool) -> Example:
    """One to three made-up functions; the request names one of them and its arguments."""
    functions = [made_up_function(rng) for _ in range(rng.randint(1, 3))]
    messages: list[Message] = []
    in_prompt = rng.random() < 0.15
    if in_prompt:
        messages.append(system(instructions(functions)))
    for _ in range(one_or_more(rng, held_back)):
        messages += made_up_turn(rng, held_back, rng.choice(functions))
    tools = [] if in_prompt else [{"type": "function", "function": function} for function in functions]
    return Example("made-up functions", messages, tools, structural_tag(functions), "calls")


def made_up_turn(rng: random.Random, held_back: bool, function: Mapping[str, Json]) -> list[Message]:
    """Returns a request that names ``function`` and its arguments, and the call."""
    arguments: dict[str, Json] = {}
    for key, schema in function["parameters"]["properties"].items():
        arguments[key] = rng.randint(1, 999) if schema["type"] == "integer" else words.name(rng, held_back)
    said = rng.choice((", ", " and ", " with ")).join(f"{key} {value}" for key, value in arguments.items())
    verb, _, noun = function["name"].partition("_")
    if not arguments:
        wish = rng.choice(("{} the {}.", "Please {} the {}.", "{} a {}", "{} {}")).format(verb, noun)
    else:
        wish = rng.choice(("{} the {} with {}.", "Please {} the {}: {}.", "{} a {}, {}", "{} {} with {}")).format(
            verb, noun, said
        )
    return [user(wish[0].upper() + wish[1:]), assistant(call(function["name"], arguments))]


def made_up_function(rng: random.Random) -> dict[str, Json]:
    """Returns a made-up function with one to three parameters."""
    verb, noun = rng.choice(_VERBS), words.word(rng)
    keys = rng.sample(_ARGUMENTS, rng.randint(1, 3))
    properties = {key: {"type": "integer" if key in _NUMERIC else "string"} for key in keys}
    parameters = {"type": "object", "properties": properties, "required": keys}
    return {"name": f"{verb}_{noun}", "description": f"{verb.capitalize()} a {noun}", "parameters": parameters}
