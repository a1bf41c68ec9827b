"""Extraction: a text that states facts, and a JSON object that holds them.

Owns: facts, their sentences, their schemas.
Knows nothing about: the shares of the tasks, tokens.

The schema of the object stands in the prompt (as Instructor puts it there, or in fewer words), among the tools, or
nowhere. In the last case a mask gives the keys.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine_adapter.bundled.training import words
from engine_adapter.bundled.training.dialogue import Example, Message, assistant, call, spell, system, user

__all__ = ["codeblock", "hidden_schema", "instructor", "key_value", "people", "short_schema", "tool", "user_detail"]

Json = Any

SYSTEMS = (
    "You are a world class extractor", "You are a helpful assistant.", "You are a world class extractor.", "You extract data.",
    "You are a helpful assistant", "Extract the data from the text.", "You are an assistant that answers in JSON.",
)  # fmt: skip
INSTRUCTOR = """
            As a genius expert, your task is to understand the content and provide
            the parsed objects in json that match the following json_schema:


            {schema}

            Make sure to return an instance of the JSON, not the schema itself
"""
CODEBLOCK = "\n\nReturn the correct JSON response within a ```json codeblock. not the JSON_SCHEMA"
ASKING = (
    "Extract `{}`", "Extract {}", "Extract: {}", 'Extract the following entities: "{}"', "Extract `{}`", "Extract {}", "{}", "{}",
    "Extract the user from this text: {}", "Extract the data from: {}", "Parse this: {}", "Get the details from `{}`",
    'Extract the information from the following sentence: "{}"', "Please extract: {}", "{} Extract this.", "Text: {}",
)  # fmt: skip
USER_SENTENCES = (
    "{name} is {age} years old", "{name} is {age}", "{name} is {age} years old", "{name} is {age} years old.", "{name}, {age}",
    "My name is {name} and I am {age} years old.", "I am {name}, {age} years old", "{name} ({age})", "{name} is aged {age}",
    "{name} turned {age} last week.", "{age} year old {name}", "The user {name} is {age} years old.", "name: {name}, age: {age}",
    "{name} is a {age} year old {job}.", "{name} from {city} is {age}.", "Hi, I'm {name}! I'm {age}.", "{name} just turned {age}",
)  # fmt: skip
MODELS = (
    "UserDetail",
    "UserDetails",
    "UserExtract",
    "UserDetail",
    "User",
    "Person",
    "UserInfo",
    "Customer",
    "PersonInfo",
)


@dataclass(frozen=True)
class Field:
    """One kind of fact.

    Attributes:
        keys: what it may be called, the usual name first.
        schema: the JSON schema of its value.
        make: (rng, held back?) to a value.
        clauses: how a sentence about "{name}" states it; none = the name itself.
    """

    keys: Sequence[str]
    schema: Mapping[str, Json]
    make: Callable[[random.Random, bool], Json]
    clauses: Sequence[str] = ()


STRING, INTEGER, NUMBER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
NAME = Field(
    ("name", "name", "full_name", "person", "user", "username", "customer_name"),
    STRING,
    lambda rng, held_back: person_name(rng, held_back),
)
AGE = Field(
    ("age", "age", "age", "years", "age_in_years", "years_old"),
    INTEGER,
    words.age,
    ("is {} years old", "is {}", "is aged {}"),
)
FACTS = (
    AGE,
    Field(
        ("city", "city", "home_town", "location", "town", "address"),
        STRING,
        words.place,
        ("lives in {}", "comes from {}", "is from {}"),
    ),
    Field(
        ("job", "occupation", "profession", "role", "job_title"),
        STRING,
        lambda r, h: r.choice(words.JOBS),
        ("works as a {}", "is a {}"),
    ),
    Field(("company", "employer", "company_name"), STRING, words.company, ("works at {}", "is employed by {}")),
    Field(
        ("hobby", "hobby", "interest"),
        STRING,
        lambda r, h: r.choice(words.HOBBIES),
        ("likes {}", "loves {}", "enjoys {}"),
    ),
    Field(
        ("email", "email", "email_address", "mail"),
        STRING,
        lambda r, h: words.email(r, words.name(r, h)),
        ("has the email {}", "uses {}"),
    ),
    Field(
        ("phone", "phone_number", "telephone"),
        STRING,
        lambda r, h: words.phone(r),
        ("has the phone number {}", "can be called at {}"),
    ),
    Field(
        ("salary", "income"),
        INTEGER,
        lambda r, h: r.randint(10, 199) * 1000,
        ("earns {} dollars a year", "makes {} dollars"),
    ),
    Field(("height", "height_cm"), INTEGER, lambda r, h: r.randint(140, 210), ("is {} cm tall",)),
    Field(("score", "rating", "grade"), NUMBER, lambda r, h: r.randint(0, 99) / 10, ("has a score of {}", "scored {}")),
    Field(("children", "number_of_children"), INTEGER, lambda r, h: r.randint(0, 6), ("has {} children",)),
    Field(("friend", "best_friend"), STRING, words.name, ("is a friend of {}",)),
    Field(("pet", "dog_name"), STRING, words.name, ("has a dog called {}",)),
    Field(
        ("married", "is_married"),
        BOOLEAN,
        lambda r, h: r.random() < 0.5,
        ("is married|is not married", "is married|is single"),
    ),
    Field(
        ("skills", "languages", "skill_list"),
        {"items": STRING, "type": "array"},
        lambda r, h: r.sample(words.SKILLS, r.randint(1, 3)),
        ("knows {}", "can do {}"),
    ),
)


def person_name(rng: random.Random, held_back: bool) -> str:
    """Returns a first name, a full name, or either in lower case."""
    made = words.name(rng, held_back) if rng.random() < 0.75 else words.full_name(rng, held_back)
    return made.lower() if rng.random() < 0.15 else made


def user_facts(rng: random.Random, held_back: bool) -> tuple[str, dict[str, Json]]:
    """Returns a sentence that gives a name and an age, and the two."""
    made = person_name(rng, held_back)
    years = words.age(rng, held_back)
    town, job = words.place(rng, held_back), rng.choice(words.JOBS)
    return rng.choice(USER_SENTENCES).format(name=made, age=years, city=town, job=job), {"name": made, "age": years}


def facts(rng: random.Random, held_back: bool) -> tuple[str, list[tuple[str, Field, Json]]]:
    """Returns a sentence about a person, and one to five facts of it as (key, field, value), in any order."""
    chosen = rng.sample(FACTS, rng.choice((1, 2, 2, 3, 4)))
    if rng.random() < 0.4 and AGE not in chosen:
        chosen[0] = AGE
    subject = person_name(rng, held_back)
    stated = [(rng.choice(NAME.keys), NAME, subject)]
    clauses = []
    for field in chosen:
        value = field.make(rng, held_back)
        clauses.append(_clause(rng.choice(field.clauses), value))
        stated.append((rng.choice(field.keys), field, value))
    rest = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    sentence = (
        f"{subject} {rest}"
        if rng.random() < 0.85
        else ". ".join([f"{subject} {clauses[0]}", *(f"They {c}" for c in clauses[1:])])
    )
    if rng.random() < 0.3:
        stated = rng.sample(stated, rng.randint(1, len(stated)))  # a schema need not want everything
    elif rng.random() < 0.3:
        rng.shuffle(stated)
    return sentence + rng.choice(("", ".", ".")), stated


def _clause(template: str, value: Json) -> str:
    if isinstance(value, bool):
        return template.split("|")[not value]
    return template.format(" and ".join(value) if isinstance(value, list) else value)


def model_schema(title: str, fields: Sequence[tuple[str, Field]], optional: str | None = None) -> dict[str, Json]:
    """Returns the schema that pydantic writes for a model with these fields, one of which may be null."""
    properties = {}
    for key, field in fields:
        properties[key] = {"title": key.replace("_", " ").title(), "type": field.schema["type"]}
        if "items" in field.schema:
            properties[key] = {"items": field.schema["items"], **properties[key]}
        if key == optional:
            branches = [{"type": field.schema["type"]}, {"type": "null"}]
            properties[key] = {"anyOf": branches, "default": None, "title": properties[key]["title"]}
    required = [key for key, _ in fields if key != optional]
    return {"properties": properties, "required": required, "title": title, "type": "object"}


def list_schema(title: str, item: Mapping[str, Json], key: str = "users") -> dict[str, Json]:
    """Returns the schema that pydantic writes for a model with a list of another model."""
    properties = {key: {"items": {"$ref": f"#/$defs/{item['title']}"}, "title": key.title(), "type": "array"}}
    return {
        "$defs": {item["title"]: item},
        "properties": properties,
        "required": [key],
        "title": title,
        "type": "object",
    }


def system_message(rng: random.Random, share: float = 0.5) -> list[Message]:
    """Returns a short system message, or none."""
    return [system(rng.choice(SYSTEMS))] if rng.random() < share else []


def ask(rng: random.Random, sentence: str) -> str:
    """Returns the request to extract from ``sentence``."""
    return rng.choice(ASKING).format(sentence)


def one_or_more(rng: random.Random, held_back: bool) -> int:
    """Returns the number of turns: several in training, where they share a system message; one when measured."""
    return 1 if held_back else rng.choice((1, 1, 2, 3, 4))


# -- tasks -------------------------------------------------------------------------------------------------------------


def user_detail(rng: random.Random, held_back: bool) -> Example:
    """A name and an age, no schema in sight: what ``{"name", "age"}`` under a mask, or plain JSON mode, gets to see."""
    sentence, answer = user_facts(rng, held_back)
    schema = model_schema(rng.choice(MODELS), [("name", NAME), ("age", AGE)])
    messages = [*system_message(rng), user(ask(rng, sentence)), assistant(spell(answer, rng))]
    return Example(
        "extract, schema only in the mask", messages, grammar=("json_schema", json.dumps(schema)), judge="json"
    )


def hidden_schema(rng: random.Random, held_back: bool) -> Example:
    """Any facts, and keys that only the mask knows."""
    sentence, stated = facts(rng, held_back)
    schema = model_schema(rng.choice(MODELS), [(key, field) for key, field, _ in stated])
    messages = [
        *system_message(rng),
        user(ask(rng, sentence)),
        assistant(spell({key: value for key, _, value in stated}, rng)),
    ]
    return Example(
        "extract varied fields, schema only in the mask",
        messages,
        grammar=("json_schema", json.dumps(schema)),
        judge="json",
    )


def instructor(rng: random.Random, held_back: bool, *, fenced: bool = False) -> Example:
    """Instructor's JSON and MD_JSON modes: the schema in the system message; no mask, or one for any JSON object."""
    many = rng.random() < 0.15
    is_user = many or rng.random() < 0.6
    stated = facts(rng, held_back)[1]
    fields = [("name", NAME), ("age", AGE)] if is_user else [(key, field) for key, field, _ in stated]
    optional = _optional(rng, fields)
    schema = model_schema(rng.choice(MODELS), fields, optional)
    if many:
        schema = list_schema(
            rng.choice(("Users", "UserList", "People")), schema, rng.choice(("users", "users", "people"))
        )
    text = INSTRUCTOR.format(schema=json.dumps(schema, indent=2, ensure_ascii=False))
    messages: list[Message] = [system(f"{rng.choice(SYSTEMS)}\n\n{text}" if rng.random() < 0.3 else text)]
    for _ in range(one_or_more(rng, held_back)):
        sentence, answer = _facts_for(
            rng, held_back, fields, next(iter(schema["properties"])) if many else None, optional
        )
        written = spell(answer)
        messages.append(user(ask(rng, sentence) + CODEBLOCK * fenced))
        if rng.random() < 0.04 and not held_back:
            messages += [assistant(written), user(_complaint(rng, schema))]
        messages.append(assistant(f"```json\n{written}\n```" if fenced else written))
    task = f"Instructor {'MD_JSON' if fenced else 'JSON'}, {'a list of users' if many else 'a user' if is_user else 'varied fields'}"
    return Example(task, messages, grammar=None if fenced else ("json_object", ""), judge="json")


