"""From the bytes of a file to plain data: YAML or JSON, whatever the bytes are, at a bounded cost.

Nothing here raises anything but ``ParseError``, or ``OSError`` while reading. YAML is dangerous in four ways, each of
which has a bound that is checked before anything is built: a few lines of aliases stand for gigabytes, nesting
overflows stacks, directives take libyaml quadratic time, and what a tag promises (``!!int ""``) cannot be made. The
dialect is that of kubectl: keys are texts, numbers in base 60 are texts, times stay texts, and what JSON cannot say is
refused.
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

#: Bytes of one file. 10,000 Services with 100,000 endpoints take 20 MiB.
MAX_SIZE: Final = 32 * 2**20
#: Bytes of one YAML file: while one value of it is scanned, nothing else in this process runs (3 MiB in 0.1 s).
MAX_YAML_SIZE: Final = 16 * 2**20
#: Levels of nesting. Objects of the API have a dozen.
MAX_DEPTH: Final = 100
#: Values of one YAML document: each takes some 400 bytes and 5 microseconds.
MAX_VALUES: Final = 500_000
#: Values of one YAML file, in all its documents.
MAX_VALUES_OF_FILE: Final = 2_000_000
#: Values of one JSON file: each takes some 70 bytes.
MAX_JSON_VALUES: Final = 5_000_000
#: Values and characters that the aliases of one YAML document stand for.
MAX_ALIASED: Final = 1_000_000
#: So often may ``%TAG`` stand in a YAML file. libyaml compares such directives with one another, and meanwhile nothing
#: else in this process runs: 20,000 take 0.8 s, and time grows with the square.
MAX_DIRECTIVES: Final = 100

TOO_DEEP: Final = f"nested too deeply: {MAX_DEPTH} levels are read"
_MARK: Final = b"\xef\xbb\xbf"
#: A string, also one without end, or a bracket: matched in linear time whatever the bytes are.
_JSON_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
#: In any encoding of YAML.
_DIRECTIVE: Final = re.compile(rb"%\0?T\0?A\0?G")
_JSON_DEPTHS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}
_INT: Final = "tag:yaml.org,2002:int"
_FLOAT: Final = "tag:yaml.org,2002:float"
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_BINARY: Final = "tag:yaml.org,2002:binary"
_DROPPED: Final = (_INT, _FLOAT, _TIMESTAMP)
#: What is refused as any unknown tag is.
_NOT_JSON: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("set", "omap", "pairs"))
#: Numbers of a length that something can mean, without those in base 60; anything else is text.
_INT_PATTERN: Final = re.compile(
    r"[-+]?(?:0b[01_]{1,64}|0x[0-9a-fA-F_]{1,16}|0[0-7_]{0,24}|[1-9][0-9_]{0,24})\Z", re.ASCII
)
_FLOAT_PATTERN: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]{0,24}\.[0-9_]{0,24}(?:[eE][-+][0-9]{1,3})?|\.[0-9][0-9_]{0,24}(?:[eE][-+][0-9]{1,3})?"
    r"|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z",
    re.ASCII,
)


class ParseError(Exception):
    """A file is not YAML or JSON, or beyond a bound; ``line`` counts from 1 and is 0 if unknown."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


class Parsed(NamedTuple):
    """The documents of a file, and the keys that come twice in one of their mappings; the last one counts."""

    documents: list[Any]
    duplicates: list[str]


def read_file(path: Path, limit: int = MAX_SIZE) -> bytes:
    """Return the content of a regular file; never waits for a pipe, never reads more than ``limit`` bytes.

    Raises:
        OSError: it cannot be read, is no regular file (EINVAL), or is larger than ``limit`` (EFBIG). ``strerror`` says
            what is wrong in words.

    """
    # Opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"it is {_type_of(status.st_mode)}, not a file")
        content = bytearray()
        # A file in /proc has no size.
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
    """Return the documents of a file.

    Raises:
        ParseError: it cannot be read, or is beyond a bound; with the line where known.

    """
    if not is_json:
        return parse_yaml(content).documents
    if sum(map(content.count, (b",", b"{", b"["))) > MAX_JSON_VALUES:
        raise ParseError(f"more than {MAX_JSON_VALUES:,} values in one file: use several")
    return [_load_list(content) or _load_json(content)]


def parse_yaml(content: bytes | str) -> Parsed:
    """Parse YAML, of which JSON without tabs is a part. Empty documents are ``None``.

    Raises:
        ParseError: it is no YAML, or beyond a bound; with the line where known.

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
        if "maximum nesting depth" in reason:  # libyaml's own bound, as it looks ahead
            raise ParseError(TOO_DEEP) from None
        raise ParseError(quote(reason), mark.line + 1 if mark else 0) from None
    except Exception as error:  # noqa: BLE001  whatever a loader raises means that this cannot be read
        raise ParseError(quote(" ".join(str(error).split()) or type(error).__name__)) from None
    return Parsed(documents, loader.duplicates)


def parse_json(text: str) -> Parsed:
    """Parse one JSON document.

    Raises:
        ParseError: it is no JSON, or beyond a bound; with the line where known.

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
    """Return a List, ``None`` if it is another document or has something in it that needs a closer look.

    Its items are decoded one by one: the reader of ``json`` would keep Python from the event loop for all of them.
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
    """Return a number that JSON can say. Raises ValueError if it is none."""
    if not math.isfinite(found := float(number)):
        raise ValueError(f"{quote(str(number), 40)} is no number")
    return found


def _check_depth(text: str) -> None:
    """Refuse what is nested too deeply; how much an interpreter bears depends on its version."""
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        depth += _JSON_DEPTHS.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise ParseError(TOO_DEEP)


class _Loader(SafeLoader):
    """Builds what JSON can say; notes keys that come twice in one mapping."""

    yaml_constructors = {  # noqa: RUF012  a class attribute is how PyYAML takes it
        tag: construct for tag, construct in SafeLoader.yaml_constructors.items() if tag not in _NOT_JSON
    }
    yaml_implicit_resolvers = {  # noqa: RUF012  a class attribute is how PyYAML takes it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
        for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; what its tag promises may be impossible (``!!bool maybe``, ``!!int ""``)."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # noqa: BLE001  PyYAML lets through what it runs into: KeyError, IndexError, AttributeError
            kind = str(node.tag).rpartition(":")[2]
            reason = f"{quote(str(node.value), 40)!r} is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; its keys are texts, as kubectl makes them of numbers too."""
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
        """Build an integer; one in base 60 takes quadratic time."""
        _refuse_base_60(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Build a number; one in base 60 takes quadratic time."""
        _refuse_base_60(node)
        return _finite(super().construct_yaml_float(node))

    def construct_time(self, node: yaml.ScalarNode) -> str:
        """Build the text of a time that is one."""
        super().construct_yaml_timestamp(node)
        return str(node.value)

    def construct_bytes(self, node: yaml.ScalarNode) -> str:
        """Build a text, as kubectl does."""
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
    """Counts what a YAML document stands for while its events go by, before anything is built."""

    def __init__(self) -> None:
        self._of_file = 0
        self._anchors: dict[str, tuple[int, int] | None] = {}
        #: Of each sequence and mapping that is open: anchor, size so far, height so far.
        self._open: list[tuple[str | None, int, int]] = []
        self._values = self._aliased = 0

    def take(self, event: yaml.Event) -> None:
        """Take in one event. Raises ParseError beyond a bound."""
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
        """Count a value: its size in values and characters, its height in levels."""
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
            return  # which its loader words better
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
