"""From a data config to the lists that are trained on and those that the best checkpoint is chosen by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from resrank.core.errors import InvalidInputError
from resrank.core.progress import Notify
from resrank.training.data_config import DataConfig, HeldBack, Leaks, SyntheticSource, is_derived
from resrank.training.exclusion import Exclusion, question_key, refuse_leaks
from resrank.training.lists import CandidateList
from resrank.training.passages import PassageReader, corpus_passages
from resrank.training.pool import PoolBuilder
from resrank.training.questions import CandidateRetriever, QuestionReader, SyntheticLists, told


@dataclass(frozen=True, slots=True)
class Source:
    """Lists to train on.

    Attributes:
        name: What logs and reports call it.
        weight: Its share of what is trained on, relative to the other sources' weights.
        lists: At least one.
    """

    name: str
    weight: float
    lists: tuple[CandidateList, ...]


@dataclass(frozen=True, slots=True)
class DevelopmentSet:
    """Lists of one kind that the best checkpoint is chosen by.

    Attributes:
        name: What logs and reports call it.
        lists: At least one, at full length and best first.
    """

    name: str
    lists: tuple[CandidateList, ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything a run reads.

    Attributes:
        train: The training sources.
        development: The sets that the best checkpoint is chosen by. None of their questions is among the training
            lists'.
    """

    train: tuple[Source, ...]
    development: tuple[DevelopmentSet, ...]


def load_data(
    config: DataConfig,
    retriever: CandidateRetriever,
    notify: Notify = lambda sentence: None,
    read_passages: PassageReader = corpus_passages,
) -> TrainingData:
    """Reads and checks all data of a run, and retrieves candidates where they are not given.

    Args:
        config: What to read.
        retriever: Finds candidates; asked for nothing before all files are read and no question has leaked.
        notify: Told what each source gave and what was left out, a sentence at a time.
        read_passages: Reads the passages of synthetic sources.

    Returns:
        The training sources and the development sets.

    Raises:
        InvalidInputError: A file or line is wrong, a source gives no list, or more lists are to be held back than a
            source has.
        LeakError: A question of ``config.exclude`` stands in a source.
    """
    hold_back = next((part.hold_back for part in config.development if isinstance(part, HeldBack)), 0)
    exclusions = [Exclusion.read(path) for path in config.exclude]
    evaluated = {key for exclusion in exclusions for key in exclusion.questions}
    reader = QuestionReader(config.candidates, evaluated, read_passages)
    train = [reader.read(source, hold_back) for source in config.train if not is_derived(source)]
    chosen_by = [reader.read(part, 0) for part in config.development if not isinstance(part, HeldBack)]
    if config.leaks is Leaks.REFUSE:
        refuse_leaks([*train, *chosen_by], exclusions)
    kept_apart = {text for questions in train for text in questions.held_back_texts}

    def without_excluded(name: str, lists: Sequence[CandidateList]) -> list[CandidateList]:
        return _without(evaluated, lists, notify, name, "list that asks an excluded question")

    development = []
    for questions in chosen_by:
        lists = without_excluded(questions.name, questions.lists(retriever, notify).train)
        development.append(DevelopmentSet(questions.name, tuple(lists)))
    found: dict[str, Sequence[CandidateList]] = {}
    for questions in train:
        lists_of = questions.apart_from(kept_apart).lists(retriever, notify)
        found[questions.name] = without_excluded(questions.name, lists_of.train)
        if hold_back:
            held_back = without_excluded(questions.name, lists_of.held_back)
            development.append(DevelopmentSet(questions.name, tuple(held_back)))
    for part in development:
        if not part.lists:
            raise InvalidInputError("data.development", f"{part.name} has no list to choose the best checkpoint by")

    keys = {question_key(candidates.query) for part in development for candidates in part.lists if candidates.query}
    labelled = {source.label for source in config.train if not isinstance(source, SyntheticSource)}
    for name, known in found.items():
        found[name] = _without(keys, known, notify, name, "list that asks a development question")
    for source in config.train:
        if isinstance(source, SyntheticSource) and is_derived(source):
            judged = [candidates for name in found if name in labelled for candidates in found[name]]
            found[source.label] = _derived(source, judged).lists(retriever, notify).train
    sources = []
    for source in config.train:
        if not found[source.label]:
            raise InvalidInputError("data.train", f"{source.label} has no list to train on")
        sources.append(Source(source.label, source.weight, tuple(found[source.label])))
    return TrainingData(tuple(sources), tuple(development))


def encoder_and_reranker_lists(
    sources: Iterable[Source], share: float
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Divides every source's questions by a hash of their words, the same in all sources and for all seeds.

    Args:
        sources: Of judged questions.
        share: Of the questions, for the encoder.

    Returns:
        What ``encoder_alignment`` is trained on, and what the stages that train the reranker are.

    Raises:
        InvalidInputError: A source would have no question for one of them.
    """
    first: list[Source] = []
    second: list[Source] = []
    for source in sources:
        # Eight bytes of a digest are a uniform number; not those by which limit and hold_back choose, which hash ids.
        of_encoder = [
            int.from_bytes(question_key(candidates.query)[:8], "big") < share * 2**64 for candidates in source.lists
        ]
        for parts, wanted in ((first, True), (second, False)):
            lists = tuple(c for c, mine in zip(source.lists, of_encoder, strict=True) if mine is wanted)
            if not lists:
                raise InvalidInputError(
                    "data.encoder_share",
                    f"{share:g} of the {len(source.lists)} lists of {source.name} leaves a stage none: give more, or "
                    "set it to null",
                )
            parts.append(replace(source, lists=lists))
    return tuple(first), tuple(second)


def _derived(source: SyntheticSource, lists: Sequence[CandidateList]) -> SyntheticLists:
    """A synthetic source of the passages and questions of lists."""
    builder = PoolBuilder()
    for candidates in lists:
        for passage in candidates.passages:
            builder.add(passage)
    questions = list(dict.fromkeys(candidates.query for candidates in lists))
    return SyntheticLists(source.label, builder.build(), None, questions, source.lists, 0)


def _without(
    keys: set[bytes], lists: Sequence[CandidateList], notify: Notify, name: str, what: str
) -> list[CandidateList]:
    """The lists that ask none of these questions; tells how many do."""
    # A list without a question's text is worded like one: that counts, too.
    texts = [candidates.query or candidates.wording for candidates in lists]
    kept = [
        candidates
        for candidates, text in zip(lists, texts, strict=True)
        if not keys or not text or question_key(text) not in keys
    ]
    if len(kept) < len(lists):
        notify(f"{name}{told([(len(lists) - len(kept), what)])}")
    return kept
