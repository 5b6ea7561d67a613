"""Fills an index: reads a corpus, embeds it through Triton, writes it through the sidecar that owns the folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from resrank.client.sidecar import AsyncSidecar, in_blocks
from resrank.client.sidecar_catalog import SidecarCatalog
from resrank.core.corpus import CorpusError, Passage, check_corpus, read_passages, rereadable
from resrank.core.errors import EncoderMismatchError, InvalidInputError, QueueFullError
from resrank.core.limits import MAX_BATCH_SIZE, MAX_MESSAGE_RECORDS
from resrank.core.sidecar.searching import check_encoder
from resrank.core.sidecar.v1.retrieval_pb2 import UpsertResponse

WINDOW = 4096
"""Passages sorted by length together: long enough that a batch's rows are of nearly one length and pad each other
little, short enough that an interrupted run repeats little and memory stays small."""

_PATIENCE_S = 300.0
_PASSAGE_S = 30.0  # a 4B encoder on two cores (170 GFLOP/s) reads 512 tokens in 24 s
_WAIT_MAX_S = 10.0
_MOST_IN_FLIGHT = 1024


class PassageEncoder(Protocol):
    """What is needed of :class:`resrank.client.AsyncResRankClient`."""

    async def encoder_sha256(self) -> str:
        """The encoder behind the server's models."""

    async def embed_passages(
        self, texts: Sequence[str], *, truncate: bool = False, bulk: bool = False
    ) -> NDArray[np.float32]:
        """Embeds texts, fp32 [len(texts), d]; in bulk behind whoever waits for an answer."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How an index is filled.

    Attributes:
        batch_size: Passages in one request to Triton and in one transaction of the store.
        in_flight: Requests under way at once: while one is computed, the others travel, wait and are stored.
        skip_unchanged: Leave out what the index holds with the same content already, which makes a run resumable.
        prune: Remove what the index holds and the corpus does not, once all of the corpus is stored.
        make_collection: Make the sidecar's collection where it does not exist, once the corpus is checked.
    """

    batch_size: int = MAX_BATCH_SIZE
    in_flight: int = 4
    skip_unchanged: bool = True
    prune: bool = False
    make_collection: bool = False

    def __post_init__(self) -> None:
        """Checks both numbers.

        Raises:
            InvalidInputError: One is out of its range.
        """
        for name, most in (("batch_size", MAX_MESSAGE_RECORDS), ("in_flight", _MOST_IN_FLIGHT)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidInputError(name, "out of range", limit=f"1 to {most}", value=getattr(self, name))

    @property
    def batch_timeout_s(self) -> float:
        """Deadline of one batch in seconds. Nobody waits for it, and it may stand behind all others in flight."""
        return _PATIENCE_S + _PASSAGE_S * self.batch_size * self.in_flight


@dataclass(slots=True)
class BuildReport:
    """What a run did, up to date while it runs.

    Attributes:
        passages: Distinct passages in the corpus.
        inserted: Stored as new.
        updated: Stored in place of an earlier version.
        unchanged: Left out, since the index had them.
        pruned: Removed, since the corpus does not have them.
        others: Passages of the index that the corpus does not have.
        seconds: Duration without the check of the file.
        started: When it began, by ``time.perf_counter``.
    """

    passages: int
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    pruned: int = 0
    others: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter, repr=False)

    def count(self, response: UpsertResponse) -> None:
        """Adds what was acknowledged."""
        self.inserted += response.inserted
        self.updated += response.updated
        self.seconds = time.perf_counter() - self.started

    @property
    def stored(self) -> int:
        """Passages that this run stored."""
        return self.inserted + self.updated

    @property
    def passages_per_s(self) -> float:
        """Passages stored per second."""
        return self.stored / self.seconds if self.seconds else 0.0


def require_same_encoder(asked: str, now: str) -> None:
    """Refuses vectors of an encoder that came to the address meanwhile: the sidecar is told the first one's digest.

    Raises:
        EncoderMismatchError: It is another.
    """
    if asked != now:
        raise EncoderMismatchError(f"the encoder was {asked} when the build began, and is {now} now: build again")


async def fill_index(
    corpus: Path,
    encoder: PassageEncoder,
    sidecar: AsyncSidecar,
    settings: BuildSettings | None = None,
    progress: Callable[[BuildReport], None] = lambda report: None,
) -> BuildReport:
    """Embeds a corpus and stores it; interrupted, the next run goes on where this one stopped.

    Args:
        corpus: JSON lines as BEIR has them, ``.gz`` or plain; a pipe is read once.
        encoder: Makes the embeddings.
        sidecar: Stores them.
        settings: How.
        progress: Called whenever something was stored or left out.

    Returns:
        What was done.

    Raises:
        CorpusError: A line is bad. Lines are checked before anything is encoded; what only the encoder can refuse is
            found while running, and the message says how much is stored by then.
        RetrievalError: The index belongs to another encoder, or the sidecar refused or failed.
        ResRankError: Whatever the encoder raises.
    """
    settings = settings or BuildSettings()
    with rereadable(corpus) as file:
        return await _fill(file, encoder, sidecar, settings, progress)


