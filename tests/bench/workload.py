"""What every path of the benchmark decodes: JSON documents of one schema, each sequence at another place.

The documents hold what real ones hold: keys and punctuation that the schema forces, free strings in several languages,
numbers, enums and booleans. When a document ends its sequence is rolled back to the start and decodes it again.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import mistral_common
import numpy as np
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from numpy.typing import NDArray

TEKKEN = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"

_STRING, _INTEGER, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


def _object(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMA = json.dumps(
    _object(
        order_id=_INTEGER,
        customer=_object(name=_STRING, email=_STRING, city=_STRING, vip={"type": "boolean"}),
        lines={
            "type": "array",
            "items": _object(title=_STRING, quantity=_INTEGER, price=_NUMBER, tags={"type": "array", "items": _STRING}),
        },
        status={"enum": ["open", "paid", "shipped", "returned"]},
        remark=_STRING,
        total=_NUMBER,
    )
)

_WORDS = (
    "a parcel arrived at noon and nobody was there to sign for it so please leave the box with our neighbour Größe "
    "Straße 北京 crème brûlée invoice 2024-03-17 réf. naïve O'Brien half-price «merci» the lamp flickers when it rains"
).split()


def _document(random_: random.Random) -> dict[str, object]:
    def text(low: int, high: int) -> str:
        return " ".join(random_.choices(_WORDS, k=random_.randint(low, high)))

    return {
        "order_id": random_.randrange(10**9),
        "customer": {
            "name": text(2, 3),
            "email": f"{random_.choice(_WORDS)}@example.org",
            "city": text(1, 2),
            "vip": random_.random() < 0.5,
        },
        "lines": [
            {
                "title": text(2, 8),
                "quantity": random_.randrange(1, 20),
                "price": round(random_.uniform(1, 900), 2),
                "tags": [text(1, 1) for _ in range(random_.randrange(3))],
            }
            for _ in range(random_.randrange(1, 4))
        ],
        "status": random_.choice(["open", "paid", "shipped", "returned"]),
        "remark": text(5, 40),
        "total": round(random_.uniform(1, 5000), 2),
    }


@dataclass(frozen=True)
class Walk:
    """The tokens of every sequence at every step.

    Attributes:
        prefixes: for each sequence, the tokens that it has accepted before step 0.
        tokens: (steps, batch) int32, what is accepted at each step.
        restarts: (steps, batch) bool, where the sequence is rolled back to its start first.
    """

    prefixes: list[list[int]]
    tokens: NDArray[np.int32]
    restarts: NDArray[np.bool_]

    @property
    def batch(self) -> int:
        return self.tokens.shape[1]


def documents(count: int = 24, seed: int = 1) -> list[list[int]]:
    """Returns documents of ``SCHEMA`` as Tekken token ids, without a stop token."""
    random_ = random.Random(seed)
    tekken = Tekkenizer.from_file(TEKKEN)
    return [
        tekken.encode(json.dumps(_document(random_), ensure_ascii=False), bos=False, eos=False) for _ in range(count)
    ]


def walk(texts: list[list[int]], batch: int, steps: int) -> Walk:
    """Lets sequence i walk document i, from a place of its own."""
    chosen = [texts[i % len(texts)] for i in range(batch)]
    starts = [(41 * i) % len(text) for i, text in enumerate(chosen)]
    places = np.array(
        [[(start + k) % len(text) for start, text in zip(starts, chosen, strict=True)] for k in range(steps)]
    )
    tokens = np.array(
        [[text[place] for place, text in zip(row, chosen, strict=True)] for row in places], dtype=np.int32
    )
    restarts = places == 0
    restarts[0, [start == 0 for start in starts]] = False
    return Walk([text[:start] for text, start in zip(chosen, starts, strict=True)], tokens, restarts)
