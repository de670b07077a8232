"""Connections to one Redis: commands go and answers come as a whole, or the connection ends.

A connection belongs to one call at a time. Whatever stops the call in the middle, a
cancellation too, ends the connection, so that nobody ever reads another's answer. Every
exception of redis-py becomes Unavailable here.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis.asyncio
import redis.exceptions

from syncserver.engines import redis_grants, redis_scripts
from syncserver.engines.redis_patience import patience
from syncserver.engines.redis_scripts import Script
from syncserver.errors import ConfigError, Unavailable

Command = tuple[Any, ...]
ALL = (*redis_scripts.ALL, *redis_grants.ALL)

_MAX_TIMEOUT_SECONDS = 60.0

_OWN_OPTIONS = {"prefix", "timeout_seconds"}
_OPTION = re.compile(r"db|ssl_[a-z_]+")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_MEANINGS = {
    "ASK": "it is a cluster node, and the keys are on another",
    "BUSY": "a script blocks it",
    "CLUSTERDOWN": "its cluster is down",
    "CROSSSLOT": "it is a cluster node that refuses keys of one hash tag",
    "EXECABORT": "it refuses a transaction",
    "LOADING": "it is still reading its data",
    "MASTERDOWN": "it is a replica without its primary",
    "MISCONF": "it cannot save its data",
    "MOVED": "it is a cluster node, and the keys are on another",
    "NOAUTH": "it wants a password",
    "NOPERM": "its user may not do this",
    "NOREPLICAS": "it has too few replicas to accept writes",
    "NOSCRIPT": "it forgets its scripts",
    "OOM": "its memory is full",
    "READONLY": "it is a read-only replica",
    "TRYAGAIN": "its cluster is moving the keys",
    "UNKILLABLE": "a script blocks it",
    "WRONGPASS": "user name or password are wrong",
    "WRONGTYPE": "a key of ours holds something else",
}
_WORD = re.compile(r"\b(" + "|".join(_MEANINGS) + r")\b")
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (redis.exceptions.BusyLoadingError, "LOADING"),
    (redis.exceptions.AuthenticationError, "WRONGPASS"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.MovedError, "MOVED"),
    (redis.exceptions.AskError, "ASK"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
    (redis.exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (redis.exceptions.NoScriptError, "NOSCRIPT"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.ExecAbortError, "EXECABORT"),
)


# What the parsers of redis-py and hiredis raise besides where an answer is none.
_STUMBLES = (ValueError, TypeError, LookupError, AttributeError, MemoryError, RecursionError)


class Cut(Unavailable):
    """The connection failed; what was asked for may have been done, and another may do it."""


class Late(Cut):
    """No answer came in time."""


def unavailable(error: BaseException) -> Unavailable:
    """Return what is said of an error: its word, and never a text that may hold data."""
    while isinstance(error.__cause__, redis.exceptions.RedisError):
        error = error.__cause__  # redis-py wraps what comes while it connects
    word = next((word for class_, word in _CLASSES if isinstance(error, class_)), None)
    if word in {None, "WRONGPASS"} and (found := _WORD.search(str(error))):
        word = found[1]
    if word is None and "ACL failure in script" in str(error):
        word = "NOPERM"  # Valkey leaves the word out there
    if word == "WRONGPASS" and "required" in str(error):
        word = "NOAUTH"  # redis-py takes the word off
    if word is not None:
        return Unavailable(f"Redis answers {word}: {_MEANINGS[word]}")
    match error:
        case redis.exceptions.ResponseError():
            return Unavailable("Redis answers with an error that syncserver does not know")
        case redis.exceptions.TimeoutError() | TimeoutError():
            return Late("Redis does not answer in time")
        case redis.exceptions.ConnectionError() | OSError():
            return Cut(f"Redis cannot be reached{_reason(error)}")
    return Cut("Redis sends what is no answer")


def _reason(error: BaseException) -> str:
    """Return why a connection failed, in the words of the system, without an address."""
    below = error if isinstance(error, OSError) else error.__context__
    if message := getattr(below, "verify_message", None):
        return f": {message}"  # what is wrong with a certificate
    numbers = re.findall(r"\[Errno (\d+)\]", str(below))  # of the last address that was tried
    return f": {os.strerror(int(numbers[-1]))}" if numbers else ""


class Link:
    """One connection, made when it is first needed and again after each end."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """Return the answers to ``commands``, of which each may be a ResponseError.

        Raises Unavailable, after ``seconds`` at most; the connection has ended then.
        """
        try:
            async with patience(seconds):
                await self._connection.connect()
                packed = self._connection.pack_commands(commands)
                await self._connection.send_packed_command(packed, check_health=False)
                return [await self._answer() for _ in commands]
        except (redis.exceptions.RedisError, OSError) as error:
            await self.end()
            raise unavailable(error) from error
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        """End the connection without waiting for the other side."""
        await self._connection.disconnect(nowait=True)

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response(disconnect_on_error=False)
        except redis.exceptions.ResponseError as refusal:
            return refusal
        except _STUMBLES as error:
            raise redis.exceptions.InvalidResponse("no answer") from error


class Links:
    """The connections of one engine, and what its URL says of keys and times."""

    def __init__(self, url: str) -> None:
        address, options = _split(url)
        self.prefix = f"{{{options.get('prefix', 'syncserver')}}}:"
        self.timeout_seconds = _seconds(options.get("timeout_seconds", "2"))
        secure = {"ssl_check_hostname": True} if address.startswith("rediss:") else {}
        self._pool: Any
        try:
            self._pool = redis.asyncio.ConnectionPool.from_url(
                address,
                protocol=2,
                socket_timeout=None,  # calls have their own
                socket_connect_timeout=self.timeout_seconds,
                **secure,
            )
            self._pool.make_connection()
        except (ValueError, TypeError, redis.exceptions.RedisError):
            raise _refused("it is no address of a Redis") from None
        self._idle: deque[Link] = deque()
        self._away = self._probing = False

    def make(self) -> Link:
        """Return a connection for the caller alone."""
        return Link(self._pool.make_connection())

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to ``commands``, asking once more where the connection fails.

        Commands have to be such that doing them twice is doing them once. While
        Redis is away one call tries, and those beside it are refused at once.
        """
        if not self._away:
            return await self._insistently(commands)
        if self._probing:
            raise Cut("Redis cannot be reached")
        self._probing = True
        try:
            return await self._once(commands)
        finally:
            self._probing = False

    def reached(self) -> None:
        """Hear that Redis answers, on whatever connection."""
        self._away = False

    async def call_all(self, invocations: Sequence[Command]) -> list[Any]:
        """Return the answers of scripts; those that Redis had forgotten are called again."""
        answers = await self.ask(invocations)
        again = [
            number
            for number, answer in enumerate(answers)
            if isinstance(answer, redis.exceptions.NoScriptError)
        ]
        if again:
            loads = [("SCRIPT", "LOAD", script.source) for script in ALL]
            found = await self.ask([*loads, *(invocations[number] for number in again)])
            for number, answer in zip(again, found[len(loads) :], strict=True):
                answers[number] = answer
        if any(isinstance(answer, redis.exceptions.ReadOnlyError) for answer in answers):
            await self._end_idle()  # the address may have another primary by now
        return answers

    async def close(self) -> None:
        """End the connections that nobody uses."""
        await self._end_idle()

    async def _insistently(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return await self._once(commands)
        except Cut:
            await self._end_idle()  # what broke one has likely broken all
        try:
            return await self._once(commands)
        except Cut:
            self._away = True
            raise

    async def _once(self, commands: Sequence[Command]) -> list[Any]:
        link = self._idle.pop() if self._idle else self.make()
        try:
            answers = await link.ask(commands, self.timeout_seconds)
        finally:
            self._idle.append(link)
        self.reached()
        return answers

    async def _end_idle(self) -> None:
        while self._idle:
            await self._idle.pop().end()


def invocation(script: Script, keys: Sequence[str], *arguments: Any) -> Command:
    """Return the command that calls a script."""
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


def _split(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL for redis-py, and the options that are ours; ConfigError on any other."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused("it is no URL") from None
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise _refused("what follows the host is no number of a database")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OWN_OPTIONS and not _OPTION.fullmatch(name):
            known = ", ".join(sorted({"db", "ssl_...", *_OWN_OPTIONS}))
            raise _refused(f"unknown option {name!a}; known: {known}")
    if not _PREFIX.fullmatch(options.get("prefix", "syncserver")):
        raise _refused("prefix: letters, digits, dot, dash and underscore, 64 at most")
    own = {name: value for name, value in options.items() if name in _OWN_OPTIONS}
    theirs = {name: value for name, value in options.items() if name not in own}
    return urlunsplit(parts._replace(query=urlencode(theirs))), own


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_TIMEOUT_SECONDS:
        raise _refused(f"timeout_seconds: more than 0, at most {_MAX_TIMEOUT_SECONDS:g}")
    return seconds


def _refused(what: str) -> ConfigError:
    return ConfigError(f"engine: {what}; write redis://HOST:PORT/NUMBER or unix:///PATH")
