"""Parses the bytes of a YAML or JSON file to plain data.

Invariants: the cost is bounded, whatever the bytes are. Nothing but ``ParseError`` is raised, and ``OSError`` while
reading.

YAML is dangerous in four ways: a few lines of aliases can expand to gigabytes, nesting overflows stacks, directives
take libyaml quadratic time, and a tag can ask for a value that cannot be built (``!!int ""``). The first three have
bounds that are checked before anything is built; the last one becomes a ``ParseError``. The dialect is kubectl's: keys
are strings, numbers in base 60 are strings, timestamps stay strings, and what JSON cannot express is refused.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from ipvs_proxy.kube.texts import quote

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

#: Maximum size of a file in bytes. 10,000 Services with 100,000 endpoints take 20 MiB.
MAX_SIZE: Final = 32 * 2**20
#: Maximum size of a YAML file in bytes. While a single value is scanned, nothing else in this process runs (3 MiB take
#: 0.1 s).
MAX_YAML_SIZE: Final = 16 * 2**20
#: Maximum levels of nesting. API objects have about a dozen.
MAX_DEPTH: Final = 100
#: Maximum number of values in one YAML document. Each takes about 400 bytes and 5 microseconds.
MAX_VALUES: Final = 500_000
#: Maximum number of values in one YAML file, in all its documents.
MAX_VALUES_OF_FILE: Final = 2_000_000
#: Maximum number of values in one JSON file. Each takes about 70 bytes.
MAX_JSON_VALUES: Final = 5_000_000
#: Maximum number of values and characters that the aliases of one YAML document expand to.
MAX_ALIASED: Final = 1_000_000
#: Maximum number of ``%TAG`` directives in a YAML file. libyaml compares them with one another, and meanwhile nothing
#: else in this process runs: 20,000 take 0.8 s, and the time grows with the square.
MAX_DIRECTIVES: Final = 100

TOO_DEEP: Final = f"nested too deeply: {MAX_DEPTH} levels are read"
#: The byte order mark of UTF-8.
_MARK: Final = b"\xef\xbb\xbf"
#: Matches a string, even an unterminated one, or a bracket. Takes linear time, whatever the bytes are.
_JSON_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
#: ``%TAG`` in any encoding that YAML allows.
_DIRECTIVE: Final = re.compile(rb"%\0?T\0?A\0?G")
_JSON_DEPTHS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}
_INT: Final = "tag:yaml.org,2002:int"
_FLOAT: Final = "tag:yaml.org,2002:float"
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_BINARY: Final = "tag:yaml.org,2002:binary"
#: A plain "=" has a tag of its own, for which PyYAML has no constructor: it is text.
_VALUE: Final = "tag:yaml.org,2002:value"
_DROPPED: Final = (_INT, _FLOAT, _TIMESTAMP, _VALUE)
#: Tags that are refused like any unknown tag.
_NOT_JSON: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("set", "omap", "pairs"))
#: Numbers of a plausible length, without those in base 60. Anything else is a string.
_INT_PATTERN: Final = re.compile(
    r"[-+]?(?:0b[01_]{1,64}|0x[0-9a-fA-F_]{1,16}|0[0-7_]{0,24}|[1-9][0-9_]{0,24})\Z", re.ASCII
)
_FLOAT_PATTERN: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]{0,24}\.[0-9_]{0,24}(?:[eE][-+][0-9]{1,3})?|\.[0-9][0-9_]{0,24}(?:[eE][-+][0-9]{1,3})?"
    r"|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z",
    re.ASCII,
)


class ParseError(Exception):
    """A file is not valid YAML or JSON, or exceeds a bound. ``line`` counts from 1 and is 0 if unknown."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


class Parsed(NamedTuple):
    """The documents of a file, and the keys that occur twice in one of their mappings. The last occurrence counts."""

    documents: list[Any]
    duplicates: list[str]


def read_file(path: Path, limit: int = MAX_SIZE) -> bytes:
    """Return the content of a regular file, at most ``limit`` bytes. Never waits for a pipe.

    Raises:
        OSError: the file cannot be read, is not a regular file (EINVAL), or is larger than ``limit`` (EFBIG).
            ``strerror`` describes the error in words.

    """
    # Opening a pipe that has no writer would block for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"it is {_type_of(status.st_mode)}, not a file")
        content = bytearray()
        # Files in /proc report no size.
        while max(len(content), status.st_size) <= limit and (piece := os.read(descriptor, 2**20)):
            content += piece
    finally:
        os.close(descriptor)
    if max(len(content), status.st_size) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB")
    return bytes(content)


