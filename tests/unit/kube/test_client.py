"""Credentials: read, read again when they rotate, and the sentences when they can't be read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from fake_api import FakeApi

from kproxy_ebpf.errors import ClusterError
from kproxy_ebpf.kube import client as client_module
from kproxy_ebpf.kube.client import Client


@pytest.fixture
async def api():
    fake = await FakeApi().start()
    yield fake
    await fake.stop()


async def get(client: Client) -> int:
    response = await client.request("GET", "/api/v1/services")
    response.close()
    return response.status


def sent(api: FakeApi) -> str:
    return api.requests[-1].headers["Authorization"]


async def test_a_token_file_is_read_again_when_it_rotates(api, tmp_path):
    file = tmp_path / "token"
    file.write_text("one\n")
    client = await Client.from_kubeconfig(api.kubeconfig(tmp_path, tokenFile="token"))
    connection = client._session
    await get(client)
    assert sent(api) == "Bearer one"
    (tmp_path / "next").write_text("two\n")
    (tmp_path / "next").rename(file)
    await get(client)
    assert sent(api) == "Bearer two"
    assert client._session is connection  # a token alone must not end the watches
    await client.aclose()


async def test_a_service_account_is_read_and_rotates(api, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    (tmp_path / "..v1").mkdir()
    (tmp_path / "..v2").mkdir()
    for version in ("..v1", "..v2"):
        (tmp_path / version / "token").write_text(f"of-{version}\n")
        (tmp_path / version / "ca.crt").write_text(CA)
    (tmp_path / "..data").symlink_to("..v1")
    for name in ("token", "ca.crt"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    client = await Client.in_cluster(tmp_path)
    connection = client._session
    client._session.api.configuration.host = f"http://127.0.0.1:{api.port}"  # the tests' server has no certificate
    await get(client)
    assert sent(api) == "Bearer of-..v1"
    assert client._session is connection
    (tmp_path / "..next").symlink_to("..v2")
    (tmp_path / "..next").rename(tmp_path / "..data")  # as the kubelet does
    await client._refresh()
    assert client._session is not connection  # a new CA needs new connections
    assert client._session.api.configuration.api_key["BearerToken"] == "Bearer of-..v2"
    await client.aclose()


async def test_a_401_reads_everything_again(api, tmp_path):
    file = api.kubeconfig(tmp_path, token="one")  # noqa: S106
    client = await Client.from_kubeconfig(file)
    stamp = file.stat()
    api.kubeconfig(tmp_path, token="two")  # noqa: S106
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same time: nothing tells of the change
    api.answers["/api/v1/services"] = [lambda _: web.json_response({}, status=401)]
    assert await get(client) == 401
    assert sent(api) == "Bearer one"
    assert await get(client) == 200
    assert sent(api) == "Bearer two"
    await client.aclose()


async def test_another_server_in_the_kubeconfig_is_gone_to(api, tmp_path):
    other = await FakeApi().start()
    client = await Client.from_kubeconfig(api.kubeconfig(tmp_path))
    await get(client)
    other.kubeconfig(tmp_path)
    await get(client)
    assert len(other.requests) == len(api.requests) == 1
    await client.aclose()
    await other.stop()


async def test_a_kubeconfig_that_breaks_while_running_is_an_error_of_that_request(api, tmp_path):
    file = api.kubeconfig(tmp_path)
    client = await Client.from_kubeconfig(file)
    file.write_text("{")
    with pytest.raises(ClusterError):
        await get(client)
    api.kubeconfig(tmp_path)
    assert await get(client) == 200
    await client.aclose()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "current-context: x",
        "contexts: []\nclusters: []\nusers: []\ncurrent-context: x",
        "current-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {}}]",
        "current-context: c\ncontexts: [{name: c, context: {cluster: c}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://x', certificate-authority: /nonexistent}}]",
        "current-context: c\ncontexts: [{name: c, context: {cluster: c}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://x', certificate-authority: /dev/zero/x}}]",
    ],
)
async def test_a_kubeconfig_that_can_not_be_used_is_one_sentence(tmp_path, content):
    file = tmp_path / "kubeconfig"
    file.write_text(content)
    with pytest.raises(ClusterError) as error:
        await Client.from_kubeconfig(file)
    assert str(file) in str(error.value)
    assert str(error.value).endswith("check the file given with --kubeconfig")
    assert "\n" not in str(error.value)


async def test_an_absent_kubeconfig(tmp_path):
    with pytest.raises(ClusterError, match="No such file or directory"):
        await Client.from_kubeconfig(tmp_path / "none")


async def test_a_ca_that_is_none_is_one_sentence(api, tmp_path):
    (tmp_path / "ca").write_text("not a certificate")
    file = api.kubeconfig(tmp_path)
    file.write_text(file.read_text().replace("server: http:", "certificate-authority: ca\n    server: https:"))
    with pytest.raises(ClusterError, match="CA or the client certificate can't be used"):
        await Client.from_kubeconfig(file)


async def test_outside_of_a_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match=r"give --kubeconfig FILE or --manifests DIR$"):
        await Client.in_cluster(tmp_path)


def test_the_library_comes_without_its_models_and_stays_usable():
    script = f"""
