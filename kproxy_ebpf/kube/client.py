"""The connection to the API server: kubernetes_asyncio's ApiClient, imported without its 700 models, and credentials
that are read again when their files change.

Every request looks at the files first (a few stat calls; requests are rare, since a watch lasts minutes). A new token
is used by the next request; a new CA, client certificate or server begins a new session. The old one retires: requests
and watches that have begun with it end by themselves (after ten minutes at most), and then it is closed. A 401 reads
everything again, which also runs an exec plugin anew.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import aiohttp
import structlog
import yaml

from kproxy_ebpf import __version__
from kproxy_ebpf.errors import ClusterError

USER_AGENT = f"kproxy-ebpf/{__version__}"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_SECONDS = 10.0
LOAD_SECONDS = 30.0
_HEAVY_PACKAGES = ("kubernetes_asyncio", "kubernetes_asyncio.client", "kubernetes_asyncio.client.models")

log = structlog.get_logger(__name__)

Query = Sequence[tuple[str, str]]


class Credentials(NamedTuple):
    """What was read: the library's Configuration, and the files that it came from."""

    configuration: Any
    files: tuple[Path, ...]


class Client:
    """Requests to one API server. Make one with `from_kubeconfig` or `in_cluster`; close it with `aclose`."""

    def __init__(self, load: Callable[[], Awaitable[Credentials]]) -> None:
        self._load = load
        self._session: _Session | None = None
        self._retired: list[_Session] = []
        self._files: tuple[Path, ...] = ()
        self._seen: tuple[object, ...] = ()
        self._endpoint: tuple[object, ...] = ()
        self._lock = asyncio.Lock()

    @classmethod
    async def from_kubeconfig(cls, path: Path) -> Client:
        """Raises ClusterError when the file can't be used."""
        client = cls(lambda: _read_kubeconfig(path))
        await client._refresh(force=True)
        return client

    @classmethod
    async def in_cluster(cls, folder: Path = SERVICE_ACCOUNT) -> Client:
        """With the ServiceAccount that the kubelet mounted at `folder`. Raises ClusterError outside of a pod."""
        client = cls(lambda: _read_service_account(folder))
        await client._refresh(force=True)
        return client

    async def request(
        self,
        method: str,
        path: str,
        query: Query = (),
        *,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """The response, its body unread: the caller closes it, and bounds the wait for anything but the connection.

        Raises aiohttp.ClientError, TimeoutError, OSError, and ClusterError for credentials that became unreadable.
        """
        session = await self._refresh()
        response = await session.request(method, path, query, body, content_type)
        if response.status == 401:
            try:
                await self._refresh(force=True)
            except BaseException:
                response.close()
                raise
        return response

    async def aclose(self) -> None:
        for session in [*self._retired, *([self._session] if self._session else [])]:
            await session.aclose()

    async def _refresh(self, *, force: bool = False) -> _Session:
        """The session for the next request. Raises ClusterError."""
        await self._close_idle()
        if self._session is not None and not force and _signature(self._files) == self._seen:
            return self._session
        async with self._lock:
            try:
                async with asyncio.timeout(LOAD_SECONDS):
                    credentials = await self._load()
            except TimeoutError:
                raise ClusterError(
                    f"the credentials for the API server can't be had within {LOAD_SECONDS:g} s: check the command that"
                    " the kubeconfig names under exec"
                ) from None
            seen = _signature(credentials.files)
            session = self._use(credentials.configuration)
            self._files, self._seen = credentials.files, seen
            return session

    async def _close_idle(self) -> None:
        idle = [session for session in self._retired if session.is_idle]
        self._retired = [session for session in self._retired if session not in idle]
        for session in idle:
            await session.aclose()

    def _use(self, configuration: Any) -> _Session:
        token = configuration.api_key.get("BearerToken")
        if token:  # files end in a newline, which no header may hold
            configuration.api_key["BearerToken"] = token.strip()
        endpoint = _endpoint_of(configuration)
        if self._session is not None and endpoint == self._endpoint:
            self._session.api.configuration.api_key = configuration.api_key
            return self._session
        try:
            session = _Session(configuration)
        except OSError as error:  # ssl.SSLError is one
            raise ClusterError(f"the API server's CA or the client certificate can't be used: {error}") from error
        if self._session is not None:
            log.info("connections to the API server renewed", server=configuration.host)
            self._retired.append(self._session)
        self._session, self._endpoint = session, endpoint
        return session


class _Session:
    """The connections that were made with one set of credentials, the token apart."""

    def __init__(self, configuration: Any) -> None:
        self.api: Any = _library().ApiClient(configuration)
        self.api.user_agent = USER_AGENT
        self._preparing = 0
        self._responses: WeakSet[aiohttp.ClientResponse] = WeakSet()

    @property
    def is_idle(self) -> bool:
        """True while no request is on its way and no answer is being read."""
        return not self._preparing and all(response.closed for response in self._responses)

    async def request(
        self, method: str, path: str, query: Query, body: dict[str, Any] | None, content_type: str
    ) -> aiohttp.ClientResponse:
        """See Client.request."""
        self._preparing += 1
        try:
            response: aiohttp.ClientResponse = await self.api.call_api(
                path,
                method,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            )
            self._responses.add(response)
            return response
        finally:
            self._preparing -= 1

    async def aclose(self) -> None:
        await self.api.close()


def _endpoint_of(configuration: Any) -> tuple[object, ...]:
    """All that makes a new connection necessary: everything but the token."""
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return (
        configuration.host,
        configuration.verify_ssl,
        configuration.tls_server_name,
        configuration.proxy,
        *files,
        *_signature(tuple(Path(file) for file in files if file)),
    )


def _signature(files: tuple[Path, ...]) -> tuple[object, ...]:
    """Changes whenever one of the files is written or replaced; the kubelet swaps a symlink, so stat follows it."""
    return tuple(_file_signature(file) for file in files)


def _file_signature(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


async def _read_service_account(folder: Path) -> Credentials:
    library = _library()
    token, ca = folder / "token", folder / "ca.crt"
    configuration = library.Configuration()
    try:
        library.InClusterConfigLoader(str(token), str(ca), try_refresh_token=False).load_and_set(configuration)
    except (library.ConfigException, OSError, ValueError) as error:
        raise ClusterError(
            f"no API server can be reached from in here ({str(error).rstrip('.')}): run in a pod with a ServiceAccount,"
            " or give --kubeconfig FILE or --manifests DIR"
        ) from error
    return Credentials(configuration, (token, ca))


async def _read_kubeconfig(path: Path) -> Credentials:
    library = _library()
    configuration = library.Configuration()
    try:
        token_files = _token_files(path)
        await library.load_kube_config(str(path), client_configuration=configuration, persist_config=False)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except yaml.YAMLError as error:
        raise _unusable(path, "it is not YAML") from error
    except library.ConfigException as error:
        raise _unusable(path, str(error)) from error
    except (TypeError, KeyError, AttributeError, ValueError, AssertionError) as error:
        # the library's loader trusts the file's shape
        raise _unusable(path, "it is not a kubeconfig with a current-context, a cluster and a user") from error
    named = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return Credentials(configuration, (path, *token_files, *(Path(file) for file in named if file)))


def _unusable(path: Path, why: str) -> ClusterError:
    return ClusterError(f"kubeconfig {path} can't be used ({why.rstrip('.')}): check the file given with --kubeconfig")


def _token_files(kubeconfig: Path) -> tuple[Path, ...]:
    """The token files that a kubeconfig names; relative names are relative to it."""
    content = yaml.safe_load(kubeconfig.read_text())
    users = (entry.get("user") or {} for entry in content.get("users") or ())
    return tuple(kubeconfig.parent / user["tokenFile"] for user in users if user.get("tokenFile"))


class _Library(NamedTuple):
    """The few names of kubernetes_asyncio that are used."""

    ApiClient: Any
    Configuration: Any
    ConfigException: type[Exception]
    InClusterConfigLoader: Any
    load_kube_config: Any


@cache
def _library() -> _Library:
    """Import what is used, and only now: `import kubernetes_asyncio` would take 33 MB for models never looked at."""
    with _bare_packages():
        client = importlib.import_module("kubernetes_asyncio.client.api_client")
        configuration = importlib.import_module("kubernetes_asyncio.client.configuration")
        package: Any = sys.modules["kubernetes_asyncio.client"]  # kube_config takes the two names from the package
        package.ApiClient, package.Configuration = client.ApiClient, configuration.Configuration
        config = importlib.import_module("kubernetes_asyncio.config")
        in_cluster = importlib.import_module("kubernetes_asyncio.config.incluster_config")
    return _Library(
        client.ApiClient,
        configuration.Configuration,
        config.ConfigException,
        in_cluster.InClusterConfigLoader,
        config.load_kube_config,
    )


@contextmanager
def _bare_packages() -> Iterator[None]:
    """Stand-ins for the packages whose __init__ imports every model; taken away again, so that anyone else's import
    of the library gets the real ones.
    """
    bare = [name for name in _HEAVY_PACKAGES if name not in sys.modules]
    for name in bare:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ClusterError(f"the Python package {name} is missing: install kubernetes_asyncio")
        sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in bare:
            del sys.modules[name]
