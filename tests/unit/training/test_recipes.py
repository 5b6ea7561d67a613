"""What is shipped to be run is valid, names what is there, and is trained on nothing that is evaluated on."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from resrank.core.checkpoint import is_adapter
from resrank.training.config import StartFromCheckpoint
from resrank.training.config_file import load_config
from resrank.training.data_config import Leaks
from resrank.training.mining import Rows
from resrank.training.pool import PassagePool
from resrank.training.sources import load_data
from resrank.training.stage_config import Mode

ROOT = Path(__file__).parents[3]
RECIPES = Path("training", "recipes")
NAMES = ("adapt", "adapt_unlabelled", "default", "encoder", "llm", "qwen3_4b", "same_family", "smoke", "untuned")
SAMPLE = Path("examples", "hotpotqa-mini")
MADE = Path("var")  # what the user makes: git ignores it
TRAINED = Path("checkpoints", "default")


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where recipes are run from: their relative paths count from the working directory."""
    monkeypatch.chdir(ROOT)


def recipe(name: str) -> Path:
    return RECIPES / f"{name}.yaml"


def paths_in(value: object) -> Iterator[Path]:
    """Every path among a config's values."""
    match value:
        case Path():
            yield value
        case dict():
            for inner in value.values():
                yield from paths_in(inner)
        case list() | tuple():
            for inner in value:
                yield from paths_in(inner)


def test_these_are_the_recipes() -> None:
    assert sorted(path.stem for path in RECIPES.iterdir()) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_config_whose_paths_are_in_the_repository_or_made_by_its_user(name: str) -> None:
    config = load_config(recipe(name))
    assert config.active_stages
    assert config.output.parts[:2] == (*MADE.parts, "runs")
    given = {path for path in paths_in(config.model_dump()) if path.parts[0] != MADE.name}
    assert [path for path in given - {TRAINED} if not path.exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_recipe_names_in_the_repository_is_there_comments_too(name: str) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | set(TRAINED.parts[:1])
    words = re.findall(r"[\w.-]+(?:/[\w.-]+)+", recipe(name).read_text(encoding="utf-8"))
    named = {word.rstrip(".") for word in words if word.split("/")[0] in folders - {MADE.name}}
    assert str(recipe(name)) in named
    assert [path for path in sorted(named - {str(TRAINED)}) if not Path(path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_a_recipes_comment_are_valid(name: str) -> None:
    """Each runs this very recipe or one that it starts from, with fields that it has; what takes the user's FOLDER
    reads no other collection."""
    text = recipe(name).read_text(encoding="utf-8").replace("\\\n#", "")
    commands = [shlex.split(line) for line in re.findall(r"^#   (.*resrank.* train .*)$", text, re.MULTILINE)]
    trained = [words[words.index("train") + 1] for words in commands]
    assert str(recipe(name)) == trained[-1]
    assert set(trained) <= {str(recipe(other)) for other in NAMES}
    for words in commands:
        overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
        data = load_config(Path(words[words.index("train") + 1]), overrides).data
        if any("FOLDER" in override for override in overrides):
            assert {path.parts[0] for path in paths_in(data.model_dump())} == {"FOLDER"}


def test_runs_of_different_recipes_do_not_replace_each_other() -> None:
    configs = [load_config(recipe(name)) for name in NAMES]
    assert len({config.output for config in configs}) == len({config.name for config in configs}) == len(NAMES)


def test_lists_that_have_to_be_made_are_those_that_the_script_makes() -> None:
    script = Path("scripts", "make_training_lists.py").read_text(encoding="utf-8")
    made = {MADE / "data" / f"{name}.jsonl.gz" for name in re.findall(r'^ {8}name="(\w+)"', script, re.MULTILINE)}
    for name in NAMES:
        paths = {source.path for source in load_config(recipe(name)).data.train}
        assert {path for path in paths if path and path.is_relative_to(MADE / "data")} <= made, name


@pytest.mark.parametrize("name", ["adapt", "adapt_unlabelled"])
def test_an_adaptation_starts_from_the_trained_default_and_keeps_its_indexes_valid(name: str) -> None:
    config = load_config(recipe(name))
    assert config.model.encoder.mode is Mode.FROZEN
    start = config.start
    assert isinstance(start, StartFromCheckpoint)
    assert start.checkpoint == TRAINED


@pytest.mark.skipif(not (ROOT / TRAINED).is_dir(), reason="this source state has no trained default yet")
def test_the_trained_default_is_there() -> None:
    assert is_adapter(TRAINED)


def test_what_is_trained_on_hotpotqa_excludes_the_sample_collection_made_of_it() -> None:
    excluding = set()
    for name in NAMES:
        data = load_config(recipe(name)).data
        if any("hotpotqa" in str(source.path) for source in data.train):
            assert SAMPLE in data.exclude, name
            assert data.leaks is Leaks.REFUSE, name
            excluding.add(name)
    assert excluding == set(NAMES) - {"adapt", "adapt_unlabelled"}


class Unasked:
    """For lists that have their candidates."""

    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        raise AssertionError


def test_smoke_shares_no_question_with_the_sample_collection() -> None:
    """Loaded as a run loads it, and compared without the normaliser of the exclusion."""
    data = load_data(load_config(recipe("smoke")).data, Unasked())
    trained = [candidates for source in data.train for candidates in source.lists]
    held_back = [candidates for part in data.development for candidates in part.lists]
    assert (len(held_back), len(trained)) == (30, 160)
    with gzip.open(SAMPLE / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        evaluated = {letters(json.loads(line)["text"]) for line in file}
    assert len(evaluated) == 200
    assert evaluated.isdisjoint(letters(candidates.query) for candidates in (*held_back, *trained))


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def test_accelerate_reads_the_fsdp_config() -> None:
    config = load_config_from_file(str(ROOT / "training" / "distributed" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP"
    assert config.mixed_precision == "no"  # precision is the training config's affair
    assert config.fsdp_config["fsdp_version"] == 2  # the only version that Processes takes