import sys
sys.path.insert(0, {str(Path(client_module.__file__).parents[2])!r})
from kproxy_ebpf.kube import client
assert not [name for name in sys.modules if name.startswith("kubernetes_asyncio")]
library = client._library()
assert len([name for name in sys.modules if name.startswith("kubernetes_asyncio")]) < 20
import kubernetes_asyncio.client
assert kubernetes_asyncio.client.ApiClient is library.ApiClient
assert kubernetes_asyncio.client.V1Service
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


CA = """\
-----BEGIN CERTIFICATE-----
MIIBOzCB4qADAgECAgEBMAoGCCqGSM49BAMCMBwxGjAYBgNVBAMMEWtwcm94eS1l
YnBmIHRlc3RzMCAXDTI0MDEwMTAwMDAwMFoYDzIxMjQwMTAxMDAwMDAwWjAcMRow
GAYDVQQDDBFrcHJveHktZWJwZiB0ZXN0czBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABFixqwJiDO2hQJqmiHX3b0MkKXNIzgdY1OzyeUqFg4TwXDp6o+t0XgtCeI2w
sjBTlKgkpbaCZhELsaQVAUR2q9qjEzARMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZI
zj0EAwIDSAAwRQIgJhDrdRyitBGWYxVKfLk4/Iw/Jvpbw8ANPGNcrBwTFdQCIQCP
OhfnMt4LIwFQhSRrdB4gRR2XbrDQzAjnaNsv+6ui6A==
-----END CERTIFICATE-----
"""


async def test_credentials_that_never_come_are_an_error(monkeypatch):
    async def hang() -> client_module.Credentials:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(client_module, "LOAD_SECONDS", 0.05)
    with pytest.raises(ClusterError, match=r"can't be had within 0\.05 s"):
        await Client(hang)._refresh(force=True)


async def test_a_rotation_waits_for_the_requests_that_have_begun(api, tmp_path):
    other = await FakeApi().start()
    answered = asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(_request)
        await response.write(b"first ")
        await answered.wait()
        await response.write(b"last")
        return response

    async def slower(request: web.Request) -> web.StreamResponse:
        await answered.wait()
        return web.Response(text="late")

    api.answers["/api/v1/services"] = [slow, slower]
    client = await Client.from_kubeconfig(api.kubeconfig(tmp_path))
    session = client._session
    reading = await client.request("GET", "/api/v1/services")
    preparing = asyncio.create_task(client.request("GET", "/api/v1/services"))
    while len(api.requests) < 2:  # noqa: ASYNC110, the server has no event to wait for
        await asyncio.sleep(0.005)
    other.kubeconfig(tmp_path)
    assert await get(client) == 200
    assert await get(client) == 200
    assert len(other.requests) == 2
    assert client._retired == [session]
    answered.set()
    assert await reading.text() == "first last"
    assert await (await preparing).text() == "late"
    await get(client)
    assert client._retired == []
    assert session.api.rest_client.pool_manager.closed
    await client.aclose()
    await other.stop()
