"""A load test as it is written down: what is called, how often, on what data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from resrank.client.searches import Route
from resrank.core.config_file import read_fields, validate
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.search import SearchMode
from resrank.loadtest.counts import Count, Fixed
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.profile import Profile
from resrank.loadtest.section import Section
from resrank.loadtest.slo import PhaseSlo, Slo

MAX_CALLS = 5_000_000
"""Calls in one run. Each is kept until the report is written, in 18 bytes."""

MAX_DURATION_S = 24 * 3600.0


class Mix(Section):
    """How the calls divide among the kinds: weights, of any scale."""

    rerank: float = Field(default=0, ge=0)
    rerank_text: float = Field(default=0, ge=0)
    search: float = Field(default=0, ge=0)
    embed: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.shares():
            raise ValueError(f"every weight is 0: give one above 0 of {', '.join(CallKind)}")
        return self

    def shares(self) -> dict[CallKind, float]:
        """Kind to its share of the calls, of those that occur."""
        weights = {kind: float(getattr(self, kind.value)) for kind in CallKind}
        total = sum(weights.values())
        return {kind: weight / total for kind, weight in weights.items() if weight > 0}


class _Phase(Section):
    name: str = Field(pattern=r"^[\w][\w .+-]*$", max_length=40)
    duration_s: float = Field(gt=0, le=MAX_DURATION_S)
    ramp_s: float = Field(
        default=0, ge=0, description="Seconds at the phase's start in which the load changes, in a straight line."
    )
    slo: PhaseSlo = PhaseSlo()

    @model_validator(mode="after")
    def _ramp_fits(self) -> Self:
        if self.ramp_s > self.duration_s:
            raise ValueError(f"ramp_s {self.ramp_s:g} is longer than duration_s {self.duration_s:g}")
        return self


class RatePhase(_Phase):
    """A time with a rate of calls."""

    rate: float = Field(gt=0, le=100_000, description="Calls a second, of all kinds together.")

    @property
    def level(self) -> float:
        """Calls a second."""
        return self.rate


class UsersPhase(_Phase):
    """A time with a number of users."""

    users: int = Field(ge=1, le=10_000)

    @property
    def level(self) -> float:
        """Users."""
        return float(self.users)


class OpenLoad(Section):
    """Calls arrive as they come, whether the server keeps up or not: a Poisson process.

    Latency counts from the moment at which a call should have started. So a server that stalls cannot hide.
    """

    kind: Literal["open"]
    max_in_flight: int = Field(
        default=512,
        ge=1,
        le=10_000,
        description="Calls of one process under way at the same time; more have to wait, which their latency includes.",
    )
    phases: tuple[RatePhase, ...] = Field(min_length=1)

    @property
    def most_in_flight(self) -> int:
        """Calls of one process that may be under way at the same time."""
        return self.max_in_flight


class ClosedLoad(Section):
    """Users who wait for each answer, think, and call again: they slow down with the server."""

    kind: Literal["closed"]
    think_time_s: float = Field(
        default=0, ge=0, le=3600, description="Mean time between answer and next call; exponentially distributed."
    )
    phases: tuple[UsersPhase, ...] = Field(min_length=1)

    @property
    def most_in_flight(self) -> int:
        """Calls of one process that may be under way at the same time."""
        return max(phase.users for phase in self.phases)


class Data(Section):
    """Where queries and passages come from; relative paths count from the working directory."""

    queries: Path = Field(
        default=Path("examples/hotpotqa-mini/queries.jsonl.gz"), description="JSON lines with `text`."
    )
    passages: Path | None = Field(
        default=Path("examples/hotpotqa-mini/corpus.jsonl.gz"),
        description="JSON lines with `_id`, `title`, `text` (BEIR); null where no call needs texts of passages.",
    )
    distinct_passages: int = Field(default=256, ge=1, le=100_000, description="How many of the passages are used.")


class EmbeddingSource(StrEnum):
    """Where the candidates of ``rerank`` come from."""

    SERVER = "server"  # passages of the data, embedded by the server before the load starts
    RANDOM = "random"  # unit vectors


class EmbedRole(StrEnum):
    """What ``embed`` embeds."""

    QUERY = "query"
    PASSAGE = "passage"


class EmbedCalls(Section):
    """How ``embed`` calls look."""

    role: EmbedRole = EmbedRole.QUERY
    texts: Count = Field(default=Fixed(kind="fixed", value=1), description="Texts in one call.")


class SearchCalls(Section):
    """How ``search`` calls look, besides the number of candidates."""

    k: int = Field(default=10, ge=1, le=MAX_MESSAGE_RECORDS)
    mode: SearchMode = SearchMode.HYBRID
    route: Route = Field(
        default="client", description="`client`: one call to each server; `server`: one to Triton's model `search`."
    )


class Scenario(Section):
    """One load test."""

    name: str = Field(pattern=r"^[\w][\w.+-]*$", max_length=100)
    description: str = ""
    mix: Mix
    load: Annotated[OpenLoad | ClosedLoad, Field(discriminator="kind")]
    warmup_s: float = Field(default=0, ge=0, description="Seconds at the start that the figures and the SLO leave out.")
    deadline_s: float = Field(gt=0, le=600, description="Budget of each call, from the moment it should start.")
    data: Data = Data()
    embeddings: EmbeddingSource = EmbeddingSource.SERVER
    candidates: Count = Field(default=Fixed(kind="fixed", value=100), description="Of rerank, rerank_text and search.")
    query_words: Count | None = Field(
        default=None, description="Words of a query, made of the data's; null takes queries as they are."
    )
    search: SearchCalls = SearchCalls()
    embed: EmbedCalls = EmbedCalls()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    slo: Slo = Slo()

    @property
    def profile(self) -> Profile:
        """The load over time."""
        return Profile(self.load.phases)

    @property
    def duration_s(self) -> float:
        """Length of all phases together."""
        return sum(phase.duration_s for phase in self.load.phases)

    def windows(self) -> Iterator[tuple[RatePhase | UsersPhase, float, float]]:
        """Each phase with its start and end, in seconds."""
        start = 0.0
        for phase in self.load.phases:
            yield phase, start, start + phase.duration_s
            start += phase.duration_s

    def needs_passages(self) -> bool:
        """Whether any call reads texts of passages."""
        kinds = self.mix.shares()
        return (
            CallKind.RERANK_TEXT in kinds
            or (CallKind.RERANK in kinds and self.embeddings is EmbeddingSource.SERVER)
            or (CallKind.EMBED in kinds and self.embed.role is EmbedRole.PASSAGE)
        )

    def at_rate(self, rate: float, *, warmup_s: float, probe_s: float) -> Scenario:
        """The same calls in the open loop at one rate, for one probe.

        Args:
            rate: Calls a second.
            warmup_s: Seconds that are not judged.
            probe_s: Seconds that are.
        """
        in_flight = (
            self.load.max_in_flight
            if isinstance(self.load, OpenLoad)
            else OpenLoad.model_fields["max_in_flight"].default
        )
        phase = RatePhase(name="probe", rate=rate, duration_s=warmup_s + probe_s)
        load = OpenLoad(kind="open", max_in_flight=in_flight, phases=(phase,))
        return self.model_copy(update={"load": load, "warmup_s": warmup_s})

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if self.warmup_s >= self.duration_s:
            yield f"warmup_s: {self.warmup_s:g} leaves nothing of {self.duration_s:g} s of load"
        if self.duration_s > MAX_DURATION_S:
            yield f"load.phases: last {self.duration_s:g} s together, more than {MAX_DURATION_S:g}"
        if isinstance(self.load, OpenLoad) and self.profile.total > MAX_CALLS:
            yield f"load.phases: make {self.profile.total:.0f} calls, more than {MAX_CALLS} that one run keeps"
        names = [phase.name for phase in self.load.phases]
        if len(set(names)) < len(names):
            yield f"load.phases: two are named {next(name for name in names if names.count(name) > 1)!r}"
        if self.load.phases[0].slo.max_recovery_s is not None:
            yield "load.phases.0.slo.max_recovery_s: the first phase is what others are compared with"
        kinds = self.mix.shares()
        for place, slo in [
            ("slo", self.slo),
            *((f"load.phases.{i}.slo", p.slo) for i, p in enumerate(self.load.phases)),
        ]:
            for kind in slo.bounded_kinds():
                if kind not in kinds:
                    yield f"{place}.latency_ms.{kind}: the mix has no {kind}"
        if self.needs_passages() and self.data.passages is None:
            yield "data.passages: missing, and the mix reads passages (rerank needs none with embeddings random)"
        if CallKind.SEARCH in kinds and self.search.k > self.candidates.largest:
            yield f"search.k: {self.search.k} is more than the candidates, {self.candidates.largest}"
        if CallKind.SEARCH in kinds and self.candidates.largest > MAX_MESSAGE_RECORDS:
            yield f"candidates: up to {self.candidates.largest}, and a search takes {MAX_MESSAGE_RECORDS} at most"


def load_scenario(path: Path) -> Scenario:
    """Reads and validates a scenario.

    Raises:
        InvalidInputError: The file cannot be read, a field is unknown or wrong, or two contradict each other.
    """
    return validate(Scenario, read_fields(path))
