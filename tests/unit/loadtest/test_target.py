from __future__ import annotations

import pytest

from resrank.core.errors import InvalidInputError
from resrank.loadtest.target import Target, require_owned


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_word(host: str) -> None:
    require_owned(host, owned=False)


@pytest.mark.parametrize("host", ["10.0.0.5", "0.0.0.0", "example.com", "localhost.example.com", "", "2001:db8::1"])
def test_any_other_does(host: str) -> None:
    with pytest.raises(InvalidInputError, match="give --yes-i-own-this-host"):
        require_owned(host, owned=False)
    require_owned(host, owned=True)


def test_addresses() -> None:
    target = Target(host="::1", triton_port=1, metrics_port=2, retrieval_port=3)
    assert (target.triton, target.retrieval, target.metrics_url) == ("[::1]:1", "[::1]:3", "http://[::1]:2/metrics")
