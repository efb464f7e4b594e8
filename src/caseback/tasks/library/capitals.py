"""A fact recalled: 'The capital of France is' → ' Paris'.

The counterfactual asks for another country's capital, which is the foil. With a model at hand only capitals of one
token are asked for, and the other country's name has as many tokens.
"""

from __future__ import annotations

import math
from random import Random

from caseback.tasks.encode import LanguageModel
from caseback.tasks.library.build import Recipe, build, digits, fill, tokens_of
from caseback.tasks.pair import Pair
from caseback.tasks.schema import Schema
from caseback.tasks.task import Task

__all__ = ["SCHEMA", "capitals"]

SCHEMA = Schema(
    name="capitals",
    spans=("prefix", "country", "link", "last"),
    descriptions={
        "prefix": "everything before the country",
        "country": "the country's name",
        "link": "what stands between the country and the last word",
        "last": "the last word",
    },
)
_OPENINGS = (
    "The",
    "As everybody knows, the",
    "The teacher said that the",
    "The old atlas tells us that the",
    "In the first lesson we learned that the",
)
_CORES = (
    "{opening} capital of| {country}| is the city| of",
    "{opening} capital city of| {country}| is| called",
    "{opening} name of the capital of| {country}|, of course,| is",
    "{opening} government of| {country}| is in the capital,| called",
)
_CAPITALS = tuple(
    tuple(entry.split(":"))
    for entry in (
        "Afghanistan:Kabul Albania:Tirana Algeria:Algiers Angola:Luanda Armenia:Yerevan Australia:Canberra Austria:Vienna "
        "Azerbaijan:Baku Bangladesh:Dhaka Belarus:Minsk Belgium:Brussels Bulgaria:Sofia Cameroon:Yaounde Canada:Ottawa "
        "Chile:Santiago China:Beijing Colombia:Bogota Croatia:Zagreb Cuba:Havana Cyprus:Nicosia Denmark:Copenhagen "
        "Ecuador:Quito Egypt:Cairo Estonia:Tallinn Finland:Helsinki France:Paris Georgia:Tbilisi Germany:Berlin "
        "Ghana:Accra Greece:Athens Hungary:Budapest Iceland:Reykjavik Indonesia:Jakarta Iran:Tehran Iraq:Baghdad "
        "Ireland:Dublin Italy:Rome Jamaica:Kingston Japan:Tokyo Jordan:Amman Kenya:Nairobi Latvia:Riga Lebanon:Beirut "
        "Libya:Tripoli Lithuania:Vilnius Mali:Bamako Malta:Valletta Moldova:Chisinau Mongolia:Ulaanbaatar Morocco:Rabat "
        "Mozambique:Maputo Nepal:Kathmandu Nigeria:Abuja Norway:Oslo Oman:Muscat Pakistan:Islamabad Paraguay:Asuncion "
        "Peru:Lima Philippines:Manila Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow "
        "Rwanda:Kigali Senegal:Dakar Serbia:Belgrade Slovakia:Bratislava Slovenia:Ljubljana Somalia:Mogadishu "
        "Spain:Madrid Sudan:Khartoum Sweden:Stockholm Switzerland:Bern Syria:Damascus Taiwan:Taipei Thailand:Bangkok "
        "Tunisia:Tunis Turkey:Ankara Uganda:Kampala Ukraine:Kyiv Uruguay:Montevideo Venezuela:Caracas Vietnam:Hanoi "
        "Zambia:Lusaka Zimbabwe:Harare "
    ).split()
)


def capitals(n: int = 200, *, seed: int = 0, model: LanguageModel | None = None) -> Task:
    """'The teacher said that the capital of France is' → ' Paris', against the capital of another country."""
    groups: dict[int, list[tuple[str, str]]] = {}
    for country, capital in _CAPITALS:
        if model is None or tokens_of(model, f" {capital}") == 1:
            groups.setdefault(1 if model is None else tokens_of(model, f" {country}"), []).append((country, capital))
    peers = {
        entry[0]: [other for other in group if other is not entry]
        for group in groups.values()
        if len(group) > 1
        for entry in group
    }
    entries = [entry for entry in _CAPITALS if entry[0] in peers]
    sizes = (len(_OPENINGS), len(_CORES), len(entries))

    def pair(number: int, rng: Random) -> Pair:
        opening, core, entry = digits(number, *sizes)
        country, capital = entries[entry]
        other, other_capital = rng.choice(peers[country])
        clean = fill(_CORES[core], SCHEMA, opening=_OPENINGS[opening], country=country)
        counterfactual = fill(_CORES[core], SCHEMA, opening=_OPENINGS[opening], country=other)
        return Pair(
            clean=clean.text,
            counterfactual=counterfactual.text,
            answers=(f" {capital}",),
            foils=(f" {other_capital}",),
            spans=clean.spans,
        )

    description = "Name the capital of a country."
    recipe = Recipe(
        name="capitals", description=description, schema=SCHEMA, metric="logit_diff", size=math.prod(sizes), pair=pair
    )
    return build(recipe, n, seed=seed, model=model)
