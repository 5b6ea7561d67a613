"""Optimisation profiles and the buckets that follow from them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.errors import ExportError
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout
from resrank.export.manifest import AxisRange
from resrank.export.profiles import (
    EncoderProfile,
    Profiles,
    Range,
    RerankerProfile,
    default_buckets,
    default_profiles,
    validate_profiles,
)

LAYOUT = PromptLayout(
    before_query=(1,) * 20, before_passages=(2,) * 4, after_passages=(3,) * 5, eos_id=4, placeholder_id=0
)
"""20 + 4 + 5 tokens and EOS: 30 positions beside query and candidates."""

limits = st.fixed_dictionaries(
    {
        "passage_tokens": st.integers(3, 2048),
        "encoder_query_tokens": st.integers(3, 2048),
        "query_tokens": st.integers(1, 2048),
        "passages": st.integers(1, 2000),
    }
)


def make_spec(
    *, passage_tokens: int = 512, encoder_query_tokens: int = 128, query_tokens: int = 512, passages: int = 128
) -> CheckpointSpec:
    return CheckpointSpec.model_validate(
        {
            "name": "for-profiles",
            "encoder": {
                "source": "none",
                "sha256": "0" * 64,
                "embedding_dim": 384,
                "pooling": "mean",
                "max_passage_tokens": passage_tokens,
                "max_query_tokens": encoder_query_tokens,
            },
            "reranker": {
                "source": "none",
                "sha256": "1" * 64,
                "hidden_size": 384,
                "max_query_tokens": query_tokens,
                "max_passages": passages,
                "prompt": {"before_query": "", "before_passages": "", "after_passages": ""},
                "eos_token": "</s>",
            },
            "fusion": {"projector": "identity", "input_scale": 1.0, "residual_gate": 1.0, "query_residual": False},
        }
    )


def test_the_defaults_reach_as_far_as_promised() -> None:
    profiles = default_profiles(make_spec(), LAYOUT)
    assert [str(profile.batch) for profile in profiles.encoder] == ["1:1:8", "1:16:64"]
    assert [str(profile.tokens) for profile in profiles.encoder] == ["8:16:64", "8:256:512"]
    assert [str(profile.batch) for profile in profiles.reranker] == ["1:1:1", "1:8:16"]
    for profile in profiles.reranker:  # opt: 30 positions, a query of 16 tokens, 100 candidates
        assert (str(profile.sequence), str(profile.candidates)) == ("16:146:512", "1:100:128")


def test_the_defaults_are_cut_to_a_small_checkpoint() -> None:
    spec = make_spec(passage_tokens=64, encoder_query_tokens=32, query_tokens=32, passages=16)
    profiles = default_profiles(spec, LAYOUT)
    assert [str(profile.tokens) for profile in profiles.encoder] == ["8:16:64", "8:64:64"]
    for profile in profiles.reranker:  # at most 30 + 32 + 16 positions, usually 30 + 16 + 16
        assert (str(profile.sequence), str(profile.candidates)) == ("16:62:78", "1:16:16")


@given(limits=limits)
def test_the_defaults_are_valid_for_every_checkpoint(limits: dict[str, int]) -> None:
    spec = make_spec(**limits)
    validate_profiles(default_profiles(spec, LAYOUT), spec, LAYOUT)


@given(limits=limits)
def test_every_lone_request_within_the_limits_has_a_bucket_in_a_profile(limits: dict[str, int]) -> None:
    spec = make_spec(**limits)
    profiles = default_profiles(spec, LAYOUT)
    buckets = default_buckets(profiles, spec, LAYOUT)
    longest_sequence = 30 + limits["query_tokens"] + limits["passages"]
    axes = (
        (buckets.passage_tokens, 3, min(512, limits["passage_tokens"]), profiles.encoder, "tokens"),
        (buckets.query_tokens, 3, min(512, limits["encoder_query_tokens"]), profiles.encoder, "tokens"),
        (buckets.sequence, 32, min(512, longest_sequence), profiles.reranker, "sequence"),
        (buckets.candidates, 1, min(128, limits["passages"]), profiles.reranker, "candidates"),
    )
    for lengths, shortest, longest, of_model, axis in axes:
        assert lengths[-1] == longest
        for length in range(shortest, longest + 1):
            padded = min(bucket for bucket in lengths if bucket >= length)
            sizes = [getattr(profile, axis) for profile in of_model if profile.batch.min == 1]
            assert any(size.min <= padded <= size.max for size in sizes)


def test_the_buckets_of_a_usual_checkpoint() -> None:
    spec = make_spec(query_tokens=128)
    buckets = default_buckets(default_profiles(spec, LAYOUT), spec, LAYOUT)
    assert buckets.query_tokens == (8, 16, 24, 32, 40, 48, 64, 80, 104, 128)
    assert buckets.sequence == (32, 48, 64, 80, 96, 128, 160, 208, 272, 286)  # 30 + 128 + 128 at most
    assert buckets.candidates == (10, 20, 50, 100, 128)


def test_buckets_leave_out_what_no_profile_takes() -> None:
    spec = make_spec()
    batch = Range(1, 1, 8)
    profiles = replace(
        default_profiles(spec, LAYOUT),
        encoder=(EncoderProfile(batch, Range(8, 16, 32)), EncoderProfile(batch, Range(128, 128, 256))),
    )
    # 40 to 127 lie between the profiles: such rows are padded to 136. 256 is the last profile's end.
    assert default_buckets(profiles, spec, LAYOUT).passage_tokens == (8, 16, 24, 32, 136, 176, 232, 256)


@pytest.mark.parametrize(("query_tokens", "expected"), [(4, (8,)), (100, (8, 16, 24, 32, 128)), (32, (8, 16, 24, 32))])
def test_a_limit_that_no_profile_takes_is_padded_to_the_next_that_one_takes(
    query_tokens: int, expected: tuple[int, ...]
) -> None:
    spec = make_spec(encoder_query_tokens=query_tokens)
    batch = Range(1, 1, 8)
    profiles = replace(
        default_profiles(spec, LAYOUT),
        encoder=(EncoderProfile(batch, Range(8, 16, 32)), EncoderProfile(batch, Range(128, 128, 256))),
    )
    assert default_buckets(profiles, spec, LAYOUT).query_tokens == expected


def test_shapes_of_the_encoder() -> None:
    profiles = default_profiles(make_spec(), LAYOUT)
    rows = ((1, 8), (16, 256), (64, 512))
    expected = {Tensor.INPUT_IDS: rows, Tensor.ATTENTION_MASK: rows}
    assert profiles.shapes(Model.ENCODER, 1, make_spec()) == expected


def test_shapes_of_the_reranker() -> None:
    profiles = default_profiles(make_spec(), LAYOUT)
    assert profiles.shapes(Model.RERANKER, 1, make_spec()) == {
        Tensor.INPUT_IDS: ((1, 16), (8, 146), (16, 512)),
        Tensor.PASSAGE_POSITIONS: ((1, 1), (8, 100), (16, 128)),
        Tensor.LAST_POSITION: ((1, 1), (8, 1), (16, 1)),
        Tensor.CANDIDATES: ((1, 1, 384), (8, 100, 384), (16, 128, 384)),
    }


def test_all_shapes_are_in_the_profiles_order() -> None:
    profiles, spec = default_profiles(make_spec(), LAYOUT), make_spec()
    for model in (Model.ENCODER, Model.RERANKER):
        expected = tuple(profiles.shapes(model, index, spec) for index in (0, 1))
        assert profiles.all_shapes(model, spec) == expected


def test_json_is_what_the_manifest_holds() -> None:
    profiles = default_profiles(make_spec(), LAYOUT)
    fields = json.loads(json.dumps(profiles.as_json()))
    assert fields["encoder"][0]["batch"] == {"min": 1, "opt": 1, "max": 8}
    for profile in (*fields["encoder"], *fields["reranker"]):
        for sizes in profile.values():
            AxisRange.model_validate(sizes)


def test_text_forms_read_back() -> None:
    encoder, reranker = EncoderProfile.parse("1:16:64x8:256:512"), RerankerProfile.parse("1:8:16x16:192:512x1:100:128")
    assert encoder == EncoderProfile(Range(1, 16, 64), Range(8, 256, 512))
    assert reranker == RerankerProfile(Range(1, 8, 16), Range(16, 192, 512), Range(1, 100, 128))
    assert str(encoder.batch) == "1:16:64"


@pytest.mark.parametrize("sizes", [(8, 4, 16), (4, 32, 16), (0, 1, 2), (-1, 1, 2), (16, 16, 8)])
def test_sizes_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ExportError) as caught:
        Range(*sizes)
    assert str(caught.value) == (
        f"min {sizes[0]}, opt {sizes[1]}, max {sizes[2]} is no range: they must ascend and start at 1 or above"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1:16:64", r"encoder profile '1:16:64': write BATCHxTOKENS, each as min:opt:max"),
        ("1:16:64x8:256:512x1:1:1", r"write BATCHxTOKENS"),
        ("1:16:64x8:512", r"tokens: '8:512' is no range: write min:opt:max, as in 1:8:64"),
        ("1:16:64x8:many:512", r"tokens: '8:many:512' is no range"),
        ("1:16:64x512:256:8", r"tokens: min 512, opt 256, max 8 is no range"),
    ],
)
def test_a_wrong_text_is_refused_with_the_axis(text: str, complaint: str) -> None:
    with pytest.raises(ExportError, match=complaint):
        EncoderProfile.parse(text)


def with_encoder(*profiles: EncoderProfile) -> Profiles:
    return replace(default_profiles(make_spec(), LAYOUT), encoder=profiles)


def with_reranker(*profiles: RerankerProfile) -> Profiles:
    return replace(default_profiles(make_spec(), LAYOUT), reranker=profiles)


ENCODER = EncoderProfile(Range(1, 1, 1), Range(8, 8, 512))
RERANKER = RerankerProfile(Range(1, 1, 1), Range(16, 64, 512), Range(1, 100, 128))


@pytest.mark.parametrize(
    ("profiles", "complaint"),
    [
        (
            with_encoder(ENCODER, replace(ENCODER, tokens=Range(8, 64, 513))),
            "encoder profile 1: tokens 8:64:513 reaches 513, but the checkpoint allows 512; end it at 512 or less",
        ),
        (
            with_encoder(replace(ENCODER, batch=Range(1, 8, 65))),
            "encoder profile 0: batch 1:8:65 reaches 65, but the checkpoint allows 64; end it at 64 or less",
        ),
        (
            with_reranker(replace(RERANKER, sequence=Range(16, 64, 671))),
            "reranker profile 0: sequence 16:64:671 reaches 671, but the checkpoint allows 670; end it at 670 or less",
        ),
        (
            with_reranker(replace(RERANKER, candidates=Range(1, 100, 129))),
            "reranker profile 0: candidates 1:100:129 reaches 129, but the checkpoint allows 128; end it at 128 or "
            "less",
        ),
        (
            with_reranker(replace(RERANKER, batch=Range(2, 8, 16))),
            "reranker: no profile takes a single row (2:8:16); give one whose batch starts at 1",
        ),
        (
            with_encoder(),
            "encoder: no profile takes a single row (no profile at all); give one whose batch starts at 1",
        ),
        (
            with_reranker(replace(RERANKER, sequence=Range(16, 16, 31))),
            "reranker: no profile takes even one query token and one candidate, which are 32 positions with this "
            "prompt; end a sequence at 32 or more",
        ),
    ],
)
def test_profiles_beyond_the_model_are_refused(profiles: Profiles, complaint: str) -> None:
    with pytest.raises(ExportError) as caught:
        validate_profiles(profiles, make_spec(), LAYOUT)
    assert str(caught.value) == complaint


def test_only_engines_have_shapes() -> None:
    with pytest.raises(ValueError, match="residual_scoring is no engine model"):
        default_profiles(make_spec(), LAYOUT).shapes(Model.RESIDUAL_SCORING, 0, make_spec())
