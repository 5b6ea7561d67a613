"""Filling an index, with a real sidecar in this process and an encoder that can be checked by hand."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from resrank.client import index_build
from resrank.client.index_build import BuildReport, BuildSettings, fill_index
from resrank.client.sidecar_catalog import SidecarCatalog
from resrank.core.corpus import CorpusError, Passage, read_passages
from resrank.core.errors import (
    EncoderMismatchError,
    IndexFolderError,
    InvalidInputError,
    Place,
    QueueFullError,
    RetrievalError,
)
from resrank.retrieval.server import SidecarServer
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import StoreUrl
from resrank.stack.index_sidecar import sidecar_of

SHA = "d" * 64
SMALL_BATCHES = BuildSettings(batch_size=16)


def embedding_of(text: str) -> NDArray[np.float32]:
    """A vector that a text alone determines."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=6).astype(np.float32)


class HashEncoder:
    """Embeds by hash; remembers what it was asked, and fails where it is told to."""

    def __init__(self, sha256: str = SHA) -> None:
        self.sha256 = sha256
        self.batches: list[list[str]] = []
        self.running = 0
        self.most_running = 0
        self.refused = ""
        self.full_times = 0
        self.die_after: int | None = None

    async def encoder_sha256(self) -> str:
        return self.sha256

    async def embed_passages(
        self, texts: Sequence[str], *, truncate: bool = False, bulk: bool = False
    ) -> NDArray[np.float32]:
        assert truncate
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        if self.full_times:
            self.full_times -= 1
            raise QueueFullError("queue full")
        if self.die_after is not None and len(self.batches) >= self.die_after:
            raise RetrievalError("interrupted")
        if self.refused in texts:
            raise InvalidInputError(Place("TEXT", (list(texts).index(self.refused),)), "too many tokens")
        self.batches.append(list(texts))
        return np.stack([embedding_of(text) for text in texts])

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


def write_corpus(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"_id": id_, "title": "", "text": text}) + "\n" for id_, text in texts.items()))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lengths = np.random.default_rng(0).integers(1, 200, 300)
    return write_corpus(
        tmp_path / "corpus.jsonl", {f"d{row}": f"{row} " + "x" * size for row, size in enumerate(lengths)}
    )


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


async def fill(corpus: Path, index: Path, encoder: HashEncoder, settings: BuildSettings = SMALL_BATCHES) -> BuildReport:
    async with sidecar_of(index) as sidecar:
        return await fill_index(corpus, encoder, sidecar, settings)


async def test_every_passage_is_stored_with_its_own_embedding(corpus: Path, index: Path) -> None:
    encoder = HashEncoder()
    report = await fill(corpus, index, encoder)
    assert (report.passages, report.inserted, report.updated, report.unchanged) == (300, 300, 0, 0)
    passages = [json.loads(line) for line in corpus.read_text().splitlines()]
    async with sidecar_of(index) as sidecar:
        ids = [passage["_id"] for passage in passages]
        vectors = await sidecar.vectors(ids)
        about = await sidecar.describe()
        assert (about.record_count, about.encoder_sha256, about.dimension) == (300, SHA, 6)
        assert [id_ async for id_ in sidecar.ids()] == sorted(ids)
        assert await sidecar.changed(list(read_passages(corpus))) == []
    for passage in passages:
        expected = embedding_of(passage["text"].strip()).astype("<f2")
        assert vectors[passage["_id"]].tobytes() == expected.tobytes()


async def test_batches_are_full_of_nearly_equal_lengths_and_overlap(corpus: Path, index: Path) -> None:
    encoder = HashEncoder()
    await fill(corpus, index, encoder, BuildSettings(batch_size=16, in_flight=3))
    assert [len(batch) for batch in encoder.batches] == [16] * 18 + [12]
    spread = max(len(batch[-1]) - len(batch[0]) for batch in encoder.batches)
    assert spread < 30, "unsorted batches of 16 spread over nearly all 200 lengths"
    assert encoder.most_running == 3


async def test_a_second_run_encodes_only_what_is_new_or_changed(corpus: Path, index: Path, tmp_path: Path) -> None:
    await fill(corpus, index, HashEncoder())
    texts = {line["_id"]: line["text"] for line in map(json.loads, corpus.read_text().splitlines())}
    changed = write_corpus(tmp_path / "changed.jsonl", {**texts, "d7": "changed", "new": "new"})
    encoder = HashEncoder()
    report = await fill(changed, index, encoder)
    assert sorted(encoder.texts) == ["changed", "new"]
    assert (report.inserted, report.updated, report.unchanged) == (1, 1, 299)