def _type_of(mode: int) -> str:
    for is_type, name in ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")):
        if is_type(mode):
            return name
    return "a device"


def parse(content: bytes, *, is_json: bool) -> list[Any]:
    """Return the documents of a file as plain data. An empty YAML document is ``None``.

    Raises:
        ParseError: the content is not valid or exceeds a bound. The error has the line if it is known.

    """
    if not is_json:
        return parse_yaml(content).documents
    if sum(map(content.count, (b",", b"{", b"["))) > MAX_JSON_VALUES:
        raise ParseError(f"more than {MAX_JSON_VALUES:,} values in one file: use several")
    return [_load_list(content) or _load_json(content)]


def parse_yaml(content: bytes | str) -> Parsed:
    """Parse YAML, which includes JSON without tabs. Empty documents are ``None``.

    Raises:
        ParseError: the content is not valid YAML or exceeds a bound. The error has the line if it is known.

    """
    if len(content) > MAX_YAML_SIZE:
        raise ParseError(f"YAML of more than {MAX_YAML_SIZE >> 20} MiB: use several files, or JSON")
    raw = content if isinstance(content, bytes) else content.encode(errors="replace")
    if next(islice(_DIRECTIVE.finditer(raw), MAX_DIRECTIVES, None), None) is not None:
        raise ParseError(f"more than {MAX_DIRECTIVES} times %TAG")
    try:
        _check_yaml(content)
        loader = _Loader(content)
        documents = []
        while loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
    except ParseError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "not YAML"
        if "maximum nesting depth" in reason:  # libyaml has a bound of its own, and reads ahead
            raise ParseError(TOO_DEEP) from None
        raise ParseError(quote(reason), mark.line + 1 if mark else 0) from None
    except Exception as error:  # noqa: BLE001  whatever a loader raises, the content cannot be read
        raise ParseError(quote(" ".join(str(error).split()) or type(error).__name__)) from None
    return Parsed(documents, loader.duplicates)


def parse_json(text: str) -> Parsed:
    """Parse one JSON document.

    Raises:
        ParseError: the text is not valid JSON or exceeds a bound. The error has the line if it is known.

    """
    duplicates: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            duplicates.extend(_twice([key for key, _ in pairs]))
        return found

    return Parsed([_load_json(text.encode("utf-8", "surrogatepass"), mapping)], duplicates)


class _List(msgspec.Struct, rename="camel"):
    """A List as ``kubectl get -o json`` writes it."""

    kind: str
    items: list[msgspec.Raw]
    api_version: str | None = None


_LIST: Final = msgspec.json.Decoder(_List)


def _load_list(content: bytes) -> dict[str, Any] | None:
    """Return a List, or ``None`` if the content is another document or needs a closer look.

    The items are decoded one by one. The ``json`` module would keep the event loop from running until all are decoded.
    """
    try:
        found = _LIST.decode(content)
        items = [msgspec.json.decode(item) for item in found.items]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return {"apiVersion": found.api_version, "kind": found.kind, "items": items}


