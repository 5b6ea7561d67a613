"""Writes a checkpoint whose reranker was trained in full as an adapter: products of low rank in place of its weights.

Training in full learns more in as many steps than LoRA does, and an adapter is a tenth of the size.

    resrank checkpoint init --encoder var/encoder --reranker smollm2 --layers 4 --slots relations --score-residual 0.3 \
        --cosine-map 2.462,0.7152,0.05 --lexical-weight 0.2 --out var/llm-start
    resrank train training/recipes/llm.yaml
    python scripts/extract_adapter.py var/runs/llm/checkpoint --start var/llm-start --encoder var/encoder --out llm
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from resrank.core.adapter import CARD_FILE, validate_adapter
from resrank.core.checkpoint import ENCODER_DIR, PROJECTORS_FILE, RERANKER_DIR, SCORE_HEAD, read_spec
from resrank.core.errors import CheckpointError, ResRankError
from resrank.core.weights import WEIGHTS_FILE
from resrank.export.adapters import AdaptedBackbone, merge_adapter, write_adapter
from resrank.export.low_rank import low_rank_adapter


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Write a reranker that was trained in full as an adapter.")
    parser.add_argument("trained", type=Path, help="full checkpoint of a run")
    parser.add_argument("--start", type=Path, required=True, help="full checkpoint that the run started from")
    parser.add_argument("--encoder", type=Path, help="adapter checkpoint that has its encoder, if that was trained too")
    parser.add_argument("--rank", type=int, default=64, help="of each layer's product [default: 64]")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    arguments = parser.parse_args()
    if arguments.rank < 1:
        parser.error(f"argument --rank: must be above 0, got {arguments.rank}")
    try:
        kept = extract(arguments.trained, arguments.start, arguments.encoder, arguments.rank, arguments.out)
    except (OSError, SafetensorError, ResRankError) as error:
        parser.error(str(error))
    print(f"{arguments.out}: {kept:.1%} of what training changed")


def extract(trained: Path, start: Path, encoder: Path | None, rank: int, out: Path) -> float:
    """Makes the adapter checkpoint; gives back the share of the change that is in it.

    Raises:
        CheckpointError: Something is missing or does not fit, the encoder was trained too or is another than that of
            ``encoder``, or the states join vectors.
    """
    spec, base = read_spec(trained), read_spec(start)
    if spec.encoder.sha256 != base.encoder.sha256:
        raise CheckpointError(f"{trained}: its encoder was trained too, which this does not write")
    if encoder is not None:
        _refuse_another_encoder(encoder, start, base.encoder.sha256)
    if spec.fusion.has_vector_residual:
        raise CheckpointError(f"{trained}: P_out reads the last norm's states too, which this does not write")
    found = low_rank_adapter(
        load_file(start / RERANKER_DIR / WEIGHTS_FILE), load_file(trained / RERANKER_DIR / WEIGHTS_FILE), rank
    )
    projectors = load_file(trained / PROJECTORS_FILE)
    projectors[SCORE_HEAD] = projectors[SCORE_HEAD] * found.last_norm
    write_adapter(
        out,
        base=start,
        spec=spec.model_copy(
            update={
                "encoder": spec.encoder.model_copy(update={"source": base.encoder.source}),
                "reranker": spec.reranker.model_copy(update={"source": base.reranker.source}),
            }
        ),
        encoder=None if encoder is None else AdaptedBackbone(encoder / ENCODER_DIR, validate_adapter(encoder).encoder),
        reranker=found.adapter,
        projectors=projectors,
        card=(trained / CARD_FILE).read_text(encoding="utf-8"),
    )
    return found.kept


def _refuse_another_encoder(adapter: Path, start: Path, sha256: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        found = merge_adapter(adapter, Path(scratch) / "merged").encoder.sha256
    if found != sha256:
        raise CheckpointError(f"{adapter}: its encoder, merged, has the sha256 {found}, but that of {start} {sha256}")


if __name__ == "__main__":
    main()