async def test_an_interrupted_run_goes_on_where_it_stopped(corpus: Path, index: Path) -> None:
    first = HashEncoder()
    first.die_after = 5
    with pytest.raises(RetrievalError, match="interrupted"):
        await fill(corpus, index, first)
    async with sidecar_of(index) as sidecar:
        stored = (await sidecar.describe()).record_count
    assert 0 < stored <= 5 * 16
    second = HashEncoder()
    report = await fill(corpus, index, second)
    assert (report.unchanged, report.inserted, len(second.texts)) == (stored, 300 - stored, 300 - stored)


async def test_a_smaller_corpus_leaves_others_which_are_counted_and_removed_when_asked(
    corpus: Path, index: Path, tmp_path: Path
) -> None:
    await fill(corpus, index, HashEncoder())
    lines = corpus.read_text().splitlines(keepends=True)
    smaller = tmp_path / "smaller.jsonl"
    smaller.write_text("".join(lines[:120]) + '{"_id": "new", "text": "new"}\n')
    report = await fill(smaller, index, HashEncoder())
    assert (report.inserted, report.unchanged, report.pruned, report.others) == (1, 120, 0, 180)
    report = await fill(smaller, index, HashEncoder(), BuildSettings(prune=True))
    assert (report.unchanged, report.pruned, report.others) == (121, 180, 0)
    async with sidecar_of(index) as sidecar:
        assert [id_ async for id_ in sidecar.ids()] == sorted([*(f"d{row}" for row in range(120)), "new"])


async def test_ids_come_page_by_page(index: Path) -> None:
    passages = [Passage(1, f"ä{number}", "", "text") for number in range(2500)]
    async with sidecar_of(index) as sidecar:
        for start in range(0, 2500, 1000):
            block = passages[start : start + 1000]
            await sidecar.upsert(SHA, block, np.ones((len(block), 6), np.float32))
        assert [id_ async for id_ in sidecar.ids()] == sorted(passage.id for passage in passages)


