"""Words for the training data: invented names, and short tables of things that the model is taught by heart.

Owns: name making, and the split into names for training and names held back.
Knows nothing about: prompts, schemas, tokens.
"""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

import random
import zlib

__all__ = [
    "CITIES", "COUNTRIES", "FIELDS_OF_WORK", "HOBBIES", "JOBS", "PRODUCTS", "SKILLS", "STATES",
    "age", "company", "email", "full_name", "is_held_back", "name", "phone", "place", "word",
]  # fmt: skip

_ONSETS = (
    "b c d f g h j k l m n p r s t v w y z br ch cl cr dr fl fr gr kr pl pr qu sh sk sl st th tr".split() + [""] * 6
)
_VOWELS = "a a a a e e e e i i i o o o u u y ae ai au ea ee ia ie io oa oo ou".split()
_CODAS = "b ck d f g k l ll m n n n nd ng nn nt p r r rd rk rs rt s s sh sk ss st t th tt x z".split() + [""] * 16
_COMMON = (
    "Ada Adam Ahmed Aisha Alan Alex Alice Amy Ana Andrew Anna Anne Arthur Ben Betty Bob Brian Carl Carlos Carol Chen Chloe Chris Clara "
    "Daniel David Diana Diego Donald Elena Eli Ella Emily Emma Eric Eva Fatima Felix Frank Fred George Grace Hana Hannah Harry Helen "
    "Henry Hugo Ian Ibrahim Igor Ivan Jack Jacob James Jan Jane Jim Joe John Jon Jorge Jose Juan Julia Karen Karl Kate Ken Kevin Kim "
    "Lara Laura Lea Lena Leo Liam Linda Lisa Lucas Lucy Luis Maria Mark Martin Mary Max Maya Mia Michael Mike Mona Nadia Nina Noah "
    "Nora Oliver Omar Oscar Paul Pedro Peter Priya Rachel Ravi Robert Rosa Ruth Sam Sara Sarah Simon Sofia Sophie Stefan Steve Susan "
    "Tina Tom Uma Vera Victor Wei William Yuki Zoe"
).split()
_SUFFIXES = "ton ville burg ford field port stad grad haven dale wick by mouth bridge".split()
_FIRM = "Labs Works Systems Group Foods Motors Partners Media Bank Studio Energy Software Design Industries".split()
_SEED_NAMES = {"jason", "thorin", "eldrin", "aragon", "alaric"}
_SEED_AGES = {20, 25, 30}
"""Names and ages in the examples that users will try first: held back, so that a right answer was not learnt by
heart."""

COUNTRIES: dict[str, tuple[str, int]] = {
    country: (capital, int(population))
    for country, capital, population in (
        line.split(",")
        for line in (
            "France,Paris,2145206;England,London,8799800;Germany,Berlin,3677472;Italy,Rome,2748109;Spain,Madrid,3332035;"
            "Portugal,Lisbon,545796;Austria,Vienna,2005760;Greece,Athens,643452;Norway,Oslo,709037;Ireland,Dublin,592713;"
            "Poland,Warsaw,1863056;Finland,Helsinki,674500;Hungary,Budapest,1686222;Sweden,Stockholm,984748;Denmark,Copenhagen,653664;"
            "Belgium,Brussels,188737;Netherlands,Amsterdam,931298;Switzerland,Bern,134506;Croatia,Zagreb,767131;Serbia,Belgrade,1197714;"
            "Romania,Bucharest,1716961;Bulgaria,Sofia,1274290;Ukraine,Kyiv,2952301;Russia,Moscow,13010112;Turkey,Ankara,5803482;"
            "Egypt,Cairo,10100166;Kenya,Nairobi,4397073;Ghana,Accra,284124;Nigeria,Abuja,1235880;Morocco,Rabat,577827;"
            "Japan,Tokyo,14094034;China,Beijing,21893095;India,Delhi,16787941;Thailand,Bangkok,5676648;Vietnam,Hanoi,8053663;"
            "Indonesia,Jakarta,10562088;Philippines,Manila,1846513;Iran,Tehran,8693706;Iraq,Baghdad,6183000;Israel,Jerusalem,981711;"
            "Canada,Ottawa,1017449;Cuba,Havana,2137847;Peru,Lima,10092000;Chile,Santiago,6257516;Argentina,Buenos Aires,3120612;"
            "Brazil,Brasilia,2817381;Colombia,Bogota,7743955;Mexico,Mexico City,9209944;Australia,Canberra,456692;Scotland,Edinburgh,506520"
        ).split(";")
    )
}
"""Country to its capital and the number of people there."""

