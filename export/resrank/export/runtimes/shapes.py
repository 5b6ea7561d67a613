"""From the wishes of an export to the shapes that GPUs serve."""

from __future__ import annotations

from dataclasses import replace

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.prompt import PromptLayout
from resrank.export.export_options import ExportOptions
from resrank.export.gpu_serving import GpuServing
from resrank.export.profiles import default_buckets, default_profiles, validate_profiles


def gpu_serving(options: ExportOptions, spec: CheckpointSpec, layout: PromptLayout) -> GpuServing:
    """Chooses profiles and buckets: those that are wished for, else the usual ones.

    Raises:
        ExportError: A profile reaches beyond the checkpoint's limits.
    """
    profiles = default_profiles(spec, layout)
    if options.encoder_profiles:
        profiles = replace(profiles, encoder=options.encoder_profiles)
    if options.reranker_profiles:
        profiles = replace(profiles, reranker=options.reranker_profiles)
    validate_profiles(profiles, spec, layout)
    several = options.compute_capabilities if len(options.compute_capabilities) > 1 else ()
    return GpuServing(
        runtime=options.runtime,
        profiles=profiles,
        buckets=default_buckets(profiles, spec, layout),
        capabilities=several,
        gpus=options.gpus,
        instances=options.instances,
    )
