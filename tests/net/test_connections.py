"""How many connections there may be, and from whom."""

from xformd.limits import Limits
from xformd.net.connections import Connections


def test_no_more_than_so_many_in_total() -> None:
    connections: Connections[int] = Connections(Limits(max_connections=2))
    connections.add(1, "a")
    assert connections.refusal("a") is None
    connections.add(2, None)
    for peer in ("a", "b", None):
        refusal = connections.refusal(peer)
        assert refusal is not None
        assert refusal.kind == "total"
    connections.discard(2)
    assert connections.refusal("b") is None


def test_no_more_than_so_many_of_one_peer() -> None:
    connections: Connections[int] = Connections(Limits(max_connections_per_peer=1))
    connections.add(1, "a")
    refusal = connections.refusal("a")
    assert refusal is not None
    assert refusal.kind == "peer"
    assert connections.refusal("b") is None
    connections.discard(1)
    assert connections.refusal("a") is None


def test_clients_without_an_address_have_no_share() -> None:
    connections: Connections[int] = Connections(Limits(max_connections_per_peer=1))
    for number in range(5):
        assert connections.refusal(None) is None
        connections.add(number, None)


def test_peers_that_are_gone_are_forgotten() -> None:
    connections: Connections[int] = Connections(Limits(max_connections_per_peer=2))
    for number in range(100):
        connections.add(number, f"10.0.0.{number // 2}")
    assert (len(connections), len(connections._counts)) == (100, 50)
    for number in connections:
        connections.discard(number)
        connections.discard(number)
    assert (len(connections), connections._counts) == (0, {})
