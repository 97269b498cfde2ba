"""The HTTP session to the API server: its address, the agent's credentials, and TLS.

Invariant: a request uses the last configuration that could be read. If reading it again fails, the previous one stays
in use. A new session replaces the old one only when the server, the proxy, the certificates or the TLS settings change.

``kubernetes_asyncio`` reads the kubeconfig or the pod's service account (see ``configuration``). It is imported only
when there is a server to connect to. This module sends the requests itself: the decoder gets the raw bytes as they
arrive, and no model class is involved. Credentials older than a minute are read again, because service account tokens
rotate. Those of an exec plugin are kept until a minute before they expire. ``reauthenticate`` reads them at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp
import structlog
import yaml

from ipvs_proxy import __version__
from ipvs_proxy.kube.configuration import import_loader
from ipvs_proxy.kube.peers import Peers
from ipvs_proxy.kube.plugin import own_plugins
from ipvs_proxy.kube.responses import Reply, Response, read

log = structlog.get_logger(__name__)

#: Age of the credentials, in seconds, at which they are read again before a request.
CREDENTIALS_AGE = 60.0
#: Timeout for establishing a connection, in seconds.
CONNECT_TIMEOUT = 10.0
#: Timeout of a credential plugin, in seconds. Requests wait for the plugin.
PLUGIN_TIMEOUT = 30.0
#: Total timeout of a write, in seconds.
WRITE_TIMEOUT = 30.0
#: Media types of a response. The first also asks to leave managedFields out, which servers from 1.38 on do (KEP-5958,
#: gate ManagedFieldsOptOut). Servers before it ignore the parameter; others may take the second type instead.
JSON = "application/json"
LEAN_JSON = f"{JSON};drop=metadata.managedFields, {JSON};q=0.9"
#: Statuses with which something in between might refuse the parameter.
_NOT_ACCEPTABLE = frozenset(
    (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
)
#: Size of aiohttp's read buffer, in bytes.
READ_BUFFER = 1 << 20
#: Bytes kept of the response to a write, for use in a message.
MESSAGE_SIZE = 2048

# ConnectError reports each failure once. Without this handler, the library would log lines of its own.
logging.getLogger("kubernetes_asyncio").addHandler(logging.NullHandler())


class ConnectError(Exception):
    """The configuration of the API client cannot be used. The message is a single line."""


class _Access(NamedTuple):
    """The result of reading the configuration once."""

    host: str
    authorization: str | None
    tls: ssl.SSLContext | None
    server_name: str | None
    proxy: str | None
    #: Digest of everything a session is made with. If it changes, a new session is needed.
    fingerprint: bytes
    #: Seconds since the epoch. Reading the configuration again before then would only run the plugin again.
    good_until: float


class Client:
    """Sends requests to one API server. Created by ``connect``. ``peers`` tracks the remote ends of its connections."""

    def __init__(self, access: _Access, *, kubeconfig: str, master: str) -> None:
        self.peers = Peers()
        self._kubeconfig = kubeconfig
        self._master = master
        self._access = access
        self._read_at = time.monotonic()
        self._session = _session(access, self.peers)
        self._lock = asyncio.Lock()
        #: Becomes false for good when a request has failed with the media type and succeeded without it.
        self._is_lean = True
        #: The answers that are still coming.
        self._answers: set[aiohttp.ClientResponse] = set()

    @asynccontextmanager
    async def get(self, path: str, query: Mapping[str, str], *, inactivity: float) -> AsyncIterator[Response]:
        """Send a GET request and yield the response, whatever its status, as soon as its headers have arrived.

        The server is asked to leave managedFields out. A request that is refused, maybe for that, is sent once more
        without.

        Args:
            path: absolute path, for example ``/api/v1/services``.
            query: query parameters, not quoted.
            inactivity: seconds without a byte after which reading fails with ``TimeoutError``.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: the server could not be reached, or the connection broke.

        """
        await self._refresh()
        if self._is_lean:
            async with self._get(path, query, inactivity, LEAN_JSON) as response:
                if response.status not in _NOT_ACCEPTABLE:
                    yield Response(response, inactivity=inactivity)
                    return
                refusal = response.status
        async with self._get(path, query, inactivity, JSON) as response:
            if self._is_lean and response.status == HTTPStatus.OK:
                self._is_lean = False
                log.info("managed_fields_are_sent", reason=f"HTTP {refusal} for Accept: {LEAN_JSON}")
            yield Response(response, inactivity=inactivity)

    @asynccontextmanager
    async def _get(
        self, path: str, query: Mapping[str, str], inactivity: float, accept: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        access = self._access
        async with self._session.get(
            access.host + path,
            params=dict(query),
            headers=_headers(access) | {"Accept": accept},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=inactivity),
            proxy=access.proxy,
            server_hostname=access.server_name,
            allow_redirects=False,
        ) as response:
            self._answers.add(response)
            try:
                yield response
            finally:
                self._answers.discard(response)

    async def send(self, method: Literal["POST", "PATCH"], path: str, body: bytes) -> Reply:
        """Create an object, or change fields of one with a merge patch (RFC 7386).

        If the server refuses the credentials (401), they are read again and the request is repeated once.

        Args:
            method: ``POST`` to create, ``PATCH`` to change.
            path: absolute path, already quoted.
            body: the object or the patch in JSON.

        Returns:
            The last response, whatever its status.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: the server could not be reached, or did not respond in time.
            ConnectError: the server refused the credentials, and they cannot be read again.

        """
        await self._refresh()
        reply = await self._send(method, path, body)
        if reply.status == HTTPStatus.UNAUTHORIZED:
            await self.reauthenticate()
            reply = await self._send(method, path, body)
        return reply

    async def _send(self, method: str, path: str, body: bytes) -> Reply:
        access = self._access
        content_type = "application/json" if method == "POST" else "application/merge-patch+json"
        async with self._session.request(
            method,
            access.host + path,
            data=body,
            headers=_headers(access) | {"Content-Type": content_type},
            timeout=aiohttp.ClientTimeout(total=WRITE_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
            proxy=access.proxy,
            server_hostname=access.server_name,
            allow_redirects=False,
        ) as response:
            return Reply(
                response.status, (await read(response.content.iter_any(), MESSAGE_SIZE)).decode(errors="replace")
            )

    async def reauthenticate(self) -> None:
        """Read the configuration again after the server refused the credentials.

        If the certificates or other settings of the session changed, a new session replaces it. This ends the requests
        in progress.

        Raises:
            ConnectError: the configuration cannot be read. The previous one stays in use.

        """
        asked = time.monotonic()
        async with self._lock:
            if self._read_at <= asked:  # otherwise another request has just done so
                await self._read()

    async def close(self) -> None:
        """End all requests and close the connections."""
        await self._session.close()

    async def _refresh(self) -> None:
        async with self._lock:
            if time.monotonic() - self._read_at < CREDENTIALS_AGE or time.time() < self._access.good_until:
                return
            try:
                await self._read()
            except ConnectError as error:
                log.warning("credentials_not_refreshed", error=str(error))
                self._read_at = time.monotonic()

    async def _read(self) -> None:
        access = await _load(self._kubeconfig, self._master)
        self._read_at = time.monotonic()
        changed = access.fingerprint != self._access.fingerprint
        self._access = access
        if changed:
            old, self._session = self._session, _session(access, self.peers)
            log.info("api_session_renewed", server=access.host)
            # A connection that is closed from this side tells nobody who reads from it.
            for response in self._answers:
                response.content.set_exception(aiohttp.ClientConnectionError("the API session was renewed"))
            # Closing the session itself would make requests that are being sent fail with an AssertionError.
            if old.connector is not None:
                await old.connector.close()


async def connect(*, kubeconfig: str, master: str) -> Client:
    """Return a client of the API server. No request is sent yet.

    Args:
        kubeconfig: path of a kubeconfig file; "" for none.
        master: URL of the API server, which overrides the one in the kubeconfig; "" for none. If both are empty, the
            pod's service account is used.

    Raises:
        ConnectError: the configuration cannot be used. The message says what is wrong, where, and what to do.

    """
    return Client(await _load(kubeconfig, master), kubeconfig=kubeconfig, master=master)


def _headers(access: _Access) -> dict[str, str]:
    headers = {"Accept": JSON, "Accept-Encoding": "gzip", "User-Agent": f"ipvs-proxy/{__version__}"}
    if access.authorization:
        headers["Authorization"] = access.authorization
    return headers


def _session(access: _Access, peers: Peers) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=access.tls or True, socket_factory=peers.open)
    return aiohttp.ClientSession(connector=connector, trust_env=True, read_bufsize=READ_BUFFER)


async def _load(kubeconfig: str, master: str) -> _Access:
    """Read the configuration once; see ``connect`` for arguments and errors."""
    if master and not master.startswith(("http://", "https://")):
        raise ConnectError(f"--master {master} is not a URL; give it as https://HOST:PORT")
    source = f"kubeconfig {kubeconfig}" if kubeconfig else f"--master {master}" if master else "service account"
    if kubeconfig:
        _check_kubeconfig(Path(kubeconfig))
    # The library writes certificates and keys embedded in the kubeconfig to files. They are deleted at the end.
    scratch = tempfile.mkdtemp(prefix="ipvs-proxy-")
    try:
        async with asyncio.timeout(PLUGIN_TIMEOUT):
            configuration, good_until = await _configure(kubeconfig, master, scratch)
        return await _access(configuration, good_until)
    except ConnectError:
        raise
    except TimeoutError:
        raise ConnectError(
            f"{source}: its credential plugin did not end in {PLUGIN_TIMEOUT:g} s; run it by hand to see why"
        ) from None
    except (AssertionError, TypeError):
        raise ConnectError(
            f"{source}: it is malformed, or the user of its current-context is not among its users; mend it"
        ) from None
    except Exception as error:  # noqa: BLE001  plugins and malformed files can make the library raise anything
        raise ConnectError(f"{source}: {_one_line(error)}; mend it, or give another --kubeconfig") from None
    finally:
        _forget_files(scratch)


async def _configure(kubeconfig: str, master: str, scratch: str) -> tuple[Any, float]:
    library = import_loader()
    own_plugins(library)
    configuration = library.kube_config.Configuration(host="")
    good_until = 0.0
    if kubeconfig:
        loader = await library.load_kube_config(
            config_file=kubeconfig, client_configuration=configuration, persist_config=False, temp_file_path=scratch
        )
        good_until = _plugin_good_until(loader)
    elif not master:
        try:
            library.load_incluster_config(client_configuration=configuration, try_refresh_token=False)
        except (library.ConfigException, OSError) as error:
            raise ConnectError(
                f"no API server: no service account of a pod ({_one_line(error)}); "
                "give --kubeconfig FILE, or --manifests DIRECTORY to work without a server"
            ) from None
    if master:
        configuration.host = master
    if not configuration.host:
        raise ConnectError(f"kubeconfig {kubeconfig}: its cluster has no server; add it, or give --master URL")
    return configuration, good_until


def _plugin_good_until(loader: Any) -> float:
    """Return the time until which the credentials of an exec plugin are used, in seconds since the epoch.

    This is a minute before they expire. If they have no expiry it is infinity, and they are used until the server
    refuses them. Without an exec plugin it is 0.
    """
    if "exec" not in (loader._user or ()):  # noqa: SLF001  the loader does not expose it elsewhere
        return 0.0
    expiry = getattr(loader, "exec_plugin_expiry", None)
    return expiry.timestamp() - CREDENTIALS_AGE if expiry else float("inf")


async def _access(configuration: Any, good_until: float) -> _Access:
    host = configuration.host.rstrip("/")
    authorization = (await configuration.auth_settings()).get("BearerToken", {}).get("value")
    tls = _tls(configuration) if host.startswith("https://") else None
    return _Access(
        host=host,
        authorization=authorization.strip() if authorization else None,
        tls=tls,
        server_name=configuration.tls_server_name or None,
        proxy=configuration.proxy or None,
        fingerprint=_fingerprint(configuration),
        good_until=good_until,
    )


def _fingerprint(configuration: Any) -> bytes:
    """Return a SHA-256 digest of everything a session is made with. Keys are not kept."""
    settings = (configuration.host, configuration.verify_ssl, configuration.tls_server_name, configuration.proxy)
    digest = hashlib.sha256(repr(settings).encode())
    for name in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file):
        digest.update(hashlib.sha256(Path(name).read_bytes() if name else b"").digest())
    return digest.digest()


def _tls(configuration: Any) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        # Python 3.13 requires extensions that many cluster CAs lack. No other Kubernetes client requires them.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    except ssl.SSLError as error:
        raise ValueError(f"a certificate or key is not valid PEM ({_one_line(error)})") from None
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_kubeconfig(path: Path) -> None:
    """Raise ConnectError if the file itself is unusable. The library's own messages are less specific."""
    advice = "give a readable file with --kubeconfig"
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConnectError(f"kubeconfig {path}: {error.strerror}; {advice}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or _one_line(error)
        raise ConnectError(f"kubeconfig {path}{line}: not YAML: {reason}; mend it") from None
    if not isinstance(content, dict) or not content.get("current-context"):
        raise ConnectError(f"kubeconfig {path}: it has no current-context; set it with kubectl config use-context")


def _forget_files(scratch: str) -> None:
    import_loader().kube_config._temp_files.clear()  # noqa: SLF001  it would return the names of deleted files
    shutil.rmtree(scratch, ignore_errors=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
