"""A real control plane inside one namespace of the lab: etcd, kube-apiserver and, where wanted, the controllers.

::

    with Lab() as lab, ControlPlane(lab.net, lab.folder / "control-plane") as cluster:
        cluster.api("POST", "/api/v1/namespaces/default/services", {...})
        kube_proxy_config = {"clientConnection": {"kubeconfig": str(cluster.kubeconfig("admin"))}}

`hack/control-plane.sh` builds the programs, once, into the user's cache.
"""

from __future__ import annotations

import json
import secrets
import ssl
import subprocess
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from kproxy_ebpf.lab.cache import cache_folder
from kproxy_ebpf.lab.cluster import OUTSIDE4
from kproxy_ebpf.lab.netns import Namespace, run
from kproxy_ebpf.lab.wait import until

TOOLS = Path(__file__).parents[2] / "tests" / "cluster" / "tools"
SERVICE_CIDRS = "10.96.0.0/16,fd00:10:96::/112"
API_PORT, ETCD_PORT, ETCD_PEER_PORT = 6443, 2379, 2380
START_SECONDS = 60
REQUEST_SECONDS = 10
REUSE_SECONDS = 30  # the API server closes idle connections after 90 s
MERGE_PATCH = "application/merge-patch+json"


def programs() -> Path:
    """The folder of etcd, kube-apiserver, kube-controller-manager, kube-proxy and kubectl.

    Raises FileNotFoundError, which names the command that builds them.
    """
    lines = "".join(f"{sha256((TOOLS / name).read_bytes()).hexdigest()}  {name}\n" for name in ("go.mod", "go.sum"))
    folder = cache_folder("control-plane") / sha256(lines.encode()).hexdigest()[:16]
    if not (folder / "kube-apiserver").exists():  # it is built last
        raise FileNotFoundError(f"no control plane in {folder}: make control-plane builds it")
    return folder