def codeblock(rng: random.Random, held_back: bool) -> Example:
    """Instructor's MD_JSON mode."""
    return instructor(rng, held_back, fenced=True)


def _optional(rng: random.Random, fields: Sequence[tuple[str, Field]]) -> str | None:
    """Returns the key that may be null, if any: never a name, a list or one of name and age."""
    keys = [key for key, field in fields if field is not NAME and "items" not in field.schema]
    return rng.choice(keys) if len(fields) > 2 and keys and rng.random() < 0.3 else None


def _facts_for(
    rng: random.Random,
    held_back: bool,
    fields: Sequence[tuple[str, Field]],
    list_key: str | None,
    optional: str | None = None,
) -> tuple[str, Json]:
    """Returns a sentence that states ``fields``, and their object, or a list of objects under ``list_key``.

    The ``optional`` field is left out of every other sentence, and is null then.
    """
    if list_key is not None:
        pairs = [user_facts(rng, held_back) for _ in range(rng.randint(1, 3))]
        return rng.choice((", ", ". ", " and ", "; ")).join(sentence.rstrip(".") for sentence, _ in pairs), {
            list_key: [u for _, u in pairs]
        }
    if [key for key, _ in fields] == ["name", "age"]:
        return user_facts(rng, held_back)
    values = {key: field.make(rng, held_back) for key, field in fields}
    if optional is not None and rng.random() < 0.5:
        values[optional] = None
    subject = next((values[key] for key, field in fields if field is NAME), None) or person_name(rng, held_back)
    stated = [(field, values[key]) for key, field in fields if field is not NAME and values[key] is not None]
    if not stated or rng.random() < 0.3:
        extra = rng.choice([field for field in FACTS if field not in [f for _, f in fields]])
        stated.append((extra, extra.make(rng, held_back)))
    rng.shuffle(stated)
    clauses = [_clause(rng.choice(field.clauses), value) for field, value in stated]
    return f"{subject} {clauses[0] if len(clauses) == 1 else ', '.join(clauses[:-1]) + ' and ' + clauses[-1]}", values