CITIES: dict[str, tuple[str, str, str]] = {
    city: (state, timezone, unit)
    for city, state, timezone, unit in (
        line.split(",")
        for line in (
            "New York,NY,America/New_York,fahrenheit;Boston,MA,America/New_York,fahrenheit;Miami,FL,America/New_York,fahrenheit;"
            "Atlanta,GA,America/New_York,fahrenheit;Detroit,MI,America/Detroit,fahrenheit;Philadelphia,PA,America/New_York,fahrenheit;"
            "Chicago,IL,America/Chicago,fahrenheit;Houston,TX,America/Chicago,fahrenheit;Dallas,TX,America/Chicago,fahrenheit;"
            "Austin,TX,America/Chicago,fahrenheit;New Orleans,LA,America/Chicago,fahrenheit;Denver,CO,America/Denver,fahrenheit;"
            "Phoenix,AZ,America/Phoenix,fahrenheit;San Francisco,CA,America/Los_Angeles,fahrenheit;"
            "Los Angeles,CA,America/Los_Angeles,fahrenheit;San Diego,CA,America/Los_Angeles,fahrenheit;"
            "Seattle,WA,America/Los_Angeles,fahrenheit;Portland,OR,America/Los_Angeles,fahrenheit;"
            "Las Vegas,NV,America/Los_Angeles,fahrenheit;Honolulu,HI,Pacific/Honolulu,fahrenheit"
        ).split(";")
    )
}
"""City to its state, time zone and unit of temperature."""

STATES = {
    "CA": "America/Los_Angeles", "WA": "America/Los_Angeles", "TX": "America/Chicago", "IL": "America/Chicago",
    "NY": "America/New_York", "FL": "America/New_York", "CO": "America/Denver", "AZ": "America/Phoenix",
}  # fmt: skip
JOBS = (
    "teacher,engineer,doctor,nurse,baker,pilot,farmer,lawyer,painter,chef,driver,writer,student,designer,carpenter,plumber,"
    "data scientist,software engineer,bus driver,shop owner,tailor,librarian,electrician,sales manager"
).split(",")
HOBBIES = "chess,hiking,painting,swimming,cooking,reading,cycling,fishing,dancing,running,gardening,sailing,tennis,music".split(
    ","
)
SKILLS = "python rust java go sql linux docker writing teaching design testing cooking music chess law physics math sales art".split()
FIELDS_OF_WORK = "software,teaching,design,research,sales,cooking,music,medicine,farming,shipping".split(",")
PRODUCTS = (
    "apples,pens,chairs,lamps,books,phones,cups,shoes,tickets,bags,bottles,tables,keys,candles,bikes,tents".split(",")
)


def is_held_back(text: str) -> bool:
    """Says whether ``text``, a name or a made-up word, is kept out of training: one in eight, and well-known ones."""
    return text.lower() in _SEED_NAMES or zlib.crc32(text.lower().encode()) % 8 == 0


def name(rng: random.Random, held_back: bool) -> str:
    """Returns a first name, invented but for one in five, of the wanted part of the split."""
    while True:
        made = rng.choice(_COMMON) if rng.random() < 0.2 else word(rng).capitalize()
        if is_held_back(made) == held_back:
            return made


def full_name(rng: random.Random, held_back: bool) -> str:
    """Returns a name of two words, seldom three."""
    return " ".join(name(rng, held_back) for _ in range(2 if rng.random() < 0.9 else 3))


def word(rng: random.Random) -> str:
    """Returns a made-up word in lower case, mostly of syllables, seldom of any letters, 2 to 12 of them."""
    while True:
        if rng.random() < 0.1:
            made = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))
        else:
            syllables = rng.choice((1, 2, 2, 2, 3))
            made = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
        if 2 <= len(made) <= 12:
            return made


def age(rng: random.Random, held_back: bool) -> int:
    """Returns an age in years, of the wanted part of the split."""
    while True:
        years = rng.randint(1, 99) if rng.random() < 0.97 else rng.randint(100, 130)
        if (years in _SEED_AGES or is_held_back(str(years))) == held_back:
            return years


def place(rng: random.Random, held_back: bool) -> str:
    """Returns a town, invented but for one in five."""
    if rng.random() < 0.2:
        return rng.choice([*CITIES, *(capital for capital, _ in COUNTRIES.values())])
    made = name(rng, held_back)
    return made + rng.choice(_SUFFIXES) if len(made) < 7 and rng.random() < 0.5 else made


def company(rng: random.Random, held_back: bool) -> str:
    """Returns the name of a firm."""
    made = name(rng, held_back)
    return f"{made} {rng.choice(_FIRM)}" if rng.random() < 0.6 else made


def email(rng: random.Random, person: str) -> str:
    """Returns an address made of ``person``."""
    return f"{person.lower().replace(' ', '.')}@{rng.choice(('example', 'mail', word(rng)))}.{rng.choice(('com', 'org', 'net'))}"


def phone(rng: random.Random) -> str:
    """Returns a telephone number as text."""
    return f"{rng.randint(200, 999)}-{rng.randint(1000, 9999)}"
