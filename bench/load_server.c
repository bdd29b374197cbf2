/* The server: echoes what it gets, over TCP and UDP. */
#include "load.h"

static char message[MESSAGE_MAX];

static int listen_on(const struct target *target, int kind)
{
	int handle = socket(target->address.ss_family, kind | SOCK_NONBLOCK, 0), on = 1;

	setsockopt(handle, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (handle < 0 || bind(handle, (const struct sockaddr *)&target->address, target->length))
		die("bind");
	if (kind == SOCK_STREAM && listen(handle, 4096))
		die("listen");
	return handle;
}

static void accept_all(int poll, int listener)
{
	int handle;

	while ((handle = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
		watch(poll, handle, EPOLLIN, handle);
}

static void echo(int handle)
{
	ssize_t size = recv(handle, message, sizeof(message), 0);

	if (size > 0)
		size = send(handle, message, size, MSG_NOSIGNAL);
	if (size <= 0 && !(size < 0 && errno == EAGAIN))
		close(handle);
}

static void echo_datagrams(int handle)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);
	ssize_t size;

	while ((size = recvfrom(handle, message, sizeof(message), 0, (struct sockaddr *)&peer, &length)) >= 0) {
		sendto(handle, message, size, 0, (struct sockaddr *)&peer, length);
		length = sizeof(peer);
	}
}

int serve(const char *address, const char *port)
{
	struct target target = parse_target(address, port);
	int stream = listen_on(&target, SOCK_STREAM), datagram = listen_on(&target, SOCK_DGRAM);
	int poll = epoll_create1(0);
	struct epoll_event events[EVENTS_AT_ONCE];

	watch(poll, stream, EPOLLIN, stream);
	watch(poll, datagram, EPOLLIN, datagram);
	puts("ready");
	fflush(stdout);
	while (!stopped) {
		int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);

		for (int i = 0; i < count; i++) {
			int handle = (int)events[i].data.u64;

			if (handle == stream)
				accept_all(poll, stream);
			else if (handle == datagram)
				echo_datagrams(datagram);
			else
				echo(handle);
		}
	}
	return 0;
}