def _complaint(rng: random.Random, schema: Mapping[str, Json]) -> str:
    key = rng.choice(schema["required"])
    return (
        f"Correct your JSON ONLY RESPONSE, based on the following errors:\n1 validation error for {schema['title']}\n{key}\n"
        "  Field required [type=missing, input_value={}, input_type=dict]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/missing"
    )


def short_schema(rng: random.Random, held_back: bool) -> Example:
    """The schema, or the names of its fields, in the request itself."""
    sentence, stated = facts(rng, held_back)
    schema = model_schema(rng.choice(MODELS), [(key, field) for key, field, _ in stated])
    keys = [key for key, _, _ in stated]
    fields = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    wanted = rng.choice(
        (
            f"Answer in JSON with the fields {fields}.", f"Return JSON: {fields}.", f"Extract {fields} as JSON.",
            f"Answer in JSON that matches this schema: {json.dumps(schema)}", f"Use this JSON schema: {json.dumps(schema)}",
            f"Give me a JSON object with the keys {', '.join(keys)}.",
        )
    )  # fmt: skip
    if rng.random() < 0.3:
        messages = [system(wanted), user(ask(rng, sentence))]
    else:
        messages = [
            *system_message(rng, 0.2),
            user(f"{wanted}\n{sentence}" if rng.random() < 0.5 else f"{sentence}\n{wanted}"),
        ]
    messages.append(assistant(spell({key: value for key, _, value in stated})))
    return Example(
        "extract varied fields, schema in the request",
        messages,
        grammar=("json_schema", json.dumps(schema)),
        judge="json",
    )


