"""A trace as a tree: which step of a request belongs to which, when it began and how long it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.text import Text
from rich.tree import Tree

from resrank.core.terminal import visible
from resrank.stack.trace_collector import TraceSpan

_SHOWN = ("resrank.outcome", "resrank.candidates", "resrank.batch_requests", "resrank.batch_rows")


def trace_tree(trace_id: str, spans: Sequence[TraceSpan]) -> Tree:
    """Draws a trace.

    Args:
        trace_id: In hex.
        spans: At least one. Those whose parent is not among them stand at the top: it went to another collector.
    """
    known = {span.span_id for span in spans}
    children: dict[str, list[TraceSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        children[span.parent_id if span.parent_id in known else ""].append(span)
    begin_ns = min(span.start_ns for span in spans)
    tree = Tree(Text(f"trace {trace_id}", style="bold"))
    waiting = [(tree, span) for span in reversed(children[""])]
    while waiting:
        above, span = waiting.pop()
        branch = above.add(_line(span, begin_ns))
        waiting += [(branch, child) for child in reversed(children[span.span_id])]
    return tree


def _line(span: TraceSpan, begin_ns: int) -> Text:
    facts = " ".join(f"{name.partition('.')[2]}={span.attributes[name]}" for name in _SHOWN if name in span.attributes)
    return Text.assemble(
        (visible(span.name), "red" if span.failed else ""),
        (f"  {(span.end_ns - span.start_ns) / 1e6:.2f} ms", "bold"),
        (f" at {(span.start_ns - begin_ns) / 1e6:.2f}", "dim"),
        (f"  {visible(span.service)}", "cyan"),
        (f"  {visible(facts)}" if facts else "", "dim"),
    )
