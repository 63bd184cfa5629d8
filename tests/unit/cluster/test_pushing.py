"""Which registries are on this machine."""

import pytest
from pushing import is_loopback


@pytest.mark.parametrize(
    ("registry", "want"),
    [
        ("localhost:5001/team", True),
        ("127.0.0.1:5001", True),
        ("[::1]:5001/team", True),
        ("registry.example.com/team", False),
        ("localhost.example.com:5000", False),
        ("10.0.0.7:5000/team", False),
    ],
)
def test_a_registry_on_loopback_is_known(registry: str, want: bool) -> None:
    assert is_loopback(registry) is want
