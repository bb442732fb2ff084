"""Close Ray to everybody but the run: every run has a token of its own, and listeners are on the loopback alone.

Ray's defaults listen on all interfaces and serve whoever connects, as the user of the run. With
``RAY_AUTH_MODE=token`` every call without the token is refused (https://docs.ray.io/en/latest/ray-security/token-auth.html),
and on a node whose address is the loopback Ray binds its listeners there. On Linux it takes that address if
``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`` is 0, which is its default elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from oblivion.errors import ConfigError, FederationError

_MODE = "RAY_AUTH_MODE"
_TOKEN = "RAY_AUTH_TOKEN"
_TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_ADDRESS = "RAY_ADDRESS"
_TOKEN_BYTES = 32
_SECONDS = 10.0
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):[0-9]{1,5}")
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True)
class Closed:
    """How Ray will be closed.

    Attributes
    ----------
    address : str
        The address of the cluster that the run joins; ``"local"`` for a Ray of its own.
    environment : mapping
        Variables that must be set before Ray starts; None for those that must not be.
    """

    address: str
    environment: Mapping[str, str | None]

    @property
    def own(self) -> bool:
        """Whether the run starts Ray itself."""
        return self.address == "local"


def how_closed() -> Closed:
    """Say what a run that starts now does: ``RAY_ADDRESS`` names a cluster to join, ``RAY_AUTH_TOKEN`` its token.

    Raises
    ------
    ConfigError
        If there is no token for the cluster, or its address is none.
    """
    address = os.environ.get(_ADDRESS) or "local"
    if address == "local":
        fresh = secrets.token_hex(_TOKEN_BYTES)
        return Closed("local", {_MODE: "token", _TOKEN: fresh, _TOKEN_FILE: None, _CLUSTERS: "0"})
    if not _HOST_AND_PORT.fullmatch(address):
        raise ConfigError(
            f"{_ADDRESS} is not the address of a Ray cluster; accepted: host:port of its head node, as `ray start` "
            "prints it, or unset it, and the run starts Ray itself"
        )
    if not os.environ.get(_TOKEN) and not os.environ.get(_TOKEN_FILE):
        raise ConfigError(
            f"{_ADDRESS} names a cluster, and there is no token for it: set {_TOKEN} or {_TOKEN_FILE} as for its `ray "
            f"start`, which also needs {_MODE}=token; or unset {_ADDRESS}"
        )
    return Closed(address, {_MODE: "token"})


@contextlib.contextmanager
def ray_closed() -> Iterator[Closed]:
    """Have Ray refuse every call without the token while the context lasts; afterwards the environment is as before.

    Raises
    ------
    ConfigError
        See `how_closed`; or if the token is not the cluster's.
    FederationError
        If Ray runs in this process already, or the cluster to join serves calls without a token.
    """
    closed = how_closed()
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        raise FederationError(
            "Ray runs in this process already, and it may be open to others; end it with ray.shutdown(), or --engine "
            "inline"
        )
    if not closed.own:
        _check_refuses(closed.address)
    before = {name: os.environ.get(name) for name in closed.environment}
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    try:
        _set(closed.environment)
        ray_constants.ENABLE_RAY_CLUSTER = clusters and not closed.own  # Ray read it when it was imported
        _read_again()
        yield closed
    finally:
        _set(before)
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        _read_again()


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_again() -> None:
    """Have Ray read token and mode anew: it keeps what it read first in a process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def _check_refuses(address: str) -> None:
    """Refuse a cluster that serves calls without a token, where whoever reaches it runs code, or not with this one."""
    said = _alive(address, None)
    if said == "OK":
        raise FederationError(
            f"the Ray cluster at {address} ({_ADDRESS}) serves calls without a token; start every node of it with "
            f"{_MODE}=token and one {_TOKEN}, or unset {_ADDRESS}"
        )
    if said == "UNAUTHENTICATED":
        said = _alive(address, _given_token())
        if said == "UNAUTHENTICATED":
            raise ConfigError(
                f"{_TOKEN} or {_TOKEN_FILE} is not the token of the Ray cluster at {address} ({_ADDRESS}); give the "
                "one that its nodes were started with"
            )
    if said != "OK":
        raise FederationError(
            f"the Ray cluster at {address} ({_ADDRESS}) does not answer: {said}; check the address, and that it was "
            f"started with {_MODE}=token, or unset {_ADDRESS}"
        )


def _given_token() -> str:
    given, path = os.environ.get(_TOKEN), os.environ.get(_TOKEN_FILE, "")
    try:
        return (given or Path(path).read_text("ascii")).strip()
    except (OSError, ValueError):
        raise ConfigError(f"{_TOKEN_FILE}: {path} cannot be read; expected a file with the cluster's token") from None


def _alive(address: str, token: str | None) -> str:
    """Ask a cluster whether it is alive, and return the gRPC status code of its answer."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_CHECK_ALIVE, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=_SECONDS, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