class ApiError(Exception):
    """The API server refused a request: its status code and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ControlPlane:
    """A context manager. `place` is the namespace it lives in, `address` one of that namespace's own.

    `users` adds static tokens: a user's name and the groups it is in. "admin" (system:masters) is always there.
    `api_flags` are further ones of kube-apiserver.
    """

    def __init__(
        self,
        place: Namespace,
        folder: Path,
        *,
        address: str = OUTSIDE4,
        users: Mapping[str, Sequence[str]] | None = None,
        controllers: Iterable[str] = (),
        api_flags: Iterable[str] = (),
    ) -> None:
        self.place = place
        self.folder = folder
        self.address = address
        self.url = f"https://{address}:{API_PORT}"
        self.programs = programs()
        self.controllers = ",".join(controllers)
        self.api_flags = tuple(api_flags)
        self.users = {"admin": ("system:masters",), **(users or {})}
        self.tokens = {user: secrets.token_hex(16) for user in self.users}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._connection: HTTPSConnection | None = None
        self._last_used = 0.0

    @property
    def ca_file(self) -> Path:
        """What clients verify the API server with; there once it has started."""
        return self.folder / "certificates" / "apiserver.crt"

    def kubeconfig(self, user: str = "admin", *, token: str = "") -> Path:
        """Write a kubeconfig for a user of `users`, or for a token made elsewhere; return its path."""
        path = self.folder / f"{user}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token or self.tokens[user]}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def kubectl(self, *words: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as admin, with `text` on its standard input. Raises CalledProcessError."""
        command: list[str | Path] = [self.programs / "kubectl", f"--kubeconfig={self.kubeconfig()}", *words]
        return self.place.run(command, check=check, input=text)

    def api(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, content: str = "application/json"
    ) -> Any:
        """One request as admin; the answer's JSON. Raises ApiError, OSError. A PATCH is a merge patch."""
        status, answer = self._request(method, path, body, MERGE_PATCH if method == "PATCH" else content)
        decoded = json.loads(answer) if answer[:1] in (b"{", b"[") else answer.decode()
        if status >= 400:
            raise ApiError(status, decoded["message"] if isinstance(decoded, dict) else decoded)
        return decoded

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, content: str) -> tuple[int, bytes]:
        if time.monotonic() - self._last_used > REUSE_SECONDS:
            self._disconnect()
        if self._connection is None:
            self._connection = self.connect()
        self._last_used = time.monotonic()
        text = json.dumps(body) if body is not None else None
        try:
            self._connection.request(method, path, text, {"Content-Type": content, **self.authorization})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (HTTPException, OSError) as error:
            self._disconnect()
            raise error if isinstance(error, OSError) else ConnectionError(repr(error)) from error

    @property
    def authorization(self) -> dict[str, str]:
        """The header that makes a request the admin's."""
        return {"Authorization": f"Bearer {self.tokens['admin']}"}

    def connect(self) -> HTTPSConnection:
        """A connection to the API server; its socket lives in `place`, whoever uses it. Raises OSError."""
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        connection = HTTPSConnection(self.address, API_PORT, timeout=REQUEST_SECONDS, context=trust)
        with self.place.inside():
            connection.connect()
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
        self._launch(
            "etcd",
            *("--unsafe-no-fsync", f"--data-dir={self.folder / 'etcd'}", "--log-level=warn"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ),
        )

    def start_api(self) -> None:
        """Start the API server and wait until it is ready. Raises TimeoutError with the end of its log."""
        keys = self._service_account_keys()
        self._launch(
            "kube-apiserver",
            *(f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}", f"--cert-dir={self.ca_file.parent}"),
            *(f"--secure-port={API_PORT}", f"--bind-address={self.address}", f"--advertise-address={self.address}"),
            *("--authorization-mode=RBAC", "--allow-privileged", "--disable-admission-plugins=ServiceAccount"),
            *("--service-account-issuer=https://kubernetes.default", f"--service-account-key-file={keys[1]}"),
            *(f"--service-account-signing-key-file={keys[0]}", f"--service-cluster-ip-range={SERVICE_CIDRS}"),
            *(f"--token-auth-file={self._token_file()}", *self.api_flags),
        )
        until(self._is_ready, f"{self.url}/readyz", seconds=START_SECONDS, pause=0.1)

    def start_controllers(self) -> None:
        self._launch(
            "kube-controller-manager",
            *(f"--kubeconfig={self.kubeconfig()}", "--leader-elect=false", f"--controllers={self.controllers}"),
            *("--bind-address=127.0.0.1", "--use-service-account-credentials=false"),
        )

    def stop(self, program: str) -> None:
        """SIGTERM, then SIGKILL, and reap: the API server is gone until `start_api`."""
        self._disconnect()
        self.place.end(self.processes.pop(program))

    def _is_ready(self) -> bool:
        process = self.processes["kube-apiserver"]
        if process.poll() is not None:
            log = (self.folder / "kube-apiserver.log").read_text()
            raise RuntimeError(f"kube-apiserver ended with code {process.returncode}:\n{log[-2000:]}")
        return self.ca_file.exists() and self._request("GET", "/readyz", None, "application/json")[0] == 200

    def _launch(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.log").open("a") as log:
            command: list[str | Path] = [self.programs / program, *arguments]
            self.processes[program] = self.place.popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _service_account_keys(self) -> tuple[Path, Path]:
        """The private and the public key that service account tokens are signed and checked with."""
        private, public = self.folder / "sa.key", self.folder / "sa.pub"
        if not public.exists():
            run(["openssl", "genrsa", "-out", str(private), "2048"])
            run(["openssl", "rsa", "-in", str(private), "-pubout", "-out", str(public)])
        return private, public

    def _token_file(self) -> Path:
        path = self.folder / "tokens.csv"
        lines = (f'{self.tokens[user]},{user},{user},"{",".join(groups)}"' for user, groups in self.users.items())
        path.write_text("\n".join(lines) + "\n")
        return path

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            self.start_etcd()
            self.start_api()
            if self.controllers:
                self.start_controllers()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all its processes, the last started first."""
        for program in reversed(list(self.processes)):
            self.stop(program)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def object_path(kind: str, name: str = "", namespace: str = "default") -> str:
    """The API path of a Service, EndpointSlice, Pod or Node, or of their collection without a name."""
    prefix = "/apis/discovery.k8s.io/v1" if kind == "EndpointSlice" else "/api/v1"
    middle = "" if kind == "Node" else f"/namespaces/{urllib.parse.quote(namespace)}"
    return f"{prefix}{middle}/{kind.lower()}s" + (f"/{urllib.parse.quote(name)}" if name else "")
