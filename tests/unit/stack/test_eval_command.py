"""``resrank eval`` in torch, with this project's own index in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resrank.core.run_files import read_candidates
from resrank.evaluation.torch_scorer import TorchScorer
from resrank.export.adapters import merge_adapter
from resrank.stack.cli.app import run
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import make_tiny_checkpoint

TOPICS = ("moon", "river", "capital", "fox", "vector", "astronaut", "lazy dog", "Seine", "orbit", "passage")
Evaluate = Callable[..., Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "checkpoint"
    make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.5, max_passages=8)
    return folder


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty passages and an empty one; a question for each topic, and one without a word."""
    folder = tmp_path_factory.mktemp("eval") / "topics"
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"p{number}", "title": topic, "text": f"The {topic} is told of in passage {number}."}
        for number, topic in enumerate(TOPICS * 2)
    ]
    write_lines(folder / "corpus.jsonl", [*passages, {"_id": "empty", "title": "", "text": ""}])
    questions = [{"_id": f"q{number}", "text": f"What of the {topic}?"} for number, topic in enumerate(TOPICS)]
    write_lines(folder / "queries.jsonl", [*questions, {"_id": "wordless", "text": "?!"}])
    judged = [f"q{number}\tp{number}\t1\n" for number in range(len(TOPICS))]
    lines = ["query-id\tcorpus-id\tscore\n", *judged, "q0\tempty\t1\n", "wordless\tp1\t1\n"]
    (folder / "qrels" / "test.tsv").write_text("".join(lines))
    return folder


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def evaluate(checkpoint: Path, collection: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """``evaluate(*options)`` gives the JSON of one collection, ``evaluate(*options, code=2)`` the error."""

    def call(*options: object, code: int = 0) -> Any:
        words = ["eval", str(collection), "--checkpoint", str(checkpoint), "--output", "json", *map(str, options)]
        assert run(words) == code
        said = capsys.readouterr()
        if code:
            return said.err.splitlines()[-1].removeprefix("Error: ")
        (found,) = json.loads(said.out)["collections"]
        return found

    return call


FEW = ("--shuffles", 2, "--sizes", "4")


def test_hybrid_candidates_are_those_of_both_lists_fused(evaluate: Evaluate, tmp_path: Path) -> None:
    for mode in ("lexical", "dense", "hybrid"):
        evaluate("--candidates", mode, "--out", tmp_path / mode, "--indexes", tmp_path / "indexes", *FEW)
    lists = {
        mode: {
            question: dict(zip(found.ids, found.scores.tolist(), strict=True))
            for question, found in read_candidates(tmp_path / mode / "topics" / "runs" / "candidates.trec").items()
        }
        for mode in ("lexical", "dense", "hybrid")
    }
    assert "wordless" not in lists["lexical"]  # an empty list has no line in a run
    assert all(len(found) == 20 for found in lists["dense"].values())
    for question, fused in lists["hybrid"].items():
        words = lists["lexical"].get(question, {})
        joint = {
            passage: cosine + (0.3 * words.get(passage, 0) / max(words.values()) if words else 0)
            for passage, cosine in lists["dense"][question].items()
        }
        assert fused == pytest.approx(joint, abs=1e-4)
        assert list(fused.values()) == sorted(fused.values(), reverse=True)


def test_everything_is_reported(evaluate: Evaluate, tmp_path: Path) -> None:
    found = evaluate("--candidates", "lexical", "--measure", "RR@10", "--measure", "R@5", "--sizes", "4,20,30")

    assert (found["collection"], found["questions"], found["passages"]) == ("topics", 11, 20)
    assert found["rows"].keys() == {
        "candidates",
        "dense",
        "rocchio",
        "projectors",
        "reranked",
        "reranked-as-found",
        "reranked-shuffled",
        "dense-lexical",
        "reranked-lexical",
    }
    assert found["rows"]["candidates"].keys() == {"RR@10", "R@5"}
    assert found["notes"] == [
        "empty passages of the corpus, which cannot be encoded and are left out: 1",
        "relevant passages that are not in the corpus and count against every ranking: 1",
        "judged questions without candidates, which count as 0: 1",
        "sizes that add nothing to the longest list, of 20 candidates: 30",
        "one pass takes 8 candidates: longer lists go in blocks",
    ]
    assert [size["size"] for size in found["sizes"]] == [4, 20]
    # The question asks for one of two passages with its words: BM25 finds both, one of them first, whichever.
    assert 10 / 11 * 0.5 <= found["rows"]["candidates"]["RR@10"] <= 10 / 11
    assert found["rows"]["candidates"]["R@5"] == pytest.approx(9.5 / 11)  # of q0's two, one is empty


def test_a_files_candidates_are_all_that_is_embedded(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    embed = TorchScorer.embed_passages

    def counting(self: TorchScorer, texts: list[str]) -> Any:
        embedded.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(TorchScorer, "embed_passages", counting)
    lists = [
        {"qid": "q0", "docids": ["p3", "empty", "p0", "p7"]},
        {"qid": "q1", "docids": ["p1", "p3"]},
        {"qid": "unjudged", "docids": ["p9"]},
    ]
    options = ("--candidates", write_lines(tmp_path / "lists.jsonl", lists), "--indexes", tmp_path / "kept", *FEW)

    found = evaluate(*options)

    assert len(embedded) == 4
    assert found["rows"]["candidates"]["RR@10"] == pytest.approx((1 / 2 + 1) / 11)
    assert found["notes"][:2] == [
        "questions of lists.jsonl that are not among the judged ones and are left out: 1",
        "empty passages among the candidates of lists.jsonl, which are left out: 1",
    ]
    evaluate(*options)
    assert len(embedded) == 4  # kept from the first time
    evaluate("--indexes", tmp_path / "kept", *FEW)
    assert len(embedded) == 24  # what BM25 is of is another index


def test_a_kept_index_holds_nothing_that_the_collection_has_not(
    checkpoint: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten passages of twenty have gone since: they are no candidates, and words count in what is left."""
    smaller = tmp_path / "copy" / collection.name
    shutil.copytree(collection, smaller)
    lines = (smaller / "corpus.jsonl").read_text().splitlines(keepends=True)
    (smaller / "corpus.jsonl").write_text("".join(lines[:10]))
    summaries = []
    for folder, kept in ((collection, "kept"), (smaller, "kept"), (smaller, "new")):
        words = ["eval", str(folder), "--checkpoint", str(checkpoint), "--candidates", "hybrid", "--output", "json"]
        assert run([*words, "--indexes", str(tmp_path / kept), *map(str, FEW)]) == 0
        summaries += json.loads(capsys.readouterr().out)["collections"]
    before, after, fresh = summaries
    assert after["rows"] == fresh["rows"] != before["rows"]
    assert after["notes"] == fresh["notes"]


def test_words_count_in_all_passages_of_a_file_however_deep_it_is_read(evaluate: Evaluate, tmp_path: Path) -> None:
    lists = [{"qid": f"q{n}", "docids": [f"p{(n + 3 * k) % 20}" for k in range(7)]} for n in range(10)]
    file = write_lines(tmp_path / "lists.jsonl", lists)
    rows = [
        evaluate("--candidates", file, "--depth", "2", "--shuffles", "1", "--blocks", "", "--sizes", sizes)["rows"]
        for sizes in ("", "7")
    ]
    assert rows[0] == rows[1]


def small(folder: Path, questions: dict[str, str], passages: dict[str, str], judged: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "queries.jsonl", [{"_id": id_, "text": text} for id_, text in questions.items()])
    write_lines(folder / "corpus.jsonl", [{"_id": id_, "text": text} for id_, text in passages.items()])
    (folder / "qrels" / "test.tsv").write_text(judged)
    return folder


@pytest.mark.parametrize("source", ["dense", "lexical", "hybrid", "run"])
def test_a_question_that_is_a_passage_does_not_stand_in_its_own_ranking(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    passages = {"d1": "The yellow tram climbs.", "d2": "The old tram stops.", "d3": "The salt lake dries."}
    folder = small(tmp_path / "asked", {id_: passages[id_] for id_ in ("d1", "d2")}, passages, "d1\td2\t1\nd2\td1\t1\n")
    run_file = tmp_path / "run.trec"
    run_file.write_text("".join(f"{q} Q0 {p} {n} {-n} x\n" for q in ("d1", "d2") for n, p in enumerate(passages)))
    candidates = str(run_file) if source == "run" else source
    words = ["eval", str(folder), "--checkpoint", str(checkpoint), "--candidates", candidates, "--depth", "2"]

    assert run([*words, "--shuffles", "1", "--sizes", "", "--blocks", "", "--output", "json", "--measure", "R@2"]) == 0

    (found,) = json.loads(capsys.readouterr().out)["collections"]
    assert found["rows"]["candidates"]["R@2"] == 1.0  # two are left when the question's own was one of the first
    assert "questions that are a passage themselves, which their rankings leave out: 2" in found["notes"]


def test_ids_that_a_run_cannot_hold_are_refused_before_the_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchScorer, "__init__", lambda *_: pytest.fail("the checkpoint was loaded"))
    for question, passage, named in (("my q1", "d1", "question id 'my q1'"), ("q1", "doc d1", "passage id 'doc d1'")):
        folder = small(tmp_path / named, {question: "tram?"}, {passage: "A tram."}, f"{question}\t{passage}\t1\n")
        assert run(["eval", str(folder), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
        assert f"Error: out: {named} cannot be written into a TREC run" in capsys.readouterr().err


def test_a_table_for_people(checkpoint: Path, collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--candidates", "hybrid", "--shuffles", "2", "--seen", str(collection / "seen.jsonl")]
    passages = [
        {"title": topic, "text": f"The {topic} is told of in passage {n}.", "label": n}
        for n, topic in enumerate(TOPICS[:4])
    ]
    write_lines(collection / "seen.jsonl", [{"id": "1", "query": "?a", "passages": passages}])
    assert run(["eval", str(collection), "--checkpoint", str(checkpoint), *options]) == 0
    shown = capsys.readouterr().out
    for part in (
        "through torch (torch fp32)",
        "topics test: 11 questions, 20 passages, candidates hybrid, the first 100",
        "projectors alone",
        "reranked, shuffled ×2",
        "nDCG@10, difference from dense, paired by question, with 95 % interval",
        "nDCG@10 of 6 questions whose relevant passages training has not read",
        "Kendall's tau of two shuffles",
        "first 10",
        "in 4 blocks",
    ):
        assert part in shown


def test_several_collections_by_one_command(
    checkpoint: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.symlink_to(collection)  # its own name is the target's
    (tmp_path / "copy" / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (tmp_path / "copy" / name).write_bytes((collection / name).read_bytes())
    words = ["eval", str(collection), str(tmp_path / "copy"), "--checkpoint", str(checkpoint), "--queries", "2"]
    words += ["--shuffles", "1", "--sizes", "", "--blocks", "", "--output", "json"]

    assert run([*words, "--out", str(tmp_path / "out")]) == 0

    told = json.loads(capsys.readouterr().out)
    assert [found["collection"] for found in told["collections"]] == ["topics", "copy"]
    assert told["collections"][0]["rows"] == told["collections"][1]["rows"]
    assert told["checkpoint"]["engines"] == {"torch": "fp32"}
    assert json.loads((tmp_path / "out" / "copy" / "summary.json").read_text())["questions"] == 2
    words[2] = str(other)
    assert run(words) == 2
    assert "collections: 2 are called 'topics'" in capsys.readouterr().err


def test_an_adapter_checkpoint_is_merged_for_the_evaluation(
    evaluate: Evaluate, checkpoint: Path, tmp_path: Path
) -> None:
    bases = (checkpoint / "encoder", checkpoint / "reranker")
    make_tiny_adapter(tmp_path / "adapter", checkpoint, sources=(str(bases[0]), str(bases[1])))
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    few = ("--queries", 3, "--shuffles", 1, "--sizes", "")

    adapted = evaluate("--checkpoint", tmp_path / "adapter", *few)

    assert adapted["rows"] == evaluate("--checkpoint", tmp_path / "merged", *few)["rows"]
    assert adapted["rows"] != evaluate(*few)["rows"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--split", "dev"], r"qrels/dev.tsv is missing"),
        (["--qrels", "absent.tsv"], "qrels: absent.tsv is missing"),
        (["--measure", "Niceness"], "measures: not known to ir-measures"),
        (["--candidates", "bm25"], "candidates: 'bm25' is neither one of hybrid, dense, lexical nor a file"),
        (["--candidates", "{unknown}"], "gives question 'q1' passage 'x9', which is not in topics"),
        (
            ["--candidates", "{foreign}"],
            "has candidates for no question that split test of topics judges, its first is 'z'",
        ),
        (["--retriever", "bm25"], "retriever: names lists of a file, but the candidates are dense"),
        (["--through", "stack"], "repository: needed to evaluate through the stack"),
        (["--seen", "absent.jsonl"], "absent.jsonl"),
        (["--out", "{unknown}"], "unknown.jsonl cannot be written (File exists)"),
    ],
)
def test_bad_input_is_one_sentence(evaluate: Evaluate, tmp_path: Path, options: list[str], complaint: str) -> None:
    files = {
        "unknown": write_lines(tmp_path / "unknown.jsonl", [{"qid": "q1", "docids": ["p1", "x9"]}]),
        "foreign": write_lines(tmp_path / "foreign.jsonl", [{"qid": "z", "docids": ["p1"]}]),
    }
    assert complaint in evaluate(*(option.format(**files) for option in options), code=2)


@pytest.mark.parametrize(
    "options", [["--depth", "1001"], ["--sizes", "10,x"], ["--sizes", "0"], ["--blocks", "x"], ["--shuffles", "0"]]
)
def test_wrong_usage_is_2(collection: Path, options: list[str]) -> None:
    assert run(["eval", str(collection), *options]) == 2


def test_without_a_checkpoint_it_says_what_it_needs(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(collection)]) == 2
    assert "checkpoint: needed to evaluate in torch; for the stack, give a repository" in capsys.readouterr().err


def test_one_file_serves_one_collection(checkpoint: Path, collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(collection), "examples/hotpotqa-mini", "--checkpoint", str(checkpoint)]
    for option, name in (("--qrels", "qrels"), ("--candidates", "candidates"), ("--retrieval-url", "retrieval")):
        assert run([*words, option, str(collection / "corpus.jsonl")]) == 2
        assert f"Error: {name}: one " in capsys.readouterr().err