async def test_a_pipe_is_read_once_and_all_of_it_is_stored(corpus: Path, index: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def fill_from(content: bytes) -> BuildReport:
        writing = asyncio.create_task(asyncio.to_thread(pipe.write_bytes, content))
        try:
            return await fill(pipe, index, HashEncoder())
        finally:
            await writing

    content = corpus.read_bytes()
    report = await fill_from(content)
    assert (report.passages, report.inserted) == (300, 300)
    report = await fill_from(content)
    assert (report.unchanged, report.inserted) == (300, 0)
    with pytest.raises(CorpusError, match=rf"^{pipe}:301: .*other content"):
        await fill_from(content + b'{"_id": "d1", "text": "other"}\n')


async def test_a_corpus_that_changes_while_it_is_read_is_no_success(corpus: Path, index: Path) -> None:
    class Meddling(HashEncoder):
        async def encoder_sha256(self) -> str:
            corpus.write_text(corpus.read_text().splitlines(keepends=True)[0])
            return SHA

    with pytest.raises(CorpusError, match="changed while it was read: 300 passages were checked, 1 stored"):
        await fill(corpus, index, Meddling())


async def test_a_folder_that_another_command_fills_is_refused_by_name_and_read_all_the_same(index: Path) -> None:
    async with sidecar_of(index, to_fill=True):
        async with sidecar_of(index) as other:
            assert (await other.describe()).record_count == 0
        with pytest.raises(IndexFolderError, match=f"another command, process {os.getpid()}"):
            async with sidecar_of(index, to_fill=True):
                pass


async def test_upsert_encodes_everything_again(corpus: Path, index: Path) -> None:
    await fill(corpus, index, HashEncoder())
    encoder = HashEncoder()
    report = await fill(corpus, index, encoder, BuildSettings(skip_unchanged=False))
    assert (report.updated, report.unchanged, len(encoder.texts)) == (300, 0, 300)


async def test_a_bad_line_stores_nothing(corpus: Path, index: Path) -> None:
    with corpus.open("a") as file:
        file.write('{"_id": "d1", "text": "\\ud800"}\n')
    encoder = HashEncoder()
    with pytest.raises(CorpusError, match=r"corpus.jsonl:301: .*lone surrogate"):
        await fill(corpus, index, encoder)
    assert encoder.batches == []


async def test_what_the_encoder_refuses_is_named_by_its_line(corpus: Path, index: Path) -> None:
    encoder = HashEncoder()
    encoder.refused = json.loads(corpus.read_text().splitlines()[41])["text"]
    with pytest.raises(
        CorpusError, match=r"corpus.jsonl:42: the encoder refuses _id 'd41' \(too many tokens\); .* of 300"
    ):
        await fill(corpus, index, encoder)


async def test_a_server_that_sheds_load_is_waited_for(
    corpus: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "_WAIT_MAX_S", 0.01)
    encoder = HashEncoder()
    encoder.full_times = 7
    assert (await fill(corpus, index, encoder)).inserted == 300


def test_a_batch_has_time_for_all_that_are_in_flight_on_a_slow_machine() -> None:
    passage_s = 2 * 4e9 * 512 / 170e9  # a 4B encoder, 512 tokens, the GEMM peak of two cores
    settings = BuildSettings(batch_size=64, in_flight=16)
    assert settings.batch_timeout_s > 16 * 64 * passage_s


async def test_another_encoders_index_is_refused_before_anything_is_encoded(corpus: Path, index: Path) -> None:
    await fill(corpus, index, HashEncoder())
    other = HashEncoder("e" * 64)
    with pytest.raises(RetrievalError, match=f"{SHA}.*{'e' * 64}"):
        await fill(corpus, index, other)
    assert other.batches == []


async def test_a_running_sidecar_is_written_through(corpus: Path, index: Path) -> None:
    async with SidecarServer(SidecarSettings(StoreUrl.local(index), port=0)) as running:
        async with sidecar_of(index, to_fill=True) as sidecar:
            await fill_index(corpus, HashEncoder(), sidecar)
        assert running._catalog.collections()[0].usage.record_count == 300


async def test_delete_reports_what_was_missing(corpus: Path, index: Path) -> None:
    await fill(corpus, index, HashEncoder())
    async with sidecar_of(index) as sidecar:
        assert await sidecar.delete(["d3", "nobody", "d3", "d4"]) == ["nobody"]
        assert (await sidecar.describe()).record_count == 298


async def test_a_collection_is_made_for_a_corpus_without_bad_lines_alone(tmp_path: Path, index: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", {"a": "text"})
    bad = tmp_path / "bad.jsonl"
    bad.write_text(corpus.read_text() + "{\n")
    async with sidecar_of(index, "docs") as sidecar:
        catalog = SidecarCatalog(sidecar)
        with pytest.raises(CorpusError, match=r"bad\.jsonl:2"):
            await fill_index(bad, HashEncoder(), sidecar, BuildSettings(make_collection=True))
        assert [one.name for one in await catalog.collections()] == ["default"]
        for _ in range(2):
            await fill_index(corpus, HashEncoder(), sidecar, BuildSettings(make_collection=True))
        assert [(one.name, one.record_count) for one in await catalog.collections()] == [("default", 0), ("docs", 1)]


async def test_a_quota_that_is_none_is_refused_by_name(index: Path) -> None:
    async with sidecar_of(index) as sidecar:
        catalog = SidecarCatalog(sidecar)
        for bounds in ({"max_records": 2**63}, {"max_records": -1}):
            with pytest.raises(InvalidInputError, match=r"quota\.records: out of range \(limit 0 to 9223372036854"):
                await catalog.create("docs", **bounds)
        with pytest.raises(InvalidInputError, match=r"quota\.bytes"):
            await catalog.create("docs", max_bytes=2**64)
        assert len(await catalog.collections()) == 1


async def test_an_encoder_that_changes_while_it_is_asked_ends_the_build(corpus: Path, index: Path) -> None:
    encoder = HashEncoder()
    asked = encoder.embed_passages

    async def swapped(texts: Sequence[str], **options: bool) -> NDArray[np.float32]:
        if len(encoder.batches) == 2:
            encoder.sha256 = "e" * 64
        return await asked(texts, **options)

    encoder.embed_passages = swapped  # type: ignore[method-assign]
    with pytest.raises(EncoderMismatchError, match=r"the encoder was d.*, and is e.* now: build again"):
        await fill(corpus, index, encoder, BuildSettings(batch_size=16, in_flight=1))
    again = await fill(corpus, index, HashEncoder(), SMALL_BATCHES)
    assert again.unchanged == 32  # of the two batches before


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"batch_size": 1001}, {"in_flight": 0}, {"in_flight": 1025}])
def test_settings_that_cannot_be_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=rf"{next(iter(fields))}: out of range"):
        BuildSettings(**fields)
