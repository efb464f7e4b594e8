"""A config from plain data: what fits becomes the dataclass, what does not is named."""

from __future__ import annotations

import pytest

from caseback.circuits.discover import DiscoverConfig
from caseback.core.errors import CasebackError, StudyError
from caseback.relations.judge import JudgeConfig
from caseback.study.asked import config_of
from caseback.study.circuit import CircuitConfig


def test_plain_data_becomes_the_config():
    asked = {"task": "ioi", "n": 40, "discover": {"points": 6, "target": 1}}
    assert config_of("circuit", asked) == CircuitConfig(task="ioi", n=40, discover=DiscoverConfig(points=6, target=1.0))
    found = config_of("relation", {"relation": "us state capital", "judge": {"train": 4}})
    assert found.judge == JudgeConfig(train=4)
    assert config_of("lens", {"prompt": "p", "answers": ["a", "b"]}).answers == ("a", "b")
    assert config_of("circuit", {"task": "ioi", "n": None}).n is None


@pytest.mark.parametrize(
    ("method", "asked", "said"),
    [
        ("nosuch", {}, "there is no method 'nosuch'"),
        ("circuit", {}, "circuit needs the setting 'task'"),
        ("circuit", {"task": "ioi", "tsak": 1}, "circuit has no setting 'tsak'; did you mean 'task'?"),
        ("circuit", {"task": "ioi", "zzz": 1}, "circuit has no setting 'zzz'; it has: task, n"),
        ("circuit", {"task": 3}, "circuit.task is 3; it takes a text"),
        ("circuit", {"task": "ioi", "n": "many"}, "circuit.n is 'many'; it takes a whole number or nothing"),
        ("circuit", {"task": "ioi", "n": True}, "circuit.n is True; it takes a whole number or nothing"),
        (
            "circuit",
            {"task": "ioi", "discover": {"mixing": "soft"}},
            "circuit.discover.mixing is 'soft'; choose one of",
        ),
        ("circuit", {"task": "ioi", "discover": {"point": 3}}, "circuit.discover has no setting 'point'; did you mean"),
        ("lens", {"prompt": "p", "answers": "a"}, "lens.answers is 'a'; it takes a list of texts"),
        ("lens", {"prompt": "p", "answers": ["a", 1]}, "lens.answers is 1; it takes a text"),
        ("relation", {"relation": "us state capital", "judge": 3}, "relation.judge is 3; it takes a table of settings"),
        ("relation", {"relation": "us state capital", "judge": {"train": 1}}, "at least 2"),
    ],
)
def test_what_does_not_fit_is_named(method, asked, said):
    with pytest.raises(CasebackError) as error:
        config_of(method, asked)
    assert said in str(error.value)
    assert isinstance(error.value, StudyError) or method in ("nosuch", "relation")


def test_the_seed_of_a_run_is_the_seed_of_all_that_is_drawn():
    assert config_of("relation", {"relation": "us state capital", "seed": 7}).judge.seed == 7
    assert config_of("attribute", {"relation": "us state capital", "prompt": "p", "seed": 7}).judge.seed == 7
    assert config_of("concepts", {"relation": "us state capital", "seed": 7, "judge": {"seed": 3}}).judge.seed == 7
    assert config_of("cross", {"relations": ["us state capital", "word first letter"], "seed": 7}).judge.seed == 7
    assert config_of("circuit", {"task": "ioi", "seed": 7}).discover.seed == 7


def test_a_twin_is_refused_before_anything_is_judged():
    for method, asked in (
        ("cross", {"relations": ["us state capital", "word first letter"]}),
        ("concepts", {"relation": "us state capital"}),
        ("audit", {}),
    ):
        with pytest.raises(CasebackError, match="random weights knows nothing|looks at the model itself"):
            config_of(method, {**asked, "twin": True})