def people(rng: random.Random, held_back: bool) -> Example:
    """A list of users, no schema in sight."""
    key = rng.choice(("users", "users", "users", "people"))
    sentence, answer = _facts_for(rng, held_back, (), key)
    schema = list_schema("Users", model_schema("UserDetail", [("name", NAME), ("age", AGE)]), key)
    messages = [
        *system_message(rng),
        user(rng.choice(("Extract the users: {}", "Extract {}", "Extract all users from `{}`")).format(sentence)),
    ]
    messages.append(assistant(spell(answer, rng)))
    return Example(
        "extract a list of users, schema only in the mask",
        messages,
        grammar=("json_schema", json.dumps(schema)),
        judge="json",
    )


def key_value(rng: random.Random, held_back: bool) -> Example:
    """Made-up keys with made-up values, some of which are asked for: nothing to know, only to find and to copy."""
    pairs: dict[str, Json] = {}
    for _ in range(rng.randint(1, 6)):
        pairs[words.word(rng)] = rng.randint(0, 9999) if rng.random() < 0.4 else person_name(rng, held_back)
    wanted = dict(rng.sample(sorted(pairs.items(), key=lambda p: p[0]), rng.randint(1, len(pairs))))
    is_form = rng.choice((": ", " = ", " is "))
    text = rng.choice((", ", "; ", "\n")).join(f"{key}{is_form}{value}" for key, value in pairs.items())
    schema = {"type": "object", "properties": {k: STRING if isinstance(v, str) else INTEGER for k, v in wanted.items()}}
    wish = rng.choice(("Extract {} as JSON.", "Return JSON: {}.", "Give me {} in JSON.")).format(", ".join(wanted))
    messages = [*system_message(rng, 0.2), user(f"{text}\n{wish}"), assistant(spell(wanted))]
    source = json.dumps({**schema, "required": list(wanted)})
    return Example("extract made-up keys", messages, grammar=("json_schema", source), judge="json")


