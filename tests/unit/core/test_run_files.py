"""Runs are read and written so that trec_eval would see the same order."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.core.measures import per_question, ranked
from resrank.core.run_files import Ranking, read_candidates, write_run

RUN = """\
q1 Q0 b 2 7.5 bm25
q1\tQ0\ta 1 9.25 bm25

q2 Q0 c 1 3 bm25
q1 Q0 d 9 7.5 bm25
q1 Q0 e 4 -1e3 bm25
"""


def test_a_run_is_sorted_by_score_then_rank(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text(RUN)
    (tmp_path / "run.trec.gz").write_bytes(gzip.compress(RUN.encode()))

    for name in ("run.trec", "run.trec.gz"):
        found = read_candidates(tmp_path / name)
        assert {question: ranking.ids for question, ranking in found.items()} == {
            "q1": ("a", "b", "d", "e"),
            "q2": ("c",),
        }
        np.testing.assert_array_equal(found["q1"].scores, np.array([9.25, 7.5, 7.5, -1000], np.float32))


def test_ndcg_of_a_run_by_hand(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text(RUN)
    qrels = {"q1": {"a": 0, "b": 2, "e": 1, "absent": 3}, "q2": {"c": 1}}

    run = {question: ranked(ranking.ids) for question, ranking in read_candidates(tmp_path / "run.trec").items()}

    # b at rank 2 and e at rank 4; the ideal has a passage first that was not found.
    gain = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert per_question(qrels, run, ("nDCG@10",))["nDCG@10"] == {"q1": pytest.approx(gain / ideal), "q2": 1}


def test_json_lines_keep_their_order_and_their_retrievers_apart(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl.gz"
    lines = [
        {"retriever": "BM25", "qid": "q1", "docids": ["b", "a"]},
        {"retriever": "TAS-B", "qid": "q1", "docids": ["a"]},
        {"retriever": "BM25", "qid": "q2", "docids": []},
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))

    found = read_candidates(path, "bm25")

    assert {question: ranking.ids for question, ranking in found.items()} == {"q1": ("b", "a"), "q2": ()}
    assert read_candidates(path, "TAS-B").keys() == {"q1"}
    with pytest.raises(InvalidInputError, match=r"^retriever: .*holds the lists of several, name one of: BM25, TAS-B"):
        read_candidates(path)
    with pytest.raises(InvalidInputError, match=r"^retriever: .*has no lists of 'splade', only of: BM25, TAS-B"):
        read_candidates(path, "splade")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("run", "q1 Q0 a 1 0.5\n", r"run, line 1: not qid Q0 docid rank score tag"),
        ("run", "q1 Q0 a 1 0.5 x\nq1 Q0 b one 0.5 x\n", r"run, line 2: not qid"),
        ("run", "q1 Q0 a 1 0.5 x\nq1 Q0 a 2 0.4 x\n", r"run, line 2: passage 'a' stands twice .* of 'q1'"),
        ("run", "q1 Q0 a 1 nan x\n", r"run, line 1: the score is nan, which single precision cannot hold"),
        ("run", "q1 Q0 a 1 1e39 x\n", r"line 1: the score is 1e39, which single"),
        ("run", "\n", "run holds no lists"),
        ("run", "q1 Q0 a 1 0.5 x\n\ufeffq1 Q0 b 2 0.4 x\n", "run, line 2: begins with a byte order mark"),
        ("run.gz", "q1", "cannot be read"),
        ("absent", None, "absent cannot be read"),
        ("run.jsonl", '{"qid": "q1"}\n', r"line 1: must have qid and every one of docids as strings"),
        ("run.jsonl", '{"qid": "q1", "docids": ["a", 7]}\n', "line 1: must have qid"),
        ("run.jsonl", '{"qid": "q1", "docids": ["a", "a"]}\n', "line 1: passage 'a' stands twice"),
        ("run.jsonl", '{"qid": "q", "docids": []}\n{"qid": "q", "docids": []}\n', "line 2: the candidates of 'q' were"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=complaint):
        read_candidates(tmp_path / name)


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz", "lists.jsonl", "lists.jsonl.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_question(tmp_path: Path, name: str) -> None:
    is_run = name.startswith("run")
    content = f"\ufeff{RUN}" if is_run else '\ufeff{"qid": "q1", "docids": ["a", "b", "d", "e"]}\n'
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    (tmp_path / name).write_bytes(packed)

    found = read_candidates(tmp_path / name)

    assert list(found) == (["q1", "q2"] if is_run else ["q1"])
    assert found["q1"].ids == ("a", "b", "d", "e")


@pytest.mark.parametrize("id_", ["my q1", "q\t1", "q1\n", "q\v1", "", "\ufeffq1", "q\0"])
def test_ids_that_no_reader_could_tell_from_columns_are_refused(tmp_path: Path, id_: str) -> None:
    for question, passage, what in ((id_, "a", "question"), ("q", id_, "passage")):
        ranking = Ranking((passage,), np.ones(1, np.float32))
        with pytest.raises(InvalidInputError, match=rf"^out: {what} id {re.escape(repr(id_))} cannot be written"):
            write_run(tmp_path / "run", {question: ranking}, "tag")
        assert not (tmp_path / "run").exists()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\n\v\f\r\0\ufeff"), min_size=1))
def test_every_other_id_is_read_back(tmp_path_factory: pytest.TempPathFactory, id_: str) -> None:
    path = tmp_path_factory.getbasetemp() / "ids.trec"
    write_run(path, {id_: Ranking((id_,), np.ones(1, np.float32))}, "tag")

    found = read_candidates(path)

    assert {question: ranking.ids for question, ranking in found.items()} == {id_: (id_,)}


@given(
    st.dictionaries(
        st.text("abcdefgh0123456789", min_size=1, max_size=4),
        st.floats(-1, 1, width=16),  # of which many are equal
        min_size=1,
        max_size=30,
    )
)
def test_a_written_run_is_read_back_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float]
) -> None:
    best_first = sorted(scores, key=lambda passage: -scores[passage])
    ranking = Ranking(tuple(best_first), np.array([scores[passage] for passage in best_first], np.float32))
    path = tmp_path_factory.getbasetemp() / "written.trec"

    write_run(path, {"q": ranking}, "tag")

    found = read_candidates(path)["q"]
    assert found.ids == ranking.ids
    np.testing.assert_allclose(found.scores, ranking.scores, atol=1e-5)
    assert (np.diff(found.scores) < 0).all()  # in single precision, as trec_eval reads it


def test_trec_eval_sees_the_same_order_where_scores_were_equal(tmp_path: Path) -> None:
    passages = ("a", "c", "b", "d")  # trec_eval would order equal scores d, c, b, a
    write_run(tmp_path / "run", {"q": Ranking(passages, np.array([0.5, 0.5, 0.5, -0.0], np.float32))}, "tag")
    for rank, passage in enumerate(passages, start=1):
        run = ir_measures.read_trec_run(str(tmp_path / "run"))
        found = ir_measures.calc_aggregate([ir_measures.RR], {"q": {passage: 1}}, run)
        assert found[ir_measures.RR] == pytest.approx(1 / rank)