async def _fill(
    corpus: Path,
    encoder: PassageEncoder,
    sidecar: AsyncSidecar,
    settings: BuildSettings,
    progress: Callable[[BuildReport], None],
) -> BuildReport:
    checked = await asyncio.to_thread(CheckedCorpus.read, corpus)
    encoder_sha256 = await encoder.encoder_sha256()
    report = await begin(checked, encoder_sha256, sidecar, settings)
    room = asyncio.Semaphore(settings.in_flight)

    async def store(batch: Sequence[Passage]) -> None:
        try:
            vectors = await embed_batch(corpus, encoder, batch, patience_s=settings.batch_timeout_s)
            require_same_encoder(encoder_sha256, await encoder.encoder_sha256())
            response = await sidecar.upsert(encoder_sha256, batch, vectors)
        except CorpusError as error:
            raise CorpusError(
                error.place, f"{error.problem}; this run has stored {report.stored} of {report.passages} passages"
            ) from error
        finally:
            room.release()
        report.count(response)
        progress(report)

    try:
        async with asyncio.TaskGroup() as tasks:
            async for wanted, unchanged in wanted_windows(checked.passages(), sidecar, settings):
                report.unchanged += unchanged
                progress(report)
                for batch in in_blocks(wanted, settings.batch_size):
                    await room.acquire()
                    tasks.create_task(store(batch))
    except ExceptionGroup as group:
        # The first failure cancelled the rest: it is the one that says what happened.
        raise group.exceptions[0] from None
    await end(checked, report, sidecar, settings)
    return report


@dataclass(frozen=True, slots=True)
class CheckedCorpus:
    """A corpus without bad lines.

    Attributes:
        path: The file.
        ids: Of its passages.
        repeated: Lines that repeat an earlier passage word for word.
    """

    path: Path
    ids: set[str]
    repeated: set[int]

    @classmethod
    def read(cls, path: Path) -> CheckedCorpus:
        """Checks a whole file, see :func:`resrank.core.corpus.check_corpus`."""
        return cls(path, *check_corpus(path))

    def passages(self) -> Iterator[Passage]:
        """Its distinct passages, in the file's order."""
        return distinct_passages(self.path, self.repeated)


async def begin(
    checked: CheckedCorpus, encoder_sha256: str, sidecar: AsyncSidecar, settings: BuildSettings
) -> BuildReport:
    """Makes the collection where that is wanted, and makes sure that it is of this encoder.

    Raises:
        RetrievalError: It is another encoder's, or the sidecar refused or failed.
    """
    if settings.make_collection:
        await SidecarCatalog(sidecar).make_if_missing(sidecar.collection)
    check_encoder((await sidecar.describe()).encoder_sha256, encoder_sha256)
    return BuildReport(len(checked.ids))


def distinct_passages(corpus: Path, repeated: set[int]) -> Iterator[Passage]:
    """The passages of a checked corpus, without lines that repeat an earlier one."""
    return (passage for passage in read_passages(corpus) if passage.line not in repeated)


async def wanted_windows(
    passages: Iterable[Passage], sidecar: AsyncSidecar, settings: BuildSettings
) -> AsyncIterator[tuple[list[Passage], int]]:
    """Window by window what is to be encoded, by length, and how many passages the index has already."""
    for window in in_blocks(passages, WINDOW):
        wanted = await sidecar.changed(window) if settings.skip_unchanged else window
        unchanged = len(window) - len(wanted)
        wanted.sort(key=lambda passage: len(passage.encoder_text))
        yield wanted, unchanged


async def end(checked: CheckedCorpus, report: BuildReport, sidecar: AsyncSidecar, settings: BuildSettings) -> None:
    """Makes sure that every passage was dealt with, removes what the corpus does not have, and completes the report.

    Raises:
        CorpusError: The file has changed since it was checked.
        RetrievalError: The sidecar refused or failed.
    """
    if report.stored + report.unchanged != report.passages:
        raise CorpusError(
            str(checked.path),
            f"changed while it was read: {report.passages} passages were checked, {report.stored} stored and "
            f"{report.unchanged} found unchanged",
        )
    if settings.prune:
        strangers = [id_ async for id_ in sidecar.ids() if id_ not in checked.ids]
        report.pruned = len(strangers) - len(await sidecar.delete(strangers))
    report.others = max(0, (await sidecar.describe()).record_count - report.passages)
    report.seconds = time.perf_counter() - report.started


async def embed_batch(
    corpus: Path, encoder: PassageEncoder, batch: Sequence[Passage], *, patience_s: float
) -> NDArray[np.float32]:
    """Embeds passages, fp32 [len(batch), d], however long the server sheds load, up to ``patience_s``.

    Raises:
        CorpusError: The encoder refuses a passage, which is named by its line.
        ResRankError: Whatever else the encoder raises.
    """
    try:
        # Whoever searches meanwhile goes first: where the server sheds load, this waits. On a GPU it sheds too what has
        # waited a minute in its queue, which a slow encoder's next batches do.
        patient = AsyncRetrying(
            retry=retry_if_exception_type(QueueFullError),
            wait=wait_random_exponential(max=_WAIT_MAX_S),
            stop=stop_after_delay(patience_s),
            reraise=True,
        )
        texts = [passage.encoder_text for passage in batch]
        return await patient(encoder.embed_passages, texts, truncate=True, bulk=True)
    except InvalidInputError as error:
        if not error.place.index:
            raise
        passage = batch[error.place.index[-1]]
        raise CorpusError(
            f"{corpus}:{passage.line}", f"the encoder refuses _id {passage.id!r} ({error.problem})"
        ) from error
