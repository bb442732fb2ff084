"""The Flower ClientApp: one host per node. Every handler unpacks a message, lets the host answer, packs the reply."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from oblivion.config import config_from_mapping
from oblivion.federation.host import Host
from oblivion.training.cohort import reason
from oblivion.types import HostReply
from oblivion.wire import pack_reply, unpack_request

app = ClientApp()
_STANDARD_ERROR = 2
_host = Host()


@contextlib.contextmanager
def ends_after(seconds: float) -> Iterator[None]:
    """End the process if the body hangs, so that the engine can start another and send the message again."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _answer(message: Message) -> Message:
    request = unpack_request(message.content)
    try:
        with ends_after(config_from_mapping(request.config, "message").simulation.deadline):
            reply = _host.answer(request)
    except Exception as error:  # else Flower sends the error's text, which may hold content of rows
        clients = [task.client_id for cohort in request.cohorts for task in cohort] or [request.host]
        reply = HostReply(host=request.host, failures={client: reason(error) for client in clients})
    return Message(pack_reply(reply), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the cohorts of the message, in learning."""
    return _answer(message)


@app.train("visit")
def visit(message: Message, context: Context) -> Message:
    """Train the clients of the message with the objective of a phase's visit."""
    return _answer(message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Have every client of the message measure the adapter on its own rows."""
    return _answer(message)


@app.query("start")
def start(message: Message, context: Context) -> Message:
    """Load the model, so that the first training message does not wait for it."""
    return _answer(message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say which clients this host serves."""
    return _answer(message)