def tool(rng: random.Random, held_back: bool) -> Example:
    """Instructor's TOOLS mode: one function whose parameters are the schema."""
    stated = facts(rng, held_back)[1]
    fields = [("name", NAME), ("age", AGE)] if rng.random() < 0.6 else [(key, field) for key, field, _ in stated]
    title = rng.choice(MODELS)
    schema = model_schema(title, fields)
    parameters = {"properties": schema["properties"], "required": sorted(schema["required"]), "type": "object"}
    description = f"Correctly extracted `{title}` with all the required parameters with correct types"
    function = {"name": title, "description": description, "parameters": parameters}
    messages = system_message(rng, 0.3)
    for _ in range(one_or_more(rng, held_back)):
        sentence, answer = _facts_for(rng, held_back, fields, None)
        messages += [user(ask(rng, sentence)), assistant(call(title, answer))]
    example = Example(
        "Instructor TOOLS", messages, [{"type": "function", "function": function}], structural_tag([function]), "calls"
    )
    return arguments_only(example) if rng.random() < 0.2 and not held_back else example


def arguments_only(example: Example) -> Example:
    """Returns ``example`` with bare arguments instead of calls, as a server asks for after a named ``tool_choice``."""
    pattern = re.compile(r"<function=[^>]*>(.*?)</function>", re.DOTALL)
    messages = [
        assistant(pattern.sub(r"\1", message["content"])) if message["role"] == "assistant" else message
        for message in example.messages
    ]
    return dataclasses.replace(example, messages=messages)


def structural_tag(functions: Sequence[Mapping[str, Json]]) -> tuple[str, str]:
    """Returns the grammar under which text may hold calls of ``functions`` with valid arguments, and no others."""
    tags = [
        {
            "begin": f"<function={function['name']}>",
            "content": {"type": "json_schema", "json_schema": function["parameters"]},
            "end": "</function>",
        }
        for function in functions
    ]
    return "structural_tag", json.dumps(
        {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<function="], "tags": tags}}
    )
