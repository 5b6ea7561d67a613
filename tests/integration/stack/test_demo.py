"""The demo, with a tiny checkpoint and a slice of the sample collection, through real servers."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from resrank.core.corpus import CorpusError
from resrank.core.errors import InvalidInputError
from resrank.stack.demo import DemoSettings, run
from support.tiny_checkpoint import make_tiny_checkpoint

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "hotpotqa-mini"
PASSAGES = 40
QUESTIONS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    make_tiny_checkpoint(
        folder, residual_gate=0.0, query_residual=True, max_query_tokens=256, max_passage_tokens=512, max_passages=100
    )
    return folder


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Short questions with their gold passages, filled up with others."""
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(SAMPLE / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        queries = sorted(map(json.loads, file), key=lambda query: len(query["text"]))[:QUESTIONS]
    wanted = {query["_id"] for query in queries}
    rows = [line.split("\t") for line in (SAMPLE / "qrels" / "test.tsv").read_text().splitlines()]
    rows = [row for row in rows if row[0] in wanted]
    with gzip.open(SAMPLE / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        passages = {passage["_id"]: passage for passage in map(json.loads, file)}
    kept = dict.fromkeys([*(row[1] for row in rows), *passages])
    chosen = [passages[passage] for passage in list(kept)[:PASSAGES]]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in chosen))
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    lines = ["\t".join(row) for row in [["query-id", "corpus-id", "score"], *rows]]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_it_goes_from_a_checkpoint_to_measures_and_stops_its_servers(
    checkpoint: Path, collection: Path, tmp_path: Path
) -> None:
    before = servers()
    screen = io.StringIO()
    run(DemoSettings(tmp_path / "work", checkpoint, collection, questions=200), Console(file=screen, width=200))

    shown = screen.getvalue()
    sections = ("Checkpoint", "Export", "Serve", "Index", "Answers", "Measure", "Quality", "Latency", "Stop", "Done")
    places = [shown.index(f" s  {section}") for section in sections]
    assert places == sorted(places)
    assert f"{PASSAGES} passages in" in shown
    assert f"Quality over {QUESTIONS} questions" in shown
    assert "This reranker is untrained" in shown
    quality = {
        name: re.findall(r"\d\.\d{3}", line)
        for name in ("lexical (BM25)", "dense ", "hybrid ", "hybrid, reranked")
        for line in shown[shown.index(" s  Quality") :].splitlines()
        if line.strip().startswith(name)
    }
    assert all(len(figures) == 3 for figures in quality.values())
    # A dense-start reranker scores by cosines, to which the words' share is added: the hybrid order by another path.
    assert quality["hybrid, reranked"] == quality["hybrid "]
    assert "reranking adds to hybrid: nDCG@10 +0.000" in shown
    assert quality["lexical (BM25)"] != quality["dense "]
    stages = re.findall(r"^ +(\w+) +[\d.]+ +[\d.]+ *$", shown[shown.index(" s  Latency") :], flags=re.MULTILINE)
    assert stages == ["embed_query", "retrieve", "rerank", "total"]
    assert servers() == before


def test_a_bad_collection_is_named_before_anything_is_made(checkpoint: Path, collection: Path, tmp_path: Path) -> None:
    settings = DemoSettings(tmp_path / "work", checkpoint, collection, questions=200)
    with (collection / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    with pytest.raises(CorpusError, match=rf"corpus\.jsonl.*{PASSAGES + 1}"):
        run(settings, Console(file=io.StringIO()))
    (collection / "corpus.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"neither corpus.jsonl nor corpus.jsonl.gz"):
        run(settings, Console(file=io.StringIO()))
    assert not (tmp_path / "work").exists()


def servers() -> set[int]:
    """Ids of the servers that this process has started, those of other tests' fixtures among them."""
    children = [(child.pid, " ".join(child.cmdline())) for child in psutil.Process().children(recursive=True)]
    return {pid for pid, command in children if "tritonserver" in command or "resrank.retrieval" in command}
