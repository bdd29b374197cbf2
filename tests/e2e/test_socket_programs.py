"""Real programs of pods, through Services, over the socket fast path: each as it is installed."""

from __future__ import annotations

import http.server
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, contextmanager

import pytest
from sockets import counted
from worlds import in_worlds

from kproxy_ebpf.lab.wait import until

pytestmark = in_worlds("hybrid")

HTTP = {"http": (80, "TCP", 8000)}
DNS = {"dns": (53, "UDP", 5300), "dns-tcp": (53, "TCP", 5300)}
REDIS = {"redis": (6379, "TCP", 6379)}
PROXY = {"http": (80, "TCP", 8001)}
NAME_ADDRESS = "192.0.2.33"  # what our name server says of every name

RESOLVE = """
#include <netdb.h>
#include <stdio.h>
#include <arpa/inet.h>
int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
	int error = getaddrinfo(argv[1], NULL, &hints, &found);
	if (error) { fprintf(stderr, "%s\\n", gai_strerror(error)); return 1; }
	puts(inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr));
	return 0;
}
"""


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def do_GET(self):
        body = f"{self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def pages(pod, port, family):
    """A web server in `pod` that says who asks."""
    listener = pod.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((pod.address(family), port))
    listener.listen(64)
    server = http.server.ThreadingHTTPServer((pod.address(family), port), Page, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def dns_answer(question):
    """To any question the same address; no address of another family."""
    (kind,) = struct.unpack_from("!H", question, question.index(b"\0", 12) + 1)
    end = question.index(b"\0", 12) + 5
    records = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(NAME_ADDRESS) if kind == 1 else b""
    counts = struct.pack("!HHHH", 1, bool(records), 0, 0)
    return question[:2] + b"\x81\x80" + counts + question[12:end] + records


@contextmanager
def name_server(pod, family):
    """Answers over UDP and TCP until the block ends."""
    af, stop = {4: socket.AF_INET, 6: socket.AF_INET6}[family], threading.Event()
    with pod.socket(af, socket.SOCK_DGRAM) as datagrams, pod.socket(af, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for handle in (datagrams, listener):
            handle.bind((pod.address(family), 5300))
            handle.settimeout(0.05)
        listener.listen(8)

        def over_udp():
            question, client = datagrams.recvfrom(4096)
            datagrams.sendto(dns_answer(question), client)

        def over_tcp():
            with listener.accept()[0] as stream:
                stream.settimeout(1)
                answer = dns_answer(stream.recv(4096)[2:])
                stream.sendall(struct.pack("!H", len(answer)) + answer)

        def serve(once):
            while not stop.is_set():
                try:
                    once()
                except TimeoutError:
                    continue

        threads = [threading.Thread(target=serve, args=(once,)) for once in (over_udp, over_tcp)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.fixture
def resolver(world, family, tmp_path):
    """A pod's resolv.conf that names the name server's VIP, as a command's prefix."""
    with name_server(world.webs[0], family):
        service = world.service(world.webs[:1], DNS, wait=False)
        vip = service.vip(family)
        dig = ["dig", f"@{vip}", "+tries=1", "+time=1", "a.test"]
        until(lambda: "NOERROR" in world.client.run(dig, check=False).stdout, "DNS")
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver {vip}\noptions timeout:1 attempts:1\n")
        yield ["unshare", "--mount", "sh", "-c", f'mount --bind {conf} /etc/resolv.conf && exec "$@"', "sh"], vip
        service.remove()


def bracketed(address):
    return f"[{address}]" if ":" in address else address


def test_curl(world, family):
    with pages(world.webs[0], 8000, family):
        service = world.service(world.webs[:1], HTTP, wait=False)
        url = f"http://{bracketed(service.vip(family))}/"
        curl = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "2", "--write-out", "%{remote_ip}"]
        until(lambda: world.client.run([*curl, url], check=False).returncode == 0, "the Service to be in force")
        with counted(world, connected=1, balanced=0):
            told = world.client.run([*curl, url, url]).stdout
        client, vip = world.client.address(family), service.vip(family)
        assert told.split() == [client, vip + client, vip]


def test_dig(world, family, resolver):
    """dig binds its sockets to a port first, so they are left to the link."""
    _, vip = resolver
    for flags in ((), ("+tcp",)):
        with counted(world, connected=0, balanced=1):
            told = world.client.run(["dig", f"@{vip}", *flags, "+tries=1", "+time=2", "web.test"]).stdout
        assert NAME_ADDRESS in told
        assert f"SERVER: {vip}#53" in told


def test_the_resolver_of_glibc(world, family, resolver):
    prefix, _ = resolver
    with counted(world, connected=0, balanced=1):
        told = world.client.run([*prefix, "getent", "ahostsv4", "web.test"]).stdout
    assert NAME_ADDRESS in told


def test_the_resolver_of_musl(world, family, resolver, tmp_path):
    """musl sends from an unconnected socket, and drops answers of any other address than the one that it asked."""
    source, program = tmp_path / "resolve.c", tmp_path / "resolve"
    source.write_text(RESOLVE)
    subprocess.run(["musl-gcc", "-static", "-o", program, source], check=True)
    prefix, _ = resolver
    with counted(world, connected=0, balanced=1):
        told = world.client.run([*prefix, program, "web.test"]).stdout
    assert told.strip() == NAME_ADDRESS


def test_nginx_as_a_proxy_to_a_vip(world, family, tmp_path):
    """The pod is a backend and a client: nginx's upstream is a VIP, and it keeps connections to the VIP."""
    proxy, web = world.webs[1], world.webs[0]
    with pages(web, 8000, family), ExitStack() as stack:
        upstream = world.service([web], HTTP, wait=False)
        front = world.service([proxy], PROXY, wait=False)
        conf = tmp_path / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors; worker_processes 1; user root;\n"
            "events {}\n"
            f"http {{ access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path};\n"
            f"fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};\n"
            f"upstream web {{ server {bracketed(upstream.vip(family))}:80; keepalive 4; }}\n"
            f"server {{ listen {bracketed(proxy.address(family))}:8001;\n"
            "location / { proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection ''; } } }\n"
        )
        process = proxy.popen(["nginx", "-c", conf, "-e", tmp_path / "errors"])
        stack.callback(proxy.end, process)
        url = f"http://{bracketed(front.vip(family))}/"
        curl = ["curl", "--silent", "--noproxy", "*", "--max-time", "2", "--fail", url]
        until(lambda: world.client.run(curl, check=False).returncode == 0, "nginx to be up")
        with counted(world, connected=20):  # the clients' own: what nginx has it keeps
            told = {world.client.run(curl).stdout.strip() for _ in range(20)}
        assert told == {proxy.address(family)}


def test_a_pool_of_database_connections(world, family, tmp_path):
    """Fifty connections that are opened once and used a hundred times each."""
    web = world.webs[2]
    command = [
        "--port",
        "6379",
        "--bind",
        web.address(family),
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        tmp_path,
    ]
    # Debian puts the server's program into redis-tools under the name of the checker; it goes by what it is called.
    server = web.popen(
        ["bash", "-c", 'exec -a redis-server /usr/bin/redis-check-rdb "$@"', "sh", *command], stdout=subprocess.DEVNULL
    )
    try:
        service = world.service([web], REDIS, wait=False)
        vip = service.vip(family)
        ping = ["redis-cli", "-h", vip, "ping"]
        until(lambda: "PONG" in world.client.run(ping, check=False, timeout=5).stdout, "redis to answer")
        benchmark = ["redis-benchmark", "-h", vip, "-c", "50", "-n", "5000", "-t", "set,get", "-q"]
        with counted(world, balanced=0, reset_backend_gone=0):
            told = world.client.run(benchmark).stdout
        assert told.count("requests per second") == 2
        assert "rror" not in told
    finally:
        web.end(server)
