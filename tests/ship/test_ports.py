"""Ports: chosen where none is named, refused where one is taken."""

from __future__ import annotations

import socket

import pytest

from pipeline.ship.ports import HOST, Ports, bound
from pipeline.types import UserError


def test_zero_picks_free_ports_and_others_stay() -> None:
    ports = Ports(0, 0, 0).fixed()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3 and min(ports.http, ports.grpc) > 1023
    assert ports.fixed() == ports  # they were given back


def test_a_taken_port_is_refused_with_the_option_that_chooses_another() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        advice = "stop what listens there, or choose another --"
        with pytest.raises(UserError, match=f"port {port} is taken; {advice}metrics-port"):
            Ports(0, 0, port).fixed()
        with pytest.raises(UserError, match=f"{advice}openai-port"):
            bound(port, "--openai-port")
    bound(port, "--openai-port").close()
