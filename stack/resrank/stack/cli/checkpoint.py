"""``resrank checkpoint``: make a first checkpoint, merge a trained one with its bases, look at one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.adapter import AdapterSpec, has_whole_weights, read_lora, validate_adapter
from resrank.core.checkpoint import (
    ENCODER_DIR,
    MAX_NEIGHBORS,
    RERANKER_DIR,
    CheckpointSpec,
    Pooling,
    SlotContent,
    SlotSpec,
    encoder_identity,
    is_adapter,
    validate_folder,
)
from resrank.core.errors import InvalidInputError
from resrank.core.fusion import DEFAULT_LEXICAL_WEIGHT, CosineMap
from resrank.core.names import COMPACT
from resrank.core.terminal import Terminal, print_json
from resrank.stack.cli.options import Output, OutputOption

if TYPE_CHECKING:
    from rich.table import Table

_BACKBONES = (ENCODER_DIR, RERANKER_DIR)

_NEIGHBORS = 16
_COMPACT_RESIDUAL = 0.3  # γ with which compact decoders were found to train well

app = typer.Typer(no_args_is_help=True, help="Make, merge and inspect checkpoints.", rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank checkpoint init --default` · "
    "`resrank checkpoint init --encoder e5-small --reranker compact --cosine-map 4.84,0.72,0.05 --out compact` · "
    "`resrank checkpoint init --encoder Qwen/Qwen3-Embedding-0.6B@COMMIT --reranker Qwen/Qwen3-0.6B@COMMIT --out qwen`"
)
def init(
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder: minilm, e5-small, a hub id with its commit, a folder with config.json, model.safetensors "
            "and tokenizer, or a checkpoint, whose encoder is taken as it is."
        ),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option(
            help="Reranker: smollm2, a hub id or folder of a causal decoder, or compact: a small one that reads slots "
            "alone."
        ),
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="An untrained pair: all-MiniLM-L6-v2 and SmolLM2-135M-Instruct.")
    ] = False,
    out: Annotated[Path, typer.Option(envvar="RESRANK_CHECKPOINT", help="The folder to make.")] = Path("checkpoint"),
    name: Annotated[str | None, typer.Option(help="The checkpoint's name [default: made of the backbones'].")] = None,
    pooling: Annotated[
        Pooling | None, typer.Option(help="How token states become one vector [default: as the encoder's files say].")
    ] = None,
    gate: Annotated[
        float, typer.Option(help="Residual gate g; 0 is dense-start: untrained, it ranks exactly as its retriever.")
    ] = 0.0,
    query_residual: Annotated[bool, typer.Option(help="Add the query's embedding to its state.")] = True,
    max_passage_tokens: Annotated[
        int | None, typer.Option(min=3, help="Longest passage [default: the encoder's limit, at most 512].")
    ] = None,
    max_query_tokens: Annotated[
        int | None,
        typer.Option(min=3, help="Longest query, for both models [default: that of a checkpoint's encoder, else 128]."),
    ] = None,
    max_passages: Annotated[int, typer.Option(min=1, max=4096, help="Candidates in one pass.")] = 128,
    layers: Annotated[
        int | None, typer.Option(min=1, help="The reranker's first so many layers [default: all; 2 of compact].")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=24, help="Hidden size of compact, a multiple of 24 [default: 96].")
    ] = None,
    slots: Annotated[
        SlotContent | None,
        typer.Option(help="What stands at a passage's position [default: vector; relations with compact]."),
    ] = None,
    neighbors: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_NEIGHBORS, help=f"Passages that relations compare each one with [default: {_NEIGHBORS}]."
        ),
    ] = None,
    score_residual: Annotated[
        float | None, typer.Option(min=0.0, help="γ of the score residual [default: 0; 0.3 with compact].")
    ] = None,
    cosine_map: Annotated[
        str | None, typer.Option(metavar="SLOPE,CENTER,OFFSET", help="One scale for cosines, as in 4.84,0.72,0.05.")
    ] = None,
    lexical_weight: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="What a share of the best lexical score counts beside a score.")
    ] = DEFAULT_LEXICAL_WEIGHT,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of the projectors' random directions, and of compact.")
    ] = 0,
) -> None:
    """Make a checkpoint from two backbones.

    It is **untrained**: with the default gate of 0 it ranks exactly as its retriever, and training starts from there.
    """
    if default == (encoder is not None or reranker is not None) or (encoder is None) != (reranker is None):
        raise typer.BadParameter("give either --default, or both --encoder and --reranker")
    # Imported here: torch takes seconds, and `show` and `--help` do not need it.
    from resrank.export.adapters import full_checkpoint, join_adapter
    from resrank.export.backbone_files import source_name
    from resrank.export.backbones import DEFAULT_NAME, initialize_default, named_backbone
    from resrank.export.cache import cache_folder
    from resrank.export.compact import CompactDecoder
    from resrank.export.initialize import InitOptions, initialize
    from resrank.export.written_aside import refuse_existing

    console = Terminal()
    compact = reranker == COMPACT
    if width is not None and not compact:
        raise typer.BadParameter("--width is of --reranker compact")
    content = slots or (SlotContent.RELATIONS if compact else SlotContent.VECTOR)
    if neighbors is not None and not content.has_relations:
        raise typer.BadParameter("--neighbors is of slots that hold relations")
    options = InitOptions(
        name=name or (DEFAULT_NAME if default else None),
        pooling=pooling,
        residual_gate=gate,
        query_residual=query_residual,
        max_passage_tokens=max_passage_tokens,
        max_query_tokens=max_query_tokens,
        max_passages=max_passages,
        layers=None if compact else layers,
        slots=SlotSpec(content=content, neighbors=(neighbors or _NEIGHBORS) if content.has_relations else None),
        score_residual=(_COMPACT_RESIDUAL if compact else 0.0) if score_residual is None else score_residual,
        cosine_map=None if cosine_map is None else _cosine_map(cosine_map),
        lexical_weight=lexical_weight,
        seed=seed,
    )

    def notify(step: str) -> None:
        console.print(f"{step} …")

    if encoder is None or reranker is None:
        spec = initialize_default(out, options, notify=notify)
    else:
        encoder_place, encoder_source = named_backbone(encoder, cache_folder(), notify)
        reranker_place: str | Path | CompactDecoder
        if compact:
            reranker_place = CompactDecoder(layers or 2, width or 96, seed)
            reranker_source: str | None = reranker_place.source
        else:
            reranker_place, reranker_source = named_backbone(reranker, cache_folder(), notify)
        sources = (encoder_source or source_name(encoder), reranker_source or source_name(reranker))
        with tempfile.TemporaryDirectory() as scratch:
            adapter = Path(encoder_place) if is_adapter(Path(encoder_place)) else None
            if adapter is not None:
                refuse_existing(out)  # before anything is merged
                encoder_place = full_checkpoint(adapter, Path(scratch), notify)
            if adapter is None or not compact:
                spec = initialize(encoder_place, reranker_place, out, options, sources=sources)
            else:
                # A drawn decoder comes whole: with an adapter of an encoder it makes an adapter checkpoint again.
                drawn = Path(scratch) / "drawn"
                spec = initialize(encoder_place, reranker_place, drawn, options, sources=sources)
                join_adapter(adapter, drawn, out)
    _report(spec, out, console)


@app.command(
    epilog="Examples: `resrank checkpoint merge --default --out checkpoint` · "
    "`resrank checkpoint merge runs/mine/checkpoint --encoder bases/encoder --reranker bases/reranker`"
)
def merge(
    adapter: Annotated[
        Path | None, typer.Argument(help="An adapter checkpoint, as `resrank train` writes it.", show_default=False)
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="The trained default that comes with ResRank.")] = False,
    out: Annotated[Path, typer.Option(envvar="RESRANK_CHECKPOINT", help="The folder to make.")] = Path("checkpoint"),
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder that the adapter was trained on, hub id or folder [default: as resrank.json names it]."
        ),
    ] = None,
    reranker: Annotated[str | None, typer.Option(help="The reranker it was trained on, likewise.")] = None,
) -> None:
    """Make a full checkpoint of an adapter checkpoint and the models it was trained on.

    The result is the same to the byte on every machine. Base models with other weights are refused.
    """
    if default == (adapter is not None):
        raise typer.BadParameter("give either an adapter checkpoint or --default")
    # Imported here: torch takes seconds, and `show` and `--help` do not need it.
    from resrank.export.adapters import merge_adapter
    from resrank.export.shipped_checkpoints import DEFAULT, shipped_checkpoint

    console = Terminal()
    spec = merge_adapter(
        adapter or shipped_checkpoint(DEFAULT),
        out,
        encoder=encoder,
        reranker=reranker,
        notify=lambda step: console.print(f"{step} …"),
    )
    _report(spec, out, console)


def _cosine_map(text: str) -> CosineMap:
    form = "write SLOPE,CENTER,OFFSET, as in 4.84,0.72,0.05"
    try:
        slope, center, offset = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--cosine-map {text}: {form}") from None
    try:
        return CosineMap(slope, center, offset)
    except InvalidInputError as error:
        raise typer.BadParameter(f"--cosine-map {text}: {error}") from None


def _report(spec: CheckpointSpec, out: Path, console: Terminal) -> None:
    console.print(f"[green]✓[/] {out}: checkpoint {spec.name!r}, d = {spec.encoder.embedding_dim}, ", end="")
    console.print(f"h = {spec.reranker.hidden_size}, {spec.fusion.projector.value} projector")
    slots = spec.reranker.slots
    if slots.content.has_relations:
        console.print(f"  slots hold {slots.content.value}, {slots.neighbors} neighbours")
    if spec.fusion.residual_gate == 0 and spec.fusion.score_residual == 0:
        console.print("  dense-start: the reranker is untrained, the scores are the retriever's cosines")


@app.command(
    name="fit-cosines",
    epilog="Examples: `resrank checkpoint fit-cosines checkpoint --corpus corpus.jsonl.gz` · "
    "`resrank checkpoint fit-cosines checkpoint --corpus index --questions log.txt --out mapped`",
)
def fit_cosines(
    checkpoint: Annotated[Path, typer.Argument(help="A full or an adapter checkpoint.", show_default=False)],
    corpus: Annotated[
        Path, typer.Option(help="Passages: a folder in BEIR layout, its corpus file alone, or an index folder.")
    ],
    questions: Annotated[
        Path | None,
        typer.Option(help="A log of questions, text or JSON lines [default: sentences of the passages]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Writes the checkpoint with the map here [default: only tells it].")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Fit A(c) = slope · (c − center) + offset, the map of an encoder's cosines that slots and scores work on.

    Encoders differ in where their cosines lie; A puts random passages at 0.05 and the deviation of a list at 0.0595.
    The same corpus gives the same map. It is no part of the encoder: an index stays valid.
    """
    # Imported here: torch takes seconds.
    from resrank.stack.cosine_fit import fit_to, write_with

    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists already", param_hint="--out")
    fit = fit_to(checkpoint, corpus, questions, Terminal(stderr=True, highlight=False))
    if out is not None:
        write_with(fit, checkpoint, out)
    if output is Output.JSON:
        found = {**asdict(fit.cosine_map), "random": fit.random, "deviation": fit.deviation}
        print_json({**found, "passages": fit.passages, "questions": fit.questions})
        return
    console, found_map = Terminal(highlight=False), fit.cosine_map
    console.print(
        f"cosine_map: {{slope: {found_map.slope:g}, center: {found_map.center:g}, offset: {found_map.offset:g}}}",
        markup=False,
    )
    console.print(
        f"  {fit.passages} passages at random have a mean cosine of {fit.random:.4f}, and the 100 nearest to each of "
        f"{fit.questions} questions deviate by {fit.deviation:.4f}",
        soft_wrap=True,
    )
    if out is not None:
        console.print(f"[green]✓[/] {out}")