def _load_json(content: bytes, hook: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None) -> Any:
    try:
        text = content.removeprefix(_MARK).decode()
        _check_depth(text)
        return json.loads(text, object_pairs_hook=hook, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ParseError(TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ParseError(error.msg, error.lineno) from None
    except ValueError as error:
        raise ParseError(quote(" ".join(str(error).split()))) from None


def _finite(number: str | float) -> float:
    """Return a number, or raise ValueError if JSON cannot express it."""
    if not math.isfinite(found := float(number)):
        raise ValueError(f"{quote(str(number), 40)} is no number")
    return found


def _check_depth(text: str) -> None:
    """Raise ParseError if a text is nested too deeply. How deep an interpreter can go depends on its version."""
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        depth += _JSON_DEPTHS.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise ParseError(TOO_DEEP)


class _Loader(SafeLoader):
    """Builds values that JSON can express, and records keys that occur twice in one mapping."""

    yaml_constructors = {  # noqa: RUF012  PyYAML expects a class attribute
        tag: construct for tag, construct in SafeLoader.yaml_constructors.items() if tag not in _NOT_JSON
    }
    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML expects a class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
        for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value, or raise ConstructorError if its tag cannot be satisfied (``!!bool maybe``, ``!!int ""``)."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # noqa: BLE001  PyYAML does not catch its own KeyError, IndexError and AttributeError
            kind = str(node.tag).rpartition(":")[2]
            reason = f"{quote(str(node.value), 40)!r} is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping. Its keys are strings: kubectl converts numbers to strings, too."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "wanted a mapping here", node.start_mark)
        self.duplicates += _twice([str(key.value) for key, _ in node.value])
        self.flatten_mapping(node)
        found = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            found[key.value] = self.construct_object(value, deep=deep)
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Build an integer. Refuses base 60, which takes quadratic time."""
        _refuse_base_60(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Build a finite number. Refuses base 60, which takes quadratic time."""
        _refuse_base_60(node)
        return _finite(super().construct_yaml_float(node))

    def construct_time(self, node: yaml.ScalarNode) -> str:
        """Return a timestamp as text, after checking that it is one."""
        super().construct_yaml_timestamp(node)
        return str(node.value)

    def construct_bytes(self, node: yaml.ScalarNode) -> str:
        """Decode a binary value to text, as kubectl does."""
        return super().construct_yaml_binary(node).decode()


_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
_Loader.add_constructor(_FLOAT, _Loader.construct_yaml_float)
_Loader.add_constructor(_TIMESTAMP, _Loader.construct_time)
_Loader.add_constructor(_BINARY, _Loader.construct_bytes)
_Loader.add_implicit_resolver(_INT, _INT_PATTERN, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT, _FLOAT_PATTERN, list("-+0123456789."))


def _refuse_base_60(node: yaml.ScalarNode) -> None:
    if ":" in str(node.value):
        raise yaml.constructor.ConstructorError(None, None, "numbers in base 60 are not read", node.start_mark)


class _Census:
    """Counts the values and characters of a YAML document from its parse events, before anything is built.

    An alias counts as what it expands to.
    """

    def __init__(self) -> None:
        self._of_file = 0
        self._anchors: dict[str, tuple[int, int] | None] = {}
        #: Each open sequence and mapping: anchor, size so far, height so far.
        self._open: list[tuple[str | None, int, int]] = []
        self._values = self._aliased = 0

    def take(self, event: yaml.Event) -> None:
        """Count one event. Raises ParseError if a bound is exceeded."""
        match event:
            case yaml.DocumentStartEvent():
                self._anchors, self._open = {}, []
                self._values = self._aliased = 0
            case yaml.ScalarEvent():
                self._add(event.anchor, 1 + len(event.value), 1)
            case yaml.AliasEvent():
                self._add_alias(str(event.anchor))
            case yaml.CollectionStartEvent():
                self._open.append((event.anchor, 1, 1))
                if event.anchor is not None:
                    self._anchors[event.anchor] = None
            case yaml.CollectionEndEvent():
                self._add(*self._open.pop())
        if len(self._open) > MAX_DEPTH:
            raise ParseError(TOO_DEEP)

    def _add(self, anchor: str | None, size: int, height: int) -> None:
        """Count a value. ``size`` is in values and characters, ``height`` in levels of nesting."""
        self._values += 1
        self._of_file += 1
        if self._values > MAX_VALUES:
            raise ParseError(f"more than {MAX_VALUES:,} values in one document: use several, or JSON")
        if self._of_file > MAX_VALUES_OF_FILE:
            raise ParseError(f"more than {MAX_VALUES_OF_FILE:,} values in one file: use several, or JSON")
        if anchor is not None:
            self._anchors[anchor] = size, height
        self._grow(size, height)

    def _add_alias(self, anchor: str) -> None:
        if anchor not in self._anchors:
            return  # the loader has a better message for an unknown anchor
        found = self._anchors[anchor]
        if found is None:
            raise ParseError(f"*{anchor} stands for something that contains it")
        size, height = found
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise ParseError(f"its aliases stand for more than {MAX_ALIASED:,} values and characters")
        if len(self._open) + height > MAX_DEPTH:
            raise ParseError(TOO_DEEP)
        self._grow(size, height)

    def _grow(self, size: int, height: int) -> None:
        if self._open:
            anchor, size_so_far, height_so_far = self._open[-1]
            self._open[-1] = anchor, size_so_far + size, max(height_so_far, height + 1)


def _check_yaml(content: bytes | str) -> None:
    census = _Census()
    for event in yaml.parse(content, SafeLoader):
        census.take(event)


def _twice(keys: list[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1] if len(set(keys)) < len(keys) else []
