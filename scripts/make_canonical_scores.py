"""Computes five scores of the default checkpoint from its files alone, by plain torch and transformers.

Nothing of this project is imported: the checkpoint's folders are read as Hugging Face's, and the formulas are those of
docs/architecture.md, written out. So what is deployed can be held against it:

    resrank checkpoint merge --default --out var/checkpoint
    python scripts/make_canonical_scores.py var/checkpoint

writes ``tests/e2e/canonical_scores.json``, once for each default checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer

OUT = Path(__file__).parents[1] / "tests" / "e2e" / "canonical_scores.json"
QUERY = "Which magazine was started first, Arthur's Magazine or First for Women?"
PASSAGES = (
    "Arthur's Magazine (1844-1846) was an American literary periodical published in Philadelphia in the 19th century.",
    "First for Women is a woman's magazine published by Bauer Media Group in the USA. It was started in 1989.",
    "The Seine rises in Burgundy and flows through Paris to the sea.",
    "A magazine is a periodical, printed or online, that is published on a regular schedule.",
    "In 1969 two astronauts walked on the moon while a third stayed in orbit.",
)


def main() -> None:
    """Writes the scores of a full checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a full checkpoint's folder")
    folder: Path = parser.parse_args().checkpoint
    spec = json.loads((folder / "resrank.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        scores = rerank(folder, spec)
    told = {
        "checkpoint": checkpoint_sha256(spec),
        "by": f"scripts/make_canonical_scores.py, torch {torch.__version__.partition('+')[0]}, fp32",
        "query": QUERY,
        "passages": [
            {"text": text, "score": round(score, 6)} for text, score in zip(PASSAGES, scores.tolist(), strict=True)
        ],
    }
    OUT.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


def rerank(folder: Path, spec: dict[str, Any]) -> Tensor:
    """Scores of the passages, in their order, FP32 [N]."""
    reranker, fusion = spec["reranker"], spec["fusion"]
    e_q = encode(folder, spec["encoder"], [QUERY], "query")[0]
    given = encode(folder, spec["encoder"], PASSAGES, "passage").half().float()  # as the index keeps them

    slots = reranker.get("slots", {"content": "vector"})
    order = torch.arange(len(given))
    has_relations = slots["content"] in {"relations", "both"}
    if has_relations:
        order = (normalize(given, dim=-1) @ normalize(e_q, dim=-1)).argsort(descending=True, stable=True)
    e = given[order]
    read = []
    if slots["content"] in {"vector", "both"}:
        read.append(e)
    if has_relations:
        read.append(relations(e_q, e, slots["neighbors"], fusion.get("cosine_map")))
    file = folder / "projectors.safetensors"
    projectors = load_file(file) if file.is_file() else {}
    x = torch.cat(read, dim=-1)
    if "p_in.weight" in projectors:
        x = x @ projectors["p_in.weight"].T
    hidden, last = decode(folder / "reranker", reranker, x * fusion["input_scale"], e_q)

    z, z_q = e, e_q
    gate, residual = fusion["residual_gate"], fusion.get("score_residual", 0.0)
    if gate != 0 or residual == 0:
        h, h_q = hidden, last
        if "p_out.weight" in projectors:
            h, h_q = h @ projectors["p_out.weight"].T, h_q @ projectors["p_out.weight"].T
        if fusion["state_norm"] == "l2":
            h, h_q = normalize(h, dim=-1), normalize(h_q, dim=-1)
        z = gate * h + e
        z_q = gate * h_q + (e_q if fusion["query_residual"] else 0)
    scores = mapped(cosine_similarity(z, z_q[None], dim=-1), fusion.get("cosine_map"))
    if residual != 0:
        scores = scores + residual * (hidden @ projectors["score_head.weight"])
    return scores[order.argsort()]


def encode(folder: Path, spec: dict[str, Any], texts: tuple[str, ...] | list[str], kind: str) -> Tensor:
    """Vectors of texts, FP32 [n, d], each alone and so without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder / "encoder"), load(folder / "encoder")
    vectors = []
    for text in texts:
        ids = tokenizer(spec[f"{kind}_instruction"] + text)["input_ids"]
        if spec["append_eos"]:
            ids = [*ids, tokenizer.eos_token_id]
        assert len(ids) <= spec[f"max_{kind}_tokens"], "nothing here is cut"
        states = model(torch.tensor([ids]))[0][0]
        pooled = {"mean": states.mean(dim=0), "last": states[-1], "cls": states[0]}[spec["pooling"]]
        vectors.append(normalize(pooled, dim=-1) if spec["embedding_norm"] == "l2" else pooled)
    return torch.stack(vectors)


def decode(folder: Path, spec: dict[str, Any], x: Tensor, e_q: Tensor) -> tuple[Tensor, Tensor]:
    """The passages' last hidden states, FP32 [N, h], and the last position's, FP32 [h]."""
    model, prompt = load(folder), spec["prompt"]
    if prompt is None:
        states = model(inputs_embeds=x[None], use_cache=False)[0][0]
        return states, states[-1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = model.get_input_embeddings()

    def tokens(text: str) -> Tensor:
        return table(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64))

    # The three texts are tokenized one by one: the query is the user's, the others are the checkpoint's.
    before = torch.cat([tokens(prompt["before_query"]), tokens(QUERY), tokens(prompt["before_passages"])])
    after = torch.cat([tokens(prompt["after_passages"]), tokens(spec["eos_token"])])
    states = model(inputs_embeds=torch.cat([before, x, after])[None], use_cache=False)[0][0]
    return states[len(before) : len(before) + len(x)], states[-1]


def relations(e_q: Tensor, e: Tensor, neighbors: int, cosine_map: dict[str, float] | None) -> Tensor:
    """What each passage has to do with the query and its neighbours, FP32 [N, 3K + 4], passage by passage."""
    units, query = normalize(e.double(), dim=-1), normalize(e_q.double(), dim=-1)
    between, values = mapped(units @ units.T, cosine_map), mapped(units @ query, cosine_map)
    rows = []
    for i in range(len(e)):
        to_near, itself, ahead = [0.0] * neighbors, [0.0] * neighbors, [0.0] * neighbors
        for k in range(min(neighbors, len(e))):
            to_near[k] = 0.0 if k == i else float(between[i, k])
            itself[k] = 0.5 if k == i else 0.0
            ahead[k] = float(values[k] - values[i])
        others = [float(between[i, j]) for j in range(len(e)) if j != i]
        mean = sum(others) / len(others)
        rows.append([*to_near, *itself, *ahead, float(values[i]), float(values[0]), mean, i / 50])
    return torch.tensor(rows, dtype=torch.float32)


def mapped(cosines: Tensor, cosine_map: dict[str, float] | None) -> Tensor:
    """A of them; the identity where the checkpoint has none."""
    if cosine_map is None:
        return cosines
    return cosine_map["slope"] * (cosines - cosine_map["center"]) + cosine_map["offset"]


def load(folder: Path) -> Any:
    """A backbone in fp32."""
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def checkpoint_sha256(spec: dict[str, Any]) -> str:
    """The digest that a repository's manifest has of its checkpoint: of the fields as they are written."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


if __name__ == "__main__":
    main()