@app.command(epilog="Example: `resrank checkpoint show checkpoint --output json`")
def show(
    folder: Annotated[Path, typer.Argument(envvar="RESRANK_CHECKPOINT", help="The checkpoint folder.")],
    output: OutputOption = Output.TEXT,
    verify: Annotated[bool, typer.Option(help="Compute the weights' digests again (seconds per GB).")] = True,
) -> None:
    """Validate a checkpoint, full or adapter, and print its fields."""
    spec: CheckpointSpec | AdapterSpec
    if is_adapter(folder):
        spec = validate_adapter(folder)
        told = {"sha256": spec.digest(), "trained": {name: _trained(folder / name) for name in _BACKBONES}}
    else:
        spec = validate_folder(folder, verify_hashes=verify)
        told = {"sha256": spec.digest(), "encoder_identity": encoder_identity(spec)}
    if output is Output.JSON:
        print_json({**spec.model_dump(mode="json"), **told})
        return
    Terminal().print(_table(spec, told, folder))


def _trained(folder: Path) -> str:
    """What an adapter checkpoint holds for one backbone."""
    if has_whole_weights(folder):
        return "whole"
    lora = read_lora(folder)
    return "no" if lora is None else f"LoRA of rank {lora.rank} in {len(lora.modules)} layers"


def _table(spec: CheckpointSpec | AdapterSpec, told: Mapping[str, object], folder: Path) -> Table:
    from rich.table import Table

    table = Table(title=f"{folder}: {spec.name}", title_justify="left", show_header=False, box=None)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for section, fields in {**told, **spec.model_dump(mode="json")}.items():
        for field, value in (fields if isinstance(fields, dict) else {"": fields}).items():
            # repr: prompts hold line breaks and brackets, which would be read as layout and markup
            shown = value if isinstance(value, dict) else {"": value}
            for part, text in shown.items():
                label = ".".join(filter(None, (section, field, part)))
                table.add_row(label, repr(text).replace("[", r"\["))
    return table
